"""The words of the small world that the shipped text, pictures and speech are about.

All scripts in this folder share them, so that the audio encoder, the vision encoder and the Thinker learn
the same words.
"""

COLORS = {  # name -> RGB, which is varied a little in each drawing
    "red": (214, 40, 40), "green": (46, 160, 67), "blue": (40, 90, 220), "yellow": (245, 210, 40),
    "orange": (245, 135, 30), "purple": (140, 60, 180), "pink": (250, 150, 190), "brown": (125, 80, 45),
    "black": (25, 25, 28), "white": (245, 245, 245),
}
ANIMALS = ("cat", "dog", "fish", "bird", "rabbit", "turtle", "snake", "butterfly")
SHAPES = ("circle", "square", "triangle", "star", "heart")
THINGS = ("tree", "house", "car", "boat")
KINDS = ANIMALS + SHAPES + THINGS
PLACES = ("grass", "sky", "water", "sand", "snow", "room")  # backgrounds
SIGNS = (  # words to read in pictures
    "stop", "open", "exit", "milk", "tea", "shop", "bus", "park", "zoo", "help",
    "bank", "cafe", "sale", "gold", "moon", "lion", "jump", "wind", "fire", "kite",
)
NUMBER_WORDS = (
    "zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve",
    "thirteen", "fourteen", "fifteen", "sixteen", "seventeen", "eighteen", "nineteen", "twenty",
)

# Combinations of kind and color. Every held-out picture of objects has at least one, no training picture has
# any. There is one color for each kind, so training still has every kind and every color.
HELD_OUT_PAIRS = frozenset(
    (kind, tuple(COLORS)[(3 * i + 1) % len(COLORS)]) for i, kind in enumerate(KINDS)
)


def plural(noun: str) -> str:
    """The plural of a noun: dog -> dogs, fish -> fish, butterfly -> butterflies."""
    if noun == "fish":
        return noun
    if noun.endswith("y") and noun[-2] not in "aeiou":
        return noun[:-1] + "ies"
    return noun + ("es" if noun.endswith(("s", "x", "ch", "sh")) else "s")


def article(noun: str) -> str:
    """The noun with its article: "a cat", "an orange cat"."""
    return ("an " if noun[0] in "aeiou" else "a ") + noun
