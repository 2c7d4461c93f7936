"""Numbers and mathematics as people and models write them.

One pattern, NUMBER, finds numbers in texts and answers. Mathematics is read by rules: LaTeX becomes
Python's arithmetic, whose syntax tree is reckoned. What they can't read (variables, functions,
matrices) goes to math-verify where it is installed. Left out: decimal commas, numbers in words,
conversion of units.
"""

import ast
import functools
import importlib.metadata
import importlib.util
import logging
import math
import operator
import re

from data.example import WRAPPING, say

# ---- numbers ------------------------------------------------------------------------------------

# full-width forms and other minus signs
PLAIN = {0xFF01 + i: chr(0x21 + i) for i in range(94)} | dict.fromkeys(map(ord, "−–‒﹣"), "-")
SPACES = "\u00a0\u2007\u2009\u202f\u3000"  # that nobody breaks a line at, or thin ones
THOUSANDS = re.compile(rf"(?<=\d)[,'’ {SPACES}](?=\d\d\d(?!\d))")
NUMBER = rf"\d+(?:[,'’{SPACES}]\d\d\d(?!\d))*(?:\.\d+)?(?:[eE][-+]?\d+)?"
CODES = "USD|EUR|GBP|JPY|CNY|INR|CHF"
CURRENCY = rf"(?:[A-Z]{{0,2}} ?[$€£¥₹₩₽]|(?:{CODES}|[Dd]ollars?|[Ee]uros?)\b)?"
AMOUNT = re.compile(  # what an answer may be: "- $5", "1 200 EUR", "12 per cent"
    rf"(-?) ?{CURRENCY} ?([-+]?)(\d{{1,3}}(?: \d\d\d)+(?:\.\d+)?|{NUMBER}|\.\d+)"
    rf" ?(%|[Pp]er ?cent)? ?{CURRENCY}"
)
# LaTeX around an answer: "\boxed{5}", "\(5\)", "$$5$$", "\text{cat}"
AROUND = [r"\\boxed\s*\{(.*)\}", r"\$\$?([^$]*)\$\$?", r"\\\((.*)\\\)", r"\\\[(.*)\\\]"]
AROUND = re.compile("|".join(AROUND), re.DOTALL)
WORDS = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")


def unwrap(text: str) -> str:
    """A text without the LaTeX and markdown around it."""
    text = bare(WORDS.sub(r"\1", text) if "\\" in text else text)
    while found := AROUND.fullmatch(text):
        text = bare(next(part for part in found.groups() if part is not None))
    return text


def bare(text: str) -> str:
    """A text without blanks, markdown and quotes around it, and a final dot."""
    return text.strip(WRAPPING + SPACES).rstrip("." + WRAPPING + SPACES)


def clean_answer(text: str) -> str:
    """The bare answer: no markdown, quotes, final dot; a number as Python reads it.

    "12 percent" is "12%", "US$1,200" and "1 200" are "1200", "−5" is "-5", "\\boxed{5}" is "5".
    Labels go through it too.
    """
    text = unwrap(text.translate(PLAIN))
    if not (found := AMOUNT.fullmatch(text)):
        return text
    minus, sign, number, percent = found.groups()
    return minus + sign + THOUSANDS.sub("", number) + ("%" if percent else "")


def to_number(text: str) -> float | None:
    """The number that a cleaned answer is, "%" dividing by 100, nan for "inf" or "1e999"; or None.

    A nan is close to nothing, so that it is no right answer, not even to itself.
    """
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None
    if "_" in text:  # Python's own
        return None
    return value if math.isfinite(value) else math.nan


def read_value(text: str) -> float | None:
    """The finite number that a text writes ("1,200", "12 %", "$3.0"), or None; 12 % is 12."""
    value = to_number(clean_answer(text).removesuffix("%"))
    return None if value is None or math.isnan(value) else value


def close(wanted: float, given: float, tolerance: float) -> bool:
    """Whether a number is within `tolerance`, a share of the wanted one, and rounding, of it."""
    return wanted == given or abs(given - wanted) <= (tolerance + 1e-12) * abs(wanted) < math.inf


# ---- mathematics --------------------------------------------------------------------------------

MOST = 200  # characters that are read
GROUP = r"\s*\{([^{}]*)\}"
# LaTeX and words as signs, then as Python's arithmetic; again until nothing changes: it is nested
SIGNS = [(rf"\\(?:left|right|[!$])|[A-Z]{{0,2}}[$€£¥₹₩₽]|^(?:{CODES})\b", "")]
SIGNS += [(r"\\[,;: ]|~", " ")]
SIGNS += [(r"\\([{}%])", r"\1"), (r"\{,\}", ""), (r" ?[Pp]er ?cent", "%"), (r"\s+to\s+", ":")]
SIGNS += [(r"\^\s*\{?\\circ\}?|\\degree\b", "°"), (r"\\pi\b", "π"), (r"\\infty\b", "∞")]
SIGNS += [(r"\\cdot|\\times|×|·|(?<=\d)\s*x\s*(?=10\b)", "*"), (r"\\div|÷", "/"), ("√", r"\\sqrt")]
SIGNS += [(r"\\pm\b", "±"), (r"\\in\b|∈", "="), ("²", "^2"), ("³", "^3")]
SIGNS += [(r"\\cup\b|∪|;|,?\s+(?:and|or)\s+", ",")]
ARITHMETIC = (
    (r"\\[dtc]frac", r"\\frac"),
    (rf"(\d)\s*\\frac{GROUP}{GROUP}", r"(\1+(\2)/(\3))"),
    (rf"\\frac{GROUP}{GROUP}", r"((\1)/(\2))"),
    (r"\\frac\s*(\d)\s*(\d)", r"(\1/\2)"),
    (rf"\\sqrt\s*\[(\d+)\]{GROUP}", r"((\2)**(1/\1))"),
    (rf"\\sqrt{GROUP}", r"((\1)**0.5)"),
    (r"\\sqrt\s*(\d+(?:\.\d+)?|\([^()]*\))", r"((\1)**0.5)"),
    (rf"\^{GROUP}", r"**(\1)"),
    (r"\^", "**"),
    (r"(?<![\d.])(\d+) +(\d+) */ *(\d+)", r"(\1+\2/\3)"),  # 2 1/2
    (r"(\d)[eE]([+-]?\d+)\b", r"\1*10**(\2)"),
    (r"(?<![\d.])0+(?=\d)", ""),
    (r"([\d.π∞)])\s*([(π∞])", r"\1*\2"),
    (r"([π∞)])\s*(\d)", r"\1*\2"),
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
    for factor in (1, {("%", ""): 0.01, ("", "%"): 100}.get((unit, other_unit), 1)):
        if all(close(factor * a, b, tolerance) for a, b in zip(numbers, others)):
            return True  # 50 % is 0.5, and 50 where % is understood
    return False


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
    if "±" in text:
        text = ",".join(text.replace("±", sign) for sign in "+-")
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
        case ast.Set() | ast.Tuple() | ast.List():
            kind, parts = type(node).__name__, node.elts
        case ast.Call(func=ast.Name()):
            kind, parts = node.func.id, node.args
        case _:
            return [calculate(node)], "#"
    found = [read_tree(part) for part in parts]
    if kind == "Set":
        found.sort()
    if len(found) == 1:
        return found[0]
    numbers = sum((numbers for numbers, _ in found), [])
    if kind == "ratio":
        numbers = [number / numbers[-1] for number in numbers]
    return numbers, f"{kind}({','.join(form for _, form in found)})"


def calculate(node: ast.AST) -> float:
    """The value of a syntax tree of numbers, π, inf and + - * / **."""
    match node:
        case ast.Constant():
            return float(node.value)
        case ast.Name():
            return {"π": math.pi, "inf": math.inf}[node.id]
        case ast.UnaryOp():
            return calculate(node.operand) * (-1 if isinstance(node.op, ast.USub) else 1)
        case ast.BinOp():
            return float(OPERATORS[type(node.op)](calculate(node.left), calculate(node.right)))
    raise TypeError(node)


# ---- what our rules can't read ------------------------------------------------------------------

# what is prose; what could take for ever: towers of powers, large factorials, sums, integrals
PROSE = re.compile(r"(?<![\\A-Za-z{])(?!(?:sin|cos|tan|log|ln|exp|max|min)\b)[A-Za-z]{3,}")
TOWER = re.compile(r"\^\{?[^{}^]{1,9}\}?\^|\^\{[^}]*\^|\^\{?\d{4}|\d{3}!|!!|\\(?:sum|prod|o?int)\b")


def verified(target: str, given: str) -> bool:
    """Whether math-verify, where it is installed, takes two texts for the same."""
    if any(PROSE.search(text) or TOWER.search(text) for text in (target, given)):
        return False
    if not re.search(r"[A-Za-z\\!]", target + given) or not (checker := library()):
        return False  # arithmetic without letters our rules would have read
    try:
        # LaTeX as a whole, not a number found in it; no time limits: they need the main thread
        how = {"fallback_mode": "no_fallback", "parsing_timeout": None}
        how["extraction_config"] = [checker.LatexExtractionConfig()]
        gold, said = (checker.parse(f"${text}$", **how) for text in (target, given))
        return bool(gold and said) and checker.verify(gold, said, timeout_seconds=None)
    except Exception:  # of sympy's, a dozen types: not read
        return False


@functools.cache
def library():
    """The module math_verify; None, which is said once, where it isn't installed."""
    try:
        import math_verify  # optional
    except ImportError:
        told = "variables, functions and matrices in answers are compared as text"
        say(f"{told}: pip install math-verify reads them")
        return None
    logging.getLogger("math_verify").setLevel(logging.ERROR)  # it warns of its missing time limits
    return math_verify


def math_reader() -> str:
    """What reads mathematics here."""
    if importlib.util.find_spec("math_verify") is None:
        return "own rules"
    return f"own rules, math-verify {importlib.metadata.version('math-verify')}"
