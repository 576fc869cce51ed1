"""Stories of three or four sentences."""

import random

from sentences import FOOD, FRUIT
from talks import NAMES
from world import ANIMALS, COLORS, article

GIRLS = frozenset("Anna Clara Emma Grace Iris Kate Mia Olga Rosa Tina".split())
SPOTS = (
    "the river",
    "the forest",
    "the school",
    "the old house",
    "the park",
    "the farm",
    "the sea",
    "the garden",
)
TIMES = ("Every morning", "After school", "On Sunday", "In the evening", "On a hot day")
DOING = ("plays", "runs", "walks", "jumps", "sits")
TOYS = ("ball", "book", "hat", "box", "kite", "boat", "car", "cup")


def story(rng: random.Random) -> str:
    """A random story: about an animal, a gift or a walk."""
    return rng.choice((_animal, _gift, _walk))(rng)


def _one(rng: random.Random, color: str, kind: str) -> str:
    size = rng.choice(("small", "big", "young", "old"))
    return article(f"{size} {color} {kind}").capitalize()


def _animal(rng: random.Random) -> str:
    one, other = rng.sample(ANIMALS, 2)
    color, second = rng.sample(tuple(COLORS), 2)
    food, drink = rng.choice(FOOD[:4]), rng.choice(("milk", "water", "tea"))
    return " ".join(
        (
            f"{_one(rng, color, one)} lives near {rng.choice(SPOTS)}.",
            f"It likes {food} and {drink}.",
            f"{rng.choice(TIMES)} it {rng.choice(DOING)} with {article(f'{second} {other}')}.",
            rng.choice(
                (
                    f"At night the {one} sleeps under the tree.",
                    f"The {other} is its best friend.",
                    f"The {one} is {color} and the {other} is {second}.",
                )
            ),
        )
    )


def _gift(rng: random.Random) -> str:
    giver, taker = rng.sample(NAMES, 2)
    toy, color = rng.choice(TOYS), rng.choice(tuple(COLORS))
    she = "She" if giver in GIRLS else "He"
    return (
        f"{giver} has {article(f'{color} {toy}')}. {she} "
        f"{rng.choice(DOING)} with it near {rng.choice(SPOTS)}. "
        f"Then {giver} gives the {toy} to {taker}. Now {taker} has the {color} {toy}."
    )


def _walk(rng: random.Random) -> str:
    name, (one, other) = rng.choice(NAMES), rng.sample(ANIMALS, 2)
    color, second = rng.choices(tuple(COLORS), k=2)
    she, her = ("She", "her") if name in GIRLS else ("He", "him")
    return (
        f"{rng.choice(TIMES)} {name} walks to {rng.choice(SPOTS)}. "
        f"{she} sees {article(f'{color} {one}')} on the "
        f"left and {article(f'{second} {other}')} on the right. "
        f"{she} gives the {one} {article(rng.choice(FRUIT))}. "
        f"The {rng.choice((one, other))} looks at {her} and is happy."
    )
