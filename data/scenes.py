"""Scenes described in words, with the same questions that pictures get."""

import random
from typing import NamedTuple

from questions import DESCRIBE, HELD_COLOR, WEIGHTS, Asker, Item, Scene, describe
from world import COLORS, KINDS, PLACES, SIGNS, article

ON = {
    "grass": "on grass",
    "sky": "in the sky",
    "water": "in water",
    "sand": "on sand",
    "snow": "on snow",
    "room": "in a room",
}
SPOTS = {1: (64,), 2: (32, 96), 3: (24, 64, 104)}
SIDES = {24: "on the left", 32: "on the left", 64: "in the middle", 96: "on the right", 104: "on the right"}
Conversation = list[tuple[str, str]]


class Dice(random.Random):
    """Python's random generator with the one method of NumPy's generator that `Asker` needs."""

    def integers(self, end: int) -> int:
        return self.randrange(end)


def _color(rng: Dice, kind: str, held: bool) -> str:
    """The kind's held-out color if `held`, else any other color."""
    return HELD_COLOR[kind] if held else rng.choice([c for c in COLORS if c != HELD_COLOR[kind]])


def draw(rng: Dice, held: bool) -> Scene:
    """A random scene: a sign, a few different objects, or many objects of one or two kinds."""
    place, few = rng.choice(PLACES), rng.random() < 0.7
    if rng.random() < 0.06:
        return Scene("sign", place, word=rng.choice(SIGNS), color=rng.choice(tuple(COLORS)))
    if few:
        spots = SPOTS[rng.choices((1, 2, 3), (15, 50, 35))[0]]
        kinds = rng.sample(KINDS, len(spots))
        items = []
        for i, (kind, x) in enumerate(zip(kinds, spots, strict=True)):
            color = _color(rng, kind, held and (i == 0 or rng.random() < 0.5))
            items.append(Item(kind, color, rng.choice(("big", "small")), x, 60, 30))
        return Scene("objects", place, items)
    counts, items = (rng.randint(1, 6), rng.choice((0, 1, 2, 3, 4))), []
    for kind, n in zip(rng.sample(KINDS, 2), counts, strict=True):
        items += [Item(kind, _color(rng, kind, held), "small", 64, 60, 30)] * n
    return Scene("counting", place, items)


def in_words(rng: Dice, scene: Scene) -> str:
    """A text about the scene that answers all questions about it."""
    if scene.sort == "sign":
        return f"There is {article(scene.color)} sign {ON[scene.place]}. The sign says {scene.word}."
    if scene.sort == "counting":
        return describe(scene)
    parts = [f"{article(f'{i.size} {i.color} {i.kind}')} {SIDES[i.x]}" for i in scene.items]
    row = " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)
    style = rng.random()
    if style < 0.4:
        return f"There is {row}, {ON[scene.place]}."
    if style < 0.7:
        return f"{row[0].upper()}{row[1:]}, {ON[scene.place]}."
    return (
        " ".join(f"{p[0].upper()}{p[1:]}." for p in parts) + f" They are {ON[scene.place]}."
        if len(parts) > 1
        else f"There is {row}. It is {ON[scene.place]}."
    )


def _clear(asked, scene: Scene) -> bool:
    """Whether the words tell the answer: those of a counting scene say nothing about sizes and sides."""
    if scene.sort == "counting":
        return asked.kind != "size" and (asked.kind != "place" or asked.answer in PLACES)
    return True


class Balance:
    """Alternates between yes and no for each wording."""

    def __init__(self):
        self.last: dict[tuple, bool] = {}

    def settle(self, asked) -> tuple[str, str]:
        if asked.kind != "yesno":
            return asked.text, asked.answer
        wording = tuple(asked.yes.split()[:2]), len(asked.yes.split())
        self.last[wording] = not self.last.get(wording, len(self.last) % 2 == 0)
        return (asked.yes, "yes") if self.last[wording] else (asked.no, "no")


class SceneQuestions(NamedTuple):
    text: str
    turns: list[tuple[str, str]]  # questions and answers


def ask(rng: Dice, held: bool, balance: Balance, count: int) -> SceneQuestions:
    """A random scene in words, with up to `count` questions of different types."""
    while True:
        scene = draw(rng, held)
        asker, weights, found = Asker(rng, scene, held), dict(WEIGHTS[scene.sort]), []
        while weights and len(found) < count:
            name = rng.choices(list(weights), list(weights.values()))[0]
            del weights[name]
            asked = asker.ask(name)
            if asked and _clear(asked, scene):
                found.append(balance.settle(asked))
        if found:
            if rng.random() < 0.06 and scene.sort != "sign":
                found = [(DESCRIBE, describe(scene))] + found[: count - 1]
            return SceneQuestions(in_words(rng, scene), found)


def conversation(rng: Dice, held: bool, balance: Balance, count: int = 1) -> Conversation:
    """A conversation: the scene with the first question, then one turn for each other question."""
    scene, turns = ask(rng, held, balance, count)
    lead = rng.choice(("", "", "Picture: "))
    out: Conversation = []
    for i, (question, answer) in enumerate(turns):
        text = question
        if i == 0:
            text = f"{question} {lead}{scene}" if lead and rng.random() < 0.3 else f"{lead}{scene} {question}"
        out += [("user", text), ("assistant", answer)]
    return out


def caption(rng: Dice) -> str:
    return describe(draw(rng, False))
