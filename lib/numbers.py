"""Numbers and mathematics as people and models write them.

Our own rules read numbers, units, fractions, roots, ratios, lists and intervals; what they can't
(variables, functions, matrices) goes to math-verify where it is installed. Left out: decimal
commas, numbers in words, conversion of units.
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

# Numbers as people write them: full-width forms, other minus signs, "US$5", "5 €", "1 234".
PLAIN = {0xFF01 + i: chr(0x21 + i) for i in range(94)} | dict.fromkeys(map(ord, "−–‒﹣"), "-")
CURRENCY = re.compile(r"(?:\b[A-Z]{1,2} ?)?[$€£¥₹₩₽]")
CODE = re.compile(r"\b(?:USD|EUR|GBP|JPY|CNY|INR|CHF|dollars?|euros?)\b")
SPACES = "\u00a0\u2007\u2009\u202f\u3000"  # that nobody breaks a line at, or thin ones
THOUSANDS = re.compile(rf"(?<![\d,.])\d{{1,3}}(?:[,'’{SPACES}]\d{{3}})+(?![\d,])")
SPACED = re.compile(r"[-+]?\d{1,3}(?: \d{3})+(?:\.\d+)?%?")  # only where it is all there is
# LaTeX around an answer: "\boxed{5}", "\(5\)", "$$5$$", "\text{cat}"
AROUND = [r"\\boxed\s*\{(.*)\}", r"\$\$?([^$]*)\$\$?", r"\\\((.*)\\\)", r"\\\[(.*)\\\]"]
AROUND = re.compile("|".join(AROUND), re.DOTALL)
WORDS = re.compile(r"\\(?:text|textbf|mathrm|mathbf|mbox|operatorname)\s*\{([^{}]*)\}")

# ---- numbers ------------------------------------------------------------------------------------


def unwrap(text: str) -> str:
    """A text without the LaTeX around it."""
    ends = WRAPPING + SPACES
    text = WORDS.sub(r"\1", text.strip(ends)) if "\\" in text else text.strip(ends)
    while found := AROUND.fullmatch(text.rstrip(".")):
        text = next(part for part in found.groups() if part is not None).strip(ends)
    return text


def clean_answer(text: str) -> str:
    """The bare answer: no markdown, quotes, final dot, currency; numbers as Python reads them.

    "12 percent" is "12%", "US$1,200" and "1 200" are "1200", "−5" is "-5", "\\boxed{5}" is "5".
    Labels go through it too.
    """
    ends = WRAPPING + SPACES
    text = unwrap(text.translate(PLAIN))
    text = CURRENCY.sub("", text).strip(ends).rstrip("." + ends)
    if text.startswith("["):  # the commas of a list part its elements
        return text
    text = THOUSANDS.sub(lambda number: re.sub(r"\D", "", number.group()), text)
    number = re.sub(r"(?<=\d) ?(?:%|per ?cent)$", "%", CODE.sub("", text).strip(), flags=re.I)
    sign = "-" if number.startswith("-") else ""
    number = number.removeprefix("-").strip()
    number = number.replace(" ", "") if SPACED.fullmatch(number) else number
    return text if to_number(number) is None else sign + number.rstrip(".")


def to_number(text: str) -> float | None:
    """The finite number that `text` is, "%" dividing by 100, else None."""
    text = text.strip()
    try:
        value = float(text.removesuffix("%")) / (100 if text.endswith("%") else 1)
    except ValueError:
        return None
    return value if math.isfinite(value) and "_" not in text else None


def read_value(text: str) -> float | None:
    """The finite number that a text writes ("1,200", "12 %", "$3.0"), or None; 12 % is 12."""
    if len(text) > 400:  # no picture has such a number
        return None
    return to_number(text if text.isdecimal() else clean_answer(text).removesuffix("%"))


def close(wanted: float, given: float, tolerance: float) -> bool:
    """Whether a number is within `tolerance`, a share of the wanted one, and rounding, of it."""
    return wanted == given or abs(given - wanted) <= (tolerance + 1e-12) * abs(wanted) < math.inf


# ---- mathematics: a value is (number, unit) or, of several, (kind, values) ----------------------

MOST = 200  # characters that are read
SPELT = {r"\infty": "∞", r"^\circ": "°", r"^{\circ}": "°", r"\degree": "°", r"\pm": "±"}
SPELT |= {r"\pi": "π", r"\cup": "∪", r"\cdot": "*", r"\times": "*", "×": "*", "·": "*"}
SPELT |= {r"\div": "/", "÷": "/", r"\in ": "=", "∈": "=", r"\{": "⦃", r"\}": "⦄"}
SPELT |= {"{,}": ",", "²": "^2", "³": "^3", r"\%": "%", r"\$": "", r"\left": "", r"\right": ""}
SPELT |= {"√": r"\sqrt", r"\!": "", **dict.fromkeys([r"\,", r"\;", r"\:", r"\ ", "~"], " ")}
OPEN, CLOSE = "([{⦃", ")]}⦄"
SEVERAL = re.compile(r"\s*[,;]\s*(?:(?:and|or)\s)?\s*|\s+(?:and|or)\s+|\s*∪\s*")
RATIO = re.compile(r"\s*:\s*|\s+to\s+")
NAME = re.compile(r"\s*(\\?[A-Za-z]+(?:_\{?\w+\}?)?(?:\([a-z]\))?)\s*=(?!.*=)")
GROUP = r"\s*\{([^{}]*)\}"
# LaTeX as Python's arithmetic; again until nothing changes, since it is nested
RULES = (
    (r"\\[dtc]frac", r"\\frac"),
    (r"(\d)\s*\\frac" + GROUP + GROUP, r"(\1+(\2)/(\3))"),
    (r"\\frac" + GROUP + GROUP, r"((\1)/(\2))"),
    (r"\\frac\s*(\d)\s*(\d)", r"(\1/\2)"),
    (r"\\sqrt\s*\[(\d+)\]" + GROUP, r"((\2)**(1/\1))"),
    (r"\\sqrt" + GROUP, r"((\1)**0.5)"),
    (r"\\sqrt\s*(\d+(?:\.\d+)?|\([^()]*\))", r"((\1)**0.5)"),
    (r"(?:\^|\*\*)" + GROUP, r"**(\1)"),
    (r"\^", "**"),
    (r"(?<![\d.])(\d+) +(\d+) */ *(\d+)", r"(\1+\2/\3)"),  # 2 1/2
    (r"(\d)\s*x\s*10\b", r"\1*10"),
    (r"(\d)[eE]([+-]?\d+)\b", r"\1*10**(\2)"),
    (r"(?<![\d.])0+(?=\d)", ""),
    (r"([\d.π∞)])\s*([(π∞])", r"\1*\2"),
    (r"([π∞)])\s*(\d)", r"\1*\2"),
)
NUMBER = re.compile(r"([\d.()+*/π∞ -]*[\d.)π∞])\s*(.*)")
WORD = r"[a-zµ°%Ω]+(?:\^-?\d)?"
UNIT = re.compile(rf"{WORD}(?:[ */.]{{1,3}}{WORD}){{0,3}}", re.IGNORECASE)
# shorter ones than three letters must be these, or they are variables
SHORT = "m g s h l J W V A K N C F L cm mm km nm kg mg ml cl ft in hr kW Hz Pa GB MB yd oz lb mi ms"
SHORT = {*SHORT.split(), "°", "%", "°C", "°F"}
LONG = "metre m meter m centimetre cm centimeter cm millimeter mm kilometer km inche in inch in "
LONG += "feet ft foot ft gram g kilogram kg second s sec s minute min hour h hr h degree ° deg ° "
LONG = (LONG + "liter l litre l per /").split()
LONG = dict(zip(LONG[::2], LONG[1::2]))
OPERATORS = {ast.Add: operator.add, ast.Sub: operator.sub, ast.Mult: operator.mul}
OPERATORS |= {ast.Div: operator.truediv, ast.Pow: operator.pow}


def same_math(target: str, given: str, tolerance: float = 0.0) -> bool:
    """Whether a given answer is the wanted one: the same text, the same value by our rules at
    `tolerance`, or where these can't read both by math-verify. A unit counts where both have one.
    """
    texts = [unwrap(text.translate(PLAIN)).rstrip(". ") for text in (target, given)]
    wanted, said = ("".join(text.split()).casefold() for text in texts)
    if wanted == said or max(map(len, texts)) > MOST:
        return wanted == said != ""
    wanted, said = map(read_math, texts)
    if wanted is not None and said is not None:
        return agree(wanted, said, tolerance)
    return verified(*texts)


def read_math(text: str) -> tuple | None:
    """A value as our rules read it: (number, unit), or ("set", "()", "[)", ":" .., values)."""
    for written, plain in SPELT.items():
        text = text.replace(written, plain)
    text = text.strip()
    if named := NAME.match(text):  # x = 5
        text = text[named.end() :].strip()
    if "±" in text:
        return several("set", [text.replace("±", sign) for sign in "+-"])
    if text and text[0] in OPEN and len(parts(text, re.compile(r"(?<=[)\]}⦄])(?=.)"))) == 1:
        inner = parts(text[1:-1], SEVERAL)
        if len(inner) == 1:
            return read_math(inner[0])
        return several("set" if text[0] in "{⦃" else text[0] + text[-1], inner)
    text = THOUSANDS.sub(lambda number: number.group().replace(",", ""), text)
    if len(found := parts(text, SEVERAL)) > 1:
        names = {named and named[1] for named in map(NAME.match, found)}
        return several("set", found) if len(names) == 1 else None
    numbers = [read_number(text) for text in parts(text, RATIO)]
    if len(numbers) == 1 or None in numbers or not (last := numbers[-1][0]):
        return numbers[0] if len(numbers) == 1 else None
    return ":", [(number / last, unit) for number, unit in numbers]


def parts(text: str, separator: re.Pattern) -> list[str]:
    """A text, cut at the separators that are inside no brackets."""
    found, depth, start, i = [], 0, 0, 0
    while i < len(text):
        cut = separator.match(text, i) if depth == 0 else None
        if cut:
            found.append(text[start:i])
            start = cut.end()
        depth += (text[i] in OPEN) - (text[i] in CLOSE)
        i = max(i + 1, start)
    return [*found, text[start:]]


def several(kind: str, texts: list[str]) -> tuple | None:
    """The value of several texts, None where one of them can't be read."""
    values = [read_math(text) for text in texts]
    return None if None in values else (kind, values)


def read_number(text: str) -> tuple[float, str] | None:
    """(number, unit) of arithmetic with or without a unit: "1/2", "3\\sqrt{2}", "5 cm"."""
    text = clean_answer(text)
    before = None
    while text != before:
        before = text
        for pattern, plain in RULES:
            text = re.sub(pattern, plain, text)
    found = NUMBER.fullmatch(text)
    if not found or (unit := read_unit(found[2])) is None:
        return None
    try:
        value = calculate(ast.parse(found[1].replace("∞", "inf").strip(), mode="eval").body)
    except (SyntaxError, LookupError, ArithmeticError, TypeError, RecursionError):
        return None
    return (value, unit) if isinstance(value, float) and not math.isnan(value) else None


def calculate(node: ast.AST) -> float:
    """The value of a syntax tree of numbers, π, inf and + - * / **."""
    match node:
        case ast.Constant():
            return float(node.value)
        case ast.Name():
            return {"π": math.pi, "inf": math.inf}[node.id]
        case ast.UnaryOp(op=ast.USub() | ast.UAdd()):
            return calculate(node.operand) * (-1 if isinstance(node.op, ast.USub) else 1)
        case ast.BinOp():
            return OPERATORS[type(node.op)](calculate(node.left), calculate(node.right))
    raise TypeError(node)


def read_unit(text: str) -> str | None:
    """A unit, or what is counted, in short: "cm^2" for "square centimeters"; None for no unit."""
    text = re.sub(r"\*\*\(?(-?\d)\)?", r"^\1", text).rstrip(". ")
    if text and not UNIT.fullmatch(text):
        return None
    unit, power = "", ""
    for word, exponent in re.findall(r"([a-zµ°%Ω]+|/)(\^-?\d)?", text, re.IGNORECASE):
        if len(word) < 3 and word != "/" and word not in SHORT:
            return None
        word = word.casefold()
        if word in ("or", "and", "not", "but"):
            return None
        if word in ("square", "squared", "cubic", "cubed"):
            power = "^2" if word.startswith("sq") else "^3"
        else:
            word = word.removesuffix("s") if len(word) > 2 else word
            unit += LONG.get(word, word) + exponent
    return unit + power


def agree(wanted: tuple, given: tuple, tolerance: float) -> bool:
    """Whether two values of read_math are the same."""
    (a, first), (b, second) = wanted, given
    if isinstance(a, float) and isinstance(b, float):
        if "%" in (first, second) and first != second:  # 50 % is 0.5, and 50 where % is understood
            shares = [x / 100 if unit == "%" else x for x, unit in (wanted, given)]
            return close(*shares, tolerance) or close(a, b, tolerance)
        return close(a, b, tolerance) and (first == second or not first or not second)
    if a != b or len(first) != len(second):
        return False
    left = list(second)
    for value in first:  # those of a set are looked for in any order
        others = left if a == "set" else left[:1]
        same = next((other for other in others if agree(value, other, tolerance)), None)
        if same is None:
            return False
        left.remove(same)
    return True


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
