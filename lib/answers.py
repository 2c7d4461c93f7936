"""Answers: how one is read from a response, and how right it is, by the kind that is asked for.

Free text and numbers: relaxed accuracy (ChartQA, arXiv 2203.10244). Mathematics: LaTeX becomes
Python's arithmetic, whose syntax tree is reckoned; variables and functions go to math-verify, where
it is installed. Letters, decisions, boxes, labels: the rewards of Curr-ReFT (arXiv 2503.07065,
section 3). results/README.md has a table of what is read, and what is not.
"""

import ast
import functools
import importlib.metadata
import logging
import math
import operator
import re
from collections.abc import Sequence

from data.boxes import iou, read_box
from data.example import Example, choose, say, split_marked
from lib.names import CODES, PLAIN, THOUSANDS, clean_answer, close, to_number, unwrap

PARTIAL = 0.2  # for some of the right letters (paper; the published code has no such credit)
LETTERED = re.compile(r"(?:^|(?<=[\s,;(]))\(?([A-Z])[).:]")  # "(A) cat, C: dog"
OPTION = re.compile(r"(?:^|\s)\(?([A-Z])[).:] *([^\n]*?)(?=\s\(?[A-Z][).:]|\n|$)")


def split_response(response: str) -> tuple[str, str | None]:
    """(thinking, cleaned answer), the answer None without exactly one marker."""
    thinking, answer = split_marked(response)
    return thinking, None if answer is None else clean_answer(answer)


def extract_answer(response: str) -> str | None:
    """The cleaned answer of a response, or None without exactly one answer marker."""
    return split_response(response)[1]


def relaxed_accuracy(*, target: str, prediction: str, tolerance: float = 0.05) -> bool:
    """ChartQA's metric: a number within `tolerance`, a share of the TARGET; text but for its case.

    Both sides come from clean_answer. "%" divides by 100, as published, so that "57%" is not the
    label "57" where a chart's labels leave the sign out. Elements of a list come in any order.
    """
    target, prediction = target.strip(), prediction.strip()
    if target.startswith("[") and target.endswith("]"):
        wanted, given = map(elements, (target, prediction))  # in order of size they match if at all
        pairs = ({"target": w, "prediction": g} for w, g in zip(wanted, given))
        alike = all(relaxed_accuracy(**pair, tolerance=tolerance) for pair in pairs)
        return len(wanted) == len(given) and alike
    wanted, given = to_number(target), to_number(prediction)
    if wanted is None or given is None:
        return target.casefold() == prediction.casefold() != ""
    return close(wanted, given, tolerance)


def elements(text: str) -> list[str]:
    """The cleaned elements of a list: numbers by size, then text."""
    cleaned = sorted(map(clean_answer, text.strip("[] ").split(",")), key=str.casefold)
    return sorted(cleaned, key=lambda text: math.inf if (n := to_number(text)) is None else n)


# ---- mathematics --------------------------------------------------------------------------------

MOST = 200  # characters that are read
GROUP = r"\s*\{([^{}]*)\}"
DIGIT = rf"(?:{GROUP}|\s*(\d))"
# LaTeX and words as signs, then as Python's arithmetic; again until nothing changes: it is nested
SIGNS = [(rf"\\(?:left|right|[!$])|[A-Z]{{0,2}}[$€£¥₹₩₽]|^(?:{CODES})\b", "")]
SIGNS += [(r"\\[,;: ]|~", " ")]
SIGNS += [(r"\\([{}%])", r"\1"), (r"\{,\}", ""), (r" ?[Pp]er ?cent", "%"), (r"\s+to\s+", ":")]
SIGNS += [(r"\^\s*\{?\\circ\}?|\\degree\b", "°"), (r"\\pi\b", "π"), (r"\\infty\b", "∞")]
SIGNS += [(r"\\cdot|\\times|×|·|(?<=\d)\s*x\s*(?=10\b)", "*"), (r"\\div|÷", "/"), ("√", r"\\sqrt")]
SIGNS += [(r"\\pm\b", "±"), (r"\\in\b|∈", "="), ("²", "^2"), ("³", "^3")]
SIGNS += [(r"\\cup\b|∪|;|,?\s+(?:and|or)\s+", ",")]
ARITHMETIC = (
    (rf"(?<![\d.])(\d*)\s*\\[dtc]?frac{DIGIT}{DIGIT}", r"(\1+(\2\3)/(\4\5))"),  # 2\frac12
    (r"\\sqrt(?!\s*\[)", r"\\sqrt[2]"),
    (rf"\\sqrt\s*\[(\d+)\](?:{GROUP}|\s*(\d+(?:\.\d+)?|\([^()]*\)))", r"((\2\3)**(1/\1))"),
    (rf"\^{GROUP}", r"**(\1)"),
    (r"\^", "**"),
    (r"(?<![\d.])(\d+) +(\d+) */ *(\d+)", r"(\1+\2/\3)"),  # 2 1/2
    (r"(\d)[eE]([+-]?\d+)\b", r"\1*10**(\2)"),
    (r"(?<![\d.])0+(?=\d)", ""),
    (r"(?<=[\d.π∞)])\s*(?=[(π∞])|(?<=[π∞)])\s*(?=\d)", "*"),
)
# Python has no brackets for intervals that are open at one end.
HALF_OPEN = ((r"\[([^][(){}]*)\)", r"right_open(\1)"), (r"\(([^][(){}]*)\]", r"left_open(\1)"))
READABLE = re.compile(r"[\d\s.,:+*/()\[\]{}π∞-]*")
NAME = re.compile(r"(\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\([a-z]\))?)\s*=\s*")  # x = 5
# A unit or what is counted; with less than three letters it is one of these, or it is a variable.
UNIT = "[A-Za-z]{3,}|°[CF]?|%|[cmnk]?m|[mk]?g|m?s|[mc]?l|mi|[hJWVAKNCFLΩ]|kW|Hz|Pa|GB|MB"
UNIT += "|in|ft|hr|yd|oz|lb"
UNIT = rf"(?:{UNIT})(?:\^\{{?-?\d\}}?)?"
UNIT = re.compile(rf"(?<=[\d.)}}π∞])\s*({UNIT}(?:[ */.]{{1,3}}{UNIT}){{0,3}})\s*(?=[,:)\]}}]|$)")
SHORT = """kilo k centi c milli m meter m metre m gram g second s sec s minute min hour h hr h
    inche in inch in foot ft feet ft liter l litre l degree ° deg °""".split()
SHORT = [(r"(?<=\w\w)s\b", ""), (" per ", "/"), *zip(SHORT[::2], SHORT[1::2])]
SHORT += [(r"square (\S+)", r"\1^2"), (r"cubic (\S+)", r"\1^3")]
SHORT += [(" squared", "^2"), (" cubed", "^3"), ("[{} ]", "")]
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
OPERATORS |= {ast.Div: operator.truediv, ast.Pow: operator.pow}
OPERATORS |= {ast.USub: operator.neg, ast.UAdd: operator.pos}


def same_math(target: str, given: str, tolerance: float = 0.0) -> bool:
    """Whether a given answer is the wanted one: the same text, the same value by our rules at
    `tolerance`, or where these can't read both by math-verify. A unit counts where both have one.
    """
    texts = [unwrap(text.translate(PLAIN)) for text in (target, given)]
    wanted, said = ("".join(text.split()).casefold() for text in texts)
    if wanted == said or max(map(len, texts)) > MOST:
        return wanted == said != ""
    wanted, said = map(read_math, texts)
    if wanted is None or said is None:
        return verified(*texts)
    (numbers, form, unit), (others, other_form, other_unit) = wanted, said
    if form != other_form or unit and other_unit and unit != other_unit:
        return False
    # 50 % is 0.5, and 50 where % is understood
    factor = {("%", ""): 0.01, ("", "%"): 100}.get((unit, other_unit), 1)
    pairs = list(zip(numbers, others))
    return any(all(close(f * a, b, tolerance) for a, b in pairs) for f in (1, factor))


def rewrite(text: str, rules) -> str:
    """A text after all rules (pattern, replacement)."""
    for pattern, plain in rules:
        text = re.sub(pattern, plain, text)
    return text


def read_math(text: str) -> tuple[list[float], str, str] | None:
    """(numbers, form, unit) by our rules: "(0, 5] cm" is ([0, 5], "left_open(#,#)", "cm"); None."""
    text = rewrite(text, SIGNS).strip()
    names = set(NAME.findall(text))
    text = NAME.sub("", text)
    units = {rewrite(unit.casefold(), SHORT) for unit in UNIT.findall(text)}
    text, before = UNIT.sub("", text), None
    if not re.search(r"[(\[{]", text):
        text = THOUSANDS.sub("", text)
    text = ",".join(text.replace("±", sign) for sign in "+-") if "±" in text else text
    while text != before:
        before, text = text, rewrite(text, ARITHMETIC)
    if len(names) > 1 or len(units) > 1 or not READABLE.fullmatch(text):
        return None
    if ":" in text:
        text = f"ratio({text.replace(':', ',')})"
    text = rewrite(text.replace("∞", "inf"), HALF_OPEN)
    try:
        numbers, form = read_tree(ast.parse("{" + text + "}", mode="eval").body)
    except (SyntaxError, LookupError, ArithmeticError, TypeError, RecursionError):
        return None
    return numbers, form, "".join(units)


def read_tree(node: ast.AST) -> tuple[list[float], str]:
    """The numbers of a syntax tree and its form, a set's in order: {2, (0, 1)} is [0, 1, 2]."""
    match node:
        case ast.Constant(number):
            return [float(number)], "#"
        case ast.Name(name):
            return [{"π": math.pi, "inf": math.inf}[name]], "#"
        case ast.UnaryOp(sign, part):
            kind, parts = type(sign), [part]
        case ast.BinOp(left, sign, right):
            kind, parts = type(sign), [left, right]
        case ast.Set(parts) | ast.Tuple(parts) | ast.List(parts):
            kind = type(node).__name__
        case ast.Call(ast.Name(kind), parts):
            pass
        case _:
            raise TypeError(node)
    found = [read_tree(part) for part in parts]
    if kind in OPERATORS:
        values = (numbers[0] for numbers, form in found if form == "#")
        return [float(OPERATORS[kind](*values))], "#"
    if kind == "Set":
        found.sort()
    if len(found) == 1:
        return found[0]
    numbers = sum((numbers for numbers, _ in found), [])
    if kind == "ratio":
        numbers = [number / numbers[-1] for number in numbers]
    return numbers, f"{kind}({','.join(form for _, form in found)})"


say_once = functools.cache(say)
# what is prose; what could take for ever: towers of powers, large factorials, sums, integrals
PROSE = re.compile(r"(?<![\\A-Za-z{])(?!(?:sin|cos|tan|log|ln|exp|max|min)\b)[A-Za-z]{3,}")
TOWER = re.compile(r"\^\{?[^{}^]{1,9}\}?\^|\^\{[^}]*\^|\^\{?\d{4}|\d{3}!|!!|\\(?:sum|prod|o?int)\b")


def verified(target: str, given: str) -> bool:
    """Whether math-verify takes two texts for the same; where it isn't installed, no."""
    texts = (target, given)
    wild = any(PROSE.search(text) or TOWER.search(text) for text in texts)
    if wild or not re.search(r"[A-Za-z\\!]", target + given):
        return False  # without letters our rules would have read it
    try:
        import math_verify  # optional

        # LaTeX as a whole, not a number found in it; no time limits: they need the main thread
        logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns that there are none
        how = {"fallback_mode": "no_fallback", "parsing_timeout": None}
        how["extraction_config"] = [math_verify.LatexExtractionConfig()]
        gold, said = (math_verify.parse(f"${text}$", **how) for text in texts)
        return bool(gold and said) and math_verify.verify(gold, said, timeout_seconds=None)
    except ImportError:
        told = "variables, functions and matrices in answers are compared as text"
        say_once(f"{told}: pip install math-verify reads them")
    except Exception:  # of sympy's, a dozen types: not read
        pass
    return False


def reader(examples: Sequence[Example]) -> str | None:
    """What reads the mathematics among the answers; None where there is none to read."""
    if all(example.kind != "math" for example in examples):
        return None
    try:
        return f"own rules, math-verify {importlib.metadata.version('math-verify')}"
    except importlib.metadata.PackageNotFoundError:
        return "own rules"


# ---- other kinds of answer ----------------------------------------------------------------------


def read_letters(text: str, question: str = "") -> set[str] | None:
    """The letters of "A, C", "C and A", "(a)", "AC", "A: cat", of the question's option; None."""
    text = unwrap(text)
    words = [word for word in re.findall(r"\w+", text) if word.casefold() != "and"]
    words = words[1:] if words and words[0].casefold() == "option" else words
    if words and all(re.fullmatch("[A-Z]+|[a-z]", word) for word in words):
        return set("".join(words).upper())
    named = {clean_answer(option).casefold(): name for name, option in OPTION.findall(question)}
    if letter := named.get(clean_answer(text).casefold()):
        return {letter}
    return LETTERED.match(text) and set(LETTERED.findall(text))


def read(example: Example, text: str | None):
    """What a marked answer says in the form that the Example asks for, None without that form."""
    if text is None or example.kind in ("text", "math"):
        return text
    text = text.translate(PLAIN)
    if example.kind == "letters":
        return read_letters(text, example.question)
    if example.kind == "box":
        return read_box(text)
    words = {clean_answer(part).casefold() for part in re.split("[,;]", text.strip("[] "))} - {""}
    if example.kind == "decision":  # one word, in any case
        return words if words in ({"yes"}, {"no"}) else None
    return words or None  # labels, between commas or semicolons


def grade(example: Example, text: str | None, tolerance: float = 0.0, scale=(1, 1)) -> float:
    """How right a marked answer, uncleaned, is, in [0, 1], right above 0.5; None is 0.

    text: 1 for any of the right answers by the answer metric at `tolerance`, for an option's letter
    too. math: the same by value, see same_math. letters: 1 for exactly the right ones, PARTIAL for
    some of them, 0 with any wrong one. box: 1 for an IoU above 0.5, `scale` taking its x and y to
    the pixels of the right one. labels: the Jaccard index.
    """
    given, right = read(example, text), read(example, example.answer)
    if given is None or right is None:
        return 0.0
    match example.kind:
        case "math":
            return float(any(same_math(right, given, tolerance) for right in example.answers))
        case "text":
            options = list(map(clean_answer, example.options or []))
            given, *rights = (choose(clean_answer(a), options) for a in (given, *example.answers))
            how = {"prediction": given, "tolerance": tolerance}
            return float(any(relaxed_accuracy(target=right, **how) for right in rights))
        case "box":
            given = tuple(number * factor for number, factor in zip(given, (*scale, *scale)))
            return float(iou(given, right) > 0.5)
        case "labels":
            return len(given & right) / len(given | right)
        case "letters" if given < right:
            return PARTIAL
    return float(given == right)


def matches(example: Example, text: str | None, tolerance: float = 0.0) -> bool:
    """Whether a marked answer is right."""
    return grade(example, text, tolerance) > 0.5
