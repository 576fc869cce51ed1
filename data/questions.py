"""Questions about a drawn scene that have one right answer, and the description of a scene."""

from collections import Counter
from dataclasses import dataclass, field
from typing import NamedTuple

from world import ANIMALS, COLORS, HELD_OUT_PAIRS, KINDS, NUMBER_WORDS, SIGNS, article, plural

HELD_COLOR = dict(HELD_OUT_PAIRS)  # of each kind
HELD_DIGIT = {n: tuple(COLORS)[(3 * n + 2) % 10] for n in range(10)}
HELD_SIGN = {sign: tuple(COLORS)[(3 * i + 2) % 10] for i, sign in enumerate(SIGNS)}
DESCRIBE = "Describe the picture."
WEIGHTS = {  # scene sort -> question type -> how often it is asked, if the scene allows it
    "objects": {"kind": 2.4, "color": 2.2, "place": 2.6, "size": 1.5, "compare": 3, "count": 0.9,
                "yesno": 2.2},
    "counting": {"count": 6, "kind": 0.5, "color": 0.5, "place": 0.7, "compare": 4, "yesno": 1.3},
    "digit": {"digit": 5, "color": 1.5, "yesno": 1.3},
    "sign": {"read": 5, "color": 1.2, "place": 1, "yesno": 1.3},
}
PLACE_PHRASES = {"grass": "on grass", "sky": "in the sky", "water": "in water", "sand": "on sand",
                 "snow": "on snow", "room": "in a room"}
SIDE_TEXTS = ("Where is the {}, on the left or on the right?", "Is the {} on the left or right?",
              "On which side is the {}?")
GROUND_TEXTS = ("What is the background?", "What is behind the {}?", "What kind of place is this?")
COLOR_TEXTS = ("What color is the {}?", "Which color does the {} have?", "Tell me the color of the {}.")
COUNT_TEXTS = ("How many {} are there?", "How many {} do you see?", "Count the {}.")


class Item(NamedTuple):
    """One object, with its center (x, y) and extent in pixels of the finished picture."""

    kind: str
    color: str
    size: str
    x: float
    y: float
    extent: float

    @property
    def held(self):
        return HELD_COLOR.get(self.kind) == self.color


@dataclass
class Scene:
    sort: str  # "objects", "counting", "digit" or "sign"
    place: str
    items: list = field(default_factory=list)
    word: str = ""  # of the sign, or the digit's name
    color: str = ""  # of the board or the digit


class Question(NamedTuple):
    """A question. A yes-or-no question has no `text` and `answer`, but a text for each of the two answers."""

    kind: str
    text: str
    answer: str
    yes: str = ""
    no: str = ""


def named(items):
    """The items that are the only one of their kind, so that "the cat" is unambiguous."""
    counts = Counter(i.kind for i in items)
    return [i for i in items if counts[i.kind] == 1]


class Asker:
    """Asks about one scene. With `held`, for the held-out split, it prefers items in their held-out color.

    What it asks about and isn't there is one of `kinds` and `colors`.
    """

    def __init__(self, rng, scene, held, kinds=KINDS, colors=tuple(COLORS)):
        self.rng, self.scene, self.held, self.kinds, self.colors = rng, scene, held, kinds, colors
        self.items, self.named = scene.items, named(scene.items)

    def pick(self, options):
        options = list(options)
        return options[self.rng.integers(len(options))]

    def item(self, items):
        held = [i for i in items if i.held] if self.held else []
        return self.pick(held or items) if items else None

    def ask(self, kind):
        """A question of the type `kind`, or None if the scene has no clear answer to one."""
        found = getattr(self, kind)()
        return Question(kind, *found) if found else None

    def kind(self):
        """What something is, in a random wording that has a clear answer."""
        items, found = self.items, []
        colors = Counter(i.color for i in items)
        if len(items) == 1:
            found += [(t, items[0]) for t in ("What is in the picture?", "What do you see?", "What is this?")]
            if items[0].kind in ANIMALS:
                found += [(t, items[0]) for t in ("What animal is this?", "Which animal do you see?") * 2]
        elif self.scene.sort == "objects":
            found += [(f"What is the {i.color} thing?", i) for i in items if colors[i.color] == 1]
            for what, group in (("thing", items), ("animal", [i for i in items if i.kind in ANIMALS])):
                for side, sign in (("left", -1), ("right", 1)):
                    there = [i for i in group if sign * (i.x - 64) > -2]
                    if len(there) == 1 and sign * (there[0].x - 64) > 11 and len(items) > 1:
                        found.append((f"What {what} is on the {side}?", there[0]))
        elif len({i.kind for i in items}) == 1 and len(items) > 1:
            found += [("What are these?", items[0]), ("What things do you see?", items[0])]
        if self.held:
            found = [f for f in found if f[1].held] or found
        if not found:
            return None
        text, item = self.pick(found)
        return text, plural(item.kind) if "these" in text or "things" in text else item.kind

    def color(self):
        if self.scene.word:
            noun = "number" if self.scene.sort == "digit" else "sign"
            return self.pick(COLOR_TEXTS).format(noun), self.scene.color
        item = self.item(self.named)
        if item:
            return self.pick(COLOR_TEXTS).format(item.kind), item.color
        kinds = {(i.kind, i.color) for i in self.items}
        if len(kinds) == 1:
            return f"What color are the {plural(self.items[0].kind)}?", self.items[0].color
        return None

    def count(self):
        counts = Counter(i.kind for i in self.items)
        if self.scene.sort == "counting":
            item, chance = self.item(self.items), self.rng.random()
            if chance < 0.03:
                absent = self.pick([k for k in self.kinds if k not in counts])
                return self.pick(COUNT_TEXTS).format(plural(absent)), "zero"
            if chance < 0.15 and len(self.items) < 7:
                return self.pick(COUNT_TEXTS).format("things"), NUMBER_WORDS[len(self.items)]
            return self.pick(COUNT_TEXTS).format(plural(item.kind)), NUMBER_WORDS[counts[item.kind]]
        pairs = [k for k, n in counts.items() if n > 1]
        animals = sum(i.kind in ANIMALS for i in self.items)
        if pairs and self.rng.random() < 0.7:
            return self.pick(COUNT_TEXTS).format(plural(pairs[0])), NUMBER_WORDS[counts[pairs[0]]]
        # Few animals are common, so they are counted less often.
        if self.rng.random() < 0.35 and animals and animals + self.rng.integers(3) > 2:
            return self.pick(COUNT_TEXTS).format("animals"), NUMBER_WORDS[animals]
        if len(self.items) < 3 and self.rng.random() < 0.5:
            return None
        return self.pick(COUNT_TEXTS).format("things"), NUMBER_WORDS[len(self.items)]

    def place(self):
        item, found = self.item(self.named), []
        ground = self.pick(GROUND_TEXTS)
        if item or "{" not in ground:
            name = "sign" if self.scene.sort == "sign" else item.kind if item else ""
            if name or "{" not in ground:
                found.append((ground.format(name), self.scene.place))
        if item and abs(item.x - 64) > 12:
            found.append((self.pick(SIDE_TEXTS).format(item.kind), "left" if item.x < 64 else "right"))
        for side, sign in (("left", -1), ("right", 1)):
            for base in self.named:
                beside = [i for i in self.items if sign * (i.x - base.x) > 0]
                if len(beside) == 1 and abs(beside[0].x - base.x) > 24 and abs(beside[0].y - base.y) < 45:
                    if not self.held or beside[0].held or base.held:
                        where = "left of" if side == "left" else "right of"
                        found.append((f"What is {where} the {base.kind}?", beside[0].kind))
        return self.pick(found) if found else None

    def size(self):
        wanted = "big" if self.rng.random() < 0.57 else "small"  # there are fewer big items
        item = self.item([i for i in self.named if i.size == wanted])
        other = self.item([i for i in self.named if i.size != wanted])
        if not item:
            return None
        if other and self.rng.random() < 0.5:
            one, two = self.pick(((item.kind, other.kind), (other.kind, item.kind)))
            if self.rng.random() < 0.3:
                return f"Which is smaller, the {one} or the {two}?", (other if wanted == "big" else item).kind
            return f"Which is bigger, the {one} or the {two}?", (item if wanted == "big" else other).kind
        first, second = self.pick((("big", "small"), ("small", "big")))
        text = self.pick(("Is the {} {} or {}?", "What size is the {}, {} or {}?"))
        return text.format(item.kind, first, second), wanted

    def compare(self):
        counts = Counter(i.kind for i in self.items)
        kinds = list(counts)
        if len(kinds) < 2:
            return None
        one = self.item(self.items).kind
        others = [k for k in kinds if counts[k] != counts[one]]
        if not others:
            return None
        pair = (one, self.pick(others)) if self.rng.random() < 0.5 else (self.pick(others), one)
        word, best = self.pick((("more", max), ("fewer", min)))
        text = self.pick(("Are there {} {} or {}?", "Do you see {} {} or {}?"))
        return text.format(word, *map(plural, pair)), plural(best(pair, key=counts.get))

    def yesno(self):
        """One text whose answer is yes and a similar one whose answer is no; the caller picks one of them."""
        scene = self.scene
        if scene.sort == "digit":
            text, others = "Is this the number {}?", [w for w in NUMBER_WORDS[:10] if w != scene.word]
            return "", "", text.format(scene.word), text.format(self.pick(others))
        if scene.sort == "sign":
            text, others = "Does the sign say {}?", [w for w in SIGNS if w != scene.word]
            return "", "", text.format(scene.word), text.format(self.pick(others))
        form, item = self.rng.random(), self.item(self.items)
        kinds, pairs = {i.kind for i in self.items}, {(i.kind, i.color) for i in self.items}
        if form < 0.4:
            text = self.pick(("Is there {}?", "Can you see {}?", "Do you see {}?"))
            group = ANIMALS if self.rng.random() < 0.55 else self.kinds  # as often as they are drawn
            absent = self.pick([k for k in group if k not in kinds])
            return "", "", text.format(article(item.kind)), text.format(article(absent))
        if form < 0.75 or item not in self.named:
            text = self.pick(("Is there {}?", "Can you see {}?", "Do you see {}?"))
            near = [(k, c) for k in self.kinds for c in self.colors
                    if (k, c) not in pairs and (k in kinds) + (c in {i.color for i in self.items}) > 0
                    and (self.held or HELD_COLOR.get(k) != c)]  # in training they would always be absent
            same = [p for p in near if p[0] == item.kind]
            rare = [p for p in near if HELD_COLOR.get(p[0]) == p[1]] if self.rng.random() < 0.5 else []
            kind, color = self.pick(rare or (same if self.rng.random() < 0.75 else near))
            yes, no = article(f"{item.color} {item.kind}"), article(f"{color} {kind}")
            return "", "", text.format(yes), text.format(no)
        others = [c for c in self.colors
                  if c != item.color and (self.held or c != HELD_COLOR.get(item.kind))]
        text = f"Is the {item.kind} {{}}?"
        return "", "", text.format(item.color), text.format(self.pick(others))

    def digit(self):
        texts = "What number is shown?", "Which number is this?", "What number do you see?"
        return self.pick(texts), self.scene.word

    def read(self):
        texts = "What does the sign say?", "Read the sign.", "What word is on the sign?"
        return self.pick(texts), self.scene.word


def listed(parts):
    return " and ".join([", ".join(parts[:-1]), parts[-1]] if len(parts) > 1 else parts)


def describe(scene):
    """One sentence about all items; single objects are listed from left to right."""
    if scene.sort == "digit":
        return f"{article(scene.color).capitalize()} number {scene.word}."
    where = PLACE_PHRASES[scene.place]
    if scene.sort == "sign":
        return f"{article(scene.color).capitalize()} sign that says {scene.word}."
    if scene.sort == "objects":
        parts = [article(f"{i.size} {i.color} {i.kind}") for i in sorted(scene.items, key=lambda i: i.x)]
        return f"{listed(parts).capitalize()} {where}."
    parts = []
    for kind, n in Counter(i.kind for i in scene.items).most_common():
        colors = {i.color for i in scene.items if i.kind == kind}
        noun = f"{colors.pop()} " if len(colors) == 1 else ""
        parts.append(article(noun + kind) if n == 1 else f"{NUMBER_WORDS[n]} {noun}{plural(kind)}")
    return f"{listed(parts).capitalize()} {where}."
