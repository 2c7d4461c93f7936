"""A bar chart of 32 x 32 pixels: drawn, asked about, explained.

Four bars without labels: a bar's name is its colour, its value (1 to 9) its height. Questions end
on the name they ask about, without a question mark, because a tiny model learns best from that.
Left out: axes with numbers, legends, any text inside the picture (no room in 32 x 32 pixels).
"""

import zlib

from PIL import Image

SIDE = 32  # pixels
UNIT = 3  # pixels of height for a value of 1
COLOURS = {
    "black": (0, 0, 0),
    "red": (220, 20, 30),
    "green": (20, 150, 40),
    "blue": (30, 60, 230),
    "yellow": (245, 225, 30),
    "orange": (255, 140, 0),
    "purple": (150, 30, 200),
    "cyan": (0, 205, 220),
}
FLOOR_COLOUR = (205, 205, 205)

# kind: (its goal, a colour); only `ood` asks the kind about that colour, or has it as the answer of
# max and min. Classification names every colour: nothing can be held out of it.
TABLE = {
    "value": ("find value", "purple"),
    "max": ("find highest", "orange"),
    "min": ("find lowest", "cyan"),
    "difference": ("find difference", "green"),
    "sum": ("find sum", "red"),
    "comparison": ("compare", "blue"),
    "detection": ("find box", "yellow"),
    "classification": ("find colours", None),
}
KINDS = tuple(TABLE)[:6]  # of the task "chart"
GOALS = {kind: goal for kind, (goal, _) in TABLE.items()}
HELD_OUT = {kind: colour for kind, (_, colour) in TABLE.items()}


def sample_chart(rng, homes, count=4) -> tuple[dict, dict]:
    """({colour: value}, {colour: box}) of a random chart at home in `homes`, from left to right.

    All colours and values differ. A box is (left, top, right, bottom) in pixels, right and bottom
    exclusive.
    """
    names = list(COLOURS)
    while True:
        colours = rng.permutation(len(names))[:count].tolist()
        values = rng.permutation(9)[:count].tolist()
        bars = [(names[c], v + 1) for c, v in zip(colours, values)]
        if zlib.crc32(repr(bars).encode()) % 10 in homes:
            break
    dx, dy = rng.integers(-1, 2, 2).tolist()  # jitter
    # with four bars each stays inside one column of 8 pixel patches, jitter included
    slot, floor = SIDE // count, SIDE - 3 + dy
    boxes = {}
    for left, (colour, value) in zip(range(1 + dx, SIDE, slot), bars):
        boxes[colour] = (left, floor - UNIT * value, left + slot - 2, floor)
    return dict(bars), boxes


def draw(boxes: dict[str, tuple]) -> Image.Image:
    """The chart as a 32 x 32 RGB image: bars on a grey line, on white."""
    image = Image.new("RGB", (SIDE, SIDE), "white")
    for _, _, _, floor in boxes.values():
        image.paste(FLOOR_COLOUR, (0, floor, SIDE, floor + 1))
    for colour, box in boxes.items():
        image.paste(COLOURS[colour], box)
    return image


def pose(rng, kind: str, value: dict, boxes: dict) -> tuple[str, list[str], str]:
    """A question of `kind`: (question, names of the bars it needs in the order stated, answer)."""
    names = list(value)
    a, b = (names[i] for i in rng.permutation(len(names))[:2])
    if kind == "value":
        return f"What is the value of {a}", [a], str(value[a])
    if kind in ("max", "min"):
        answer = (max if kind == "max" else min)(names, key=value.get)
        return f"Which bar is {GOALS[kind].split()[-1]}", names, answer
    if kind == "difference":
        a, b = sorted((a, b), key=value.get, reverse=True)
        return f"How much higher is {a} than {b}", [a, b], str(value[a] - value[b])
    if kind == "sum":
        return f"What is the sum of {a} and {b}", [a, b], str(value[a] + value[b])
    if kind == "comparison":
        return f"Is {a} higher than {b}", [a, b], "yes" if value[a] > value[b] else "no"
    if kind == "detection":
        return f"What is the box of {a}", [a], ",".join(map(str, boxes[a]))
    return "Which colours are there", names, ", ".join(names)


def sample_item(rng, kind, homes, count=4, unseen=False):
    """(image, {colour: value}, question, names, answer), of HELD_OUT if `unseen`, else never."""
    while True:
        value, boxes = sample_chart(rng, homes, count)
        question, names, answer = pose(rng, kind, value, boxes)
        asked = [answer] if kind in ("max", "min") else names
        if (HELD_OUT[kind] in asked) == unseen:
            return draw(boxes), value, question, names, answer


def conclude(kind: str, stated: list, answer: str, so: str = "so") -> str:
    """One clause: what is done with the stated facts, [(name, value)], to reach the answer."""
    values = [value for _, value in stated]
    goal = GOALS[kind].split()[-1]
    if kind in ("max", "min"):
        return f"{goal} is {dict(stated)[answer]} {so} {answer}"
    if kind == "difference":
        return f"{values[0]} - {values[1]} = {answer}"
    if kind == "sum":
        return f"{values[0]} + {values[1]} = {answer}"
    if kind == "comparison":
        relation = "more" if answer == "yes" else "less"
        return f"{values[0]} is {relation} than {values[1]} {so} {answer}"
    return f"{goal} {'are' if kind == 'classification' else 'is'} {answer}"


def write_trace(kind: str, stated: list, answer: str, concluded: list | None = None) -> str:
    """The reference thinking without its answer line, in DyME's Goal / Observation / Reasoning.

    concluded: what its Reasoning goes on with, where that isn't what is stated.
    """
    observed = ", ".join(f"{name} {value}" for name, value in stated)
    reasoning = conclude(kind, concluded or stated, answer)
    return f"Goal: {GOALS[kind]}.\nObservation: {observed}.\nReasoning: {reasoning}."


def corrupt(rng, stated: list, noise: float) -> list:
    """Each stated value replaced by another one of 1 to 9 with probability `noise`.

    What is wrong at noise 0.25 is wrong at 0.5 too, and in the same way: levels can be compared.
    """
    noisy = []
    for name, value in stated:
        chance, step = rng.random(), int(rng.integers(1, 9))
        wrong = (int(value) - 1 + step) % 9 + 1
        noisy.append((name, str(wrong) if chance < noise else value))
    return noisy
