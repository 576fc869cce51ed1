"""The texts of the speech: a fixed lexicon, sentences from templates, and questions with answers."""

import itertools
import random
import re

from world import ANIMALS, COLORS, KINDS, NUMBER_WORDS, PLACES, SHAPES, SIGNS, THINGS, article, plural

DAYS = ("monday", "tuesday", "wednesday", "thursday", "friday", "saturday", "sunday")
MORE_ANIMALS = ("cow", "sheep", "pig", "horse", "duck", "hen", "frog", "lion", "mouse", "spider", "bear")
FRUIT = ("apple", "banana", "lemon")
FOOD = ("bread", "rice", "cheese", "cake", "soup")
PEOPLE = ("mother", "father", "brother", "sister", "boy", "girl", "man", "woman", "baby", "friend", "teacher")
OBJECTS = ("book", "table", "chair", "door", "window", "bed", "ball", "cup", "box", "hat", "key", "flower")
OPPOSITES = (
    ("hot", "cold"), ("big", "small"), ("old", "young"), ("fast", "slow"), ("happy", "sad"),
    ("good", "bad"), ("wet", "dry"), ("full", "empty"), ("hard", "soft"), ("high", "low"),
    ("long", "short"), ("light", "dark"), ("clean", "dirty"), ("rich", "poor"), ("loud", "quiet"),
    ("early", "late"), ("up", "down"), ("in", "out"), ("day", "night"), ("left", "right"),
    ("black", "white"), ("thick", "thin"), ("near", "far"), ("yes", "no"), ("above", "below"),
    ("before", "after"), ("summer", "winter"), ("first", "last"), ("open", "closed"),
)
SOUNDS = {
    "cow": "moo", "cat": "meow", "dog": "woof", "duck": "quack", "lion": "roar", "snake": "hiss",
    "pig": "oink", "bird": "tweet", "sheep": "baa",
}
HOMES = {"fish": "water", "bird": "nest", "cow": "farm", "pig": "farm", "hen": "farm", "frog": "pond",
         "duck": "pond", "lion": "zoo", "bear": "forest", "spider": "web"}
LEGS = {
    "dog": "four", "cat": "four", "cow": "four", "horse": "four", "sheep": "four", "pig": "four",
    "mouse": "four", "lion": "four", "rabbit": "four", "frog": "four", "turtle": "four", "bear": "four",
    "bird": "two", "duck": "two", "hen": "two", "snake": "zero", "fish": "zero",
    "spider": "eight", "butterfly": "six",
}
TRUE_COLORS = {  # thing with its article -> color
    "the sky": "blue", "grass": "green", "snow": "white", "the sun": "yellow", "a banana": "yellow",
    "milk": "white", "the night": "black", "a leaf": "green", "a lemon": "yellow", "a frog": "green",
    "a pig": "pink", "sand": "yellow", "rice": "white", "a bear": "brown", "a tree": "green",
}
BY_SIZE = ("spider", "mouse", "rabbit", "dog", "sheep", "lion", "horse", "house")
MEMBERS = {  # for questions like "is a fish an animal"
    "animal": ANIMALS + MORE_ANIMALS, "color": ("red", "green", "blue", "yellow", "purple", "brown"),
    "number": NUMBER_WORDS[:13], "day": DAYS, "fruit": FRUIT, "shape": SHAPES,
    "person": ("mother", "teacher", "boy", "girl", "woman", "man"),
}
FUNCTION_WORDS = """
the a an is are on in of and to what who where how many much which there it this that my your his her we
they he she i you not with under behind next from or more less than plus minus do does can has have had was
comes come say says said after before tell me opposite word sign picture describe color animal shape number
spell make sound legs eyes wings wheels fingers sides week days fruit person live lives today tomorrow
yesterday read count look at now here very some all two
""".split()
VERBS = """
eats sleeps runs sees likes drinks plays sits walks swims flies sings jumps goes wants finds gives opens
helps fly swim drink like see
""".split()
NOUNS = """
sun rain star river leaf garden school city farm nest pond forest web music hand morning night things bigger
smaller bicycle please
""".split()

# Without context "to" can't be told from "two", so it is not in random strings.
NOT_FREE = frozenset({"to"})
LEXICON = tuple(sorted({
    *COLORS, *ANIMALS, *SHAPES, *THINGS, *map(plural, KINDS), *PLACES, *SIGNS, *NUMBER_WORDS, *DAYS,
    *MORE_ANIMALS, *FRUIT, *FOOD, *PEOPLE, *OBJECTS, *itertools.chain(*OPPOSITES), *SOUNDS.values(),
    *FUNCTION_WORDS, *VERBS, *NOUNS,
}))

SLOTS = {
    "color": tuple(COLORS), "animal": ANIMALS + MORE_ANIMALS, "animals": tuple(map(plural, ANIMALS)),
    "kind": KINDS, "kinds": tuple(map(plural, KINDS)), "shape": SHAPES, "thing": THINGS + OBJECTS,
    "place": PLACES + ("garden", "park", "zoo", "farm", "forest", "river"),
    "sign": SIGNS, "n": NUMBER_WORDS[2:], "few": NUMBER_WORDS[2:10], "day": DAYS,
    "food": FOOD + ("milk", "tea"), "fruit": FRUIT, "person": PEOPLE,
    "my": ("my", "your", "his", "her", "the", "this"),
    "adj": ("hot", "cold", "big", "small", "old", "young", "happy", "sad", "good", "wet", "dry", "clean",
            "dirty", "quiet", "loud", "fast", "slow", "poor", "rich"),
    "feel": ("happy", "sad", "cold", "wet", "late", "early", "hot", "quiet", "here", "dirty"),
    "does": ("eats", "sleeps", "runs", "plays", "sits", "walks", "jumps", "sings", "drinks"),
    "near": ("under", "near", "behind", "on", "in", "above", "below", "next to"), "be": ("is", "was"),
    "very": ("very", "not", "now"), "pro": ("he", "she"), "they": ("we", "they", "you", "i"),
    "when": ("today", "tomorrow", "now", "after school", "in the morning", "at night", "on sunday",
             "on friday"),
    "goes": ("goes", "runs", "walks"), "takes": ("wants", "finds", "sees", "has", "likes", "had"),
    "town": ("school", "park", "zoo", "shop", "bank", "cafe", "farm", "city", "river", "house", "garden"),
    "weather": ("sun", "rain", "wind", "snow"), "side": ("left", "right"), "op": ("plus", "minus"),
}
TEMPLATES = """
the {color} {animal} {does} {near} the {thing}|the {animal} {does} in the {place}
there is a {color} {kind}|there are {few} {kinds} in the {place}|there are {few} {color} {kinds}
{my} {person} likes {food} and {food}|{my} {person} {takes} a {color} {thing}
{my} {person} {goes} to the {town}|{my} {person} {goes} to the {town} {when}
the {color} {shape} is {near} the {shape}|what color is the {kind}|what color is the {kind} in the {place}
how many {kinds} are there|how many {color} {kinds} are in the picture|where is the {color} {kind}
is there a {color} {kind} in the picture|what is {near} the {color} {kind}|the sign says {sign}
the sign in the {place} says {sign}|what does the {color} sign say|read the word on the {thing}
it is very {adj} {when}|the {weather} comes from the {side}|the {adj} {person} sits at the table
a {color} {animal} and a {color} {animal}|the {animal} is {adj} and the {animal} is {adj}
they have {n} {kinds}|we see {few} {animals} in the {place}|{they} have some {food} and a {fruit}
{they} live near the {town}|{pro} lives in the {color} house
this {thing} is {color} and that {thing} is {color}|that is {my} {color} {thing}
{my} {thing} is {near} the {thing}|who has the {color} {thing}|who {takes} the {adj} {animal}
where does {my} {person} live|today is {day}|tomorrow is {day} and yesterday was {day}
on {day} {pro} {goes} to the {town}|look at the {color} {kind}|look at the {adj} {animal} in the {place}
please tell me the color of the {kind}|please open the {color} {thing}
please read the book to {my} {person}|count the {color} {kinds} in the picture
the {person} gives the {animal} some {food}|{my} {person} gives {food} to the {animal}
the {person} finds a {thing} in the {place}|the {person} opens the {thing}
the {animal} swims in the {adj} water|the {color} bird flies above the {town}
a bird sings in the {color} tree|the {color} {kind} is on the {side}|the {kind} on the {side} is {color}
a {kind} is on the {side} of the {kind}|which animal is in the {place}|which shape is {color}
is the {kind} {color} or {color}|the {person} is {very} {feel}|{my} {person} {be} {feel} {when}
all the {animals} are {color}|the {animal} has {few} legs and two eyes|the {adj} {animal} sleeps at night
{n} {op} {n}|{n} and {n} are more than {few}|the number is {n} and not {n}|{n} {kinds} and {n} {kinds}
a {color} {shape} in a {color} box|a {adj} {animal} in the {place} at night
the {person} helps {my} {person} {when}|can you see the {color} {kind}
can the {animal} swim in the {place}|do you like the {color} {thing}|does {my} {person} live in the city
{my} friend plays music {when}|the {color} star is behind the moon|here is a {thing} from {my} {person}
the {person} and the {person} drink tea|she said the {thing} is {adj}|he said {my} {animal} is {adj}
{color} {color} and {color}|the {fruit} is {color} and the {food} is {adj}
the bicycle has two wheels and a {color} box|describe the picture|describe the {color} picture
""".strip().replace("\n", "|").split("|")
TEMPLATES = list(dict.fromkeys(TEMPLATES))


def template_sentence(rng: random.Random) -> tuple[str, int]:
    """A random sentence and its number of slots. Slots never get the same word twice in a sentence."""
    template = rng.choice(TEMPLATES)
    used: set[str] = set()

    def fill(match: re.Match) -> str:
        word = rng.choice([w for w in SLOTS[match[1]] if w not in used])
        used.add(word)
        return word

    text, slots = re.subn(r"\{(\w+)\}", fill, template)
    return re.sub(r"\ba (?=[aeiou])", "an ", text), slots


def free_strings(count: int, rng: random.Random) -> list[str]:
    """Strings of 3 to 7 words, taken in order from a shuffled lexicon: all words are equally frequent."""
    words = [word for word in LEXICON if word not in NOT_FREE]
    deck: list[str] = []
    strings: dict[str, None] = {}
    while len(strings) < count:
        size = rng.randint(3, 7)
        if len(deck) < size:
            deck += rng.sample(words, len(words))
        strings[" ".join(deck[:size])] = None
        del deck[:size]
    return list(strings)


def sums() -> dict[tuple, list[tuple[str, str]]]:
    """(sign, a, b) -> (question, answer) pairs, for all numbers and results from 0 to 20.

    3 + 4 and 4 + 3 have the same key.
    """
    pairs: dict[tuple, list[tuple[str, str]]] = {}
    for a, b in itertools.product(range(21), repeat=2):
        for sign, value in (("plus", a + b), ("minus", a - b)):
            if 0 <= value <= 20:
                pair = (sign, *(sorted((a, b)) if sign == "plus" else (a, b)))
                text = f"{NUMBER_WORDS[a]} {sign} {NUMBER_WORDS[b]}"
                for start in ("what is ", "how much is ", ""):
                    pairs.setdefault(pair, []).append((start + text, NUMBER_WORDS[value]))
    return pairs


def facts(rng: random.Random) -> list[tuple[list[str], str]]:
    """All other questions: (wordings of one question, answer)."""
    out: list[tuple[list[str], str]] = []
    for one, other in itertools.chain(OPPOSITES, (pair[::-1] for pair in OPPOSITES)):
        out.append(([f"what is the opposite of {one}", f"tell me the opposite of {one}",
                     f"which word is the opposite of {one}"], other))
    for thing, color in TRUE_COLORS.items():
        out.append(([f"what color is {thing}", f"tell me the color of {thing}", f"which color has {thing}"],
                    color))
    for names, kind in ((NUMBER_WORDS, "number"), (DAYS, "day")):
        for one, following in itertools.pairwise(names + names[:1] if kind == "day" else names):
            for where, given, answer in (("after", one, following), ("before", following, one)):
                out.append(([f"what comes {where} {given}", f"which {kind} comes {where} {given}",
                             f"what {kind} is {where} {given}"], answer))
            if kind == "day":
                today = f"today is {one}"
                out.append(([f"{today} what day is tomorrow", f"{today} which day comes tomorrow"],
                            following))
    for animal, sound in SOUNDS.items():
        out.append(([f"what does {article(animal)} say", f"what sound does {article(animal)} make"], sound))
        out.append(([f"which animal says {sound}", f"who says {sound}", f"what animal says {sound}"], animal))
    for animal, count in LEGS.items():
        one = article(animal)
        out.append(([f"how many legs does {one} have", f"how many legs has {one}"], count))
    for animal, home in HOMES.items():
        out.append(([f"where does {article(animal)} live", f"tell me where {article(animal)} lives"], home))
    out += [(["how many wings does a bird have", "how many wings has a bird"], "two"),
            (["how many wheels does a car have", "how many wheels has a car"], "four"),
            (["how many wheels does a bicycle have", "how many wheels has a bicycle"], "two"),
            (["how many sides does a triangle have", "how many sides has a triangle"], "three"),
            (["how many sides does a square have", "how many sides has a square"], "four"),
            (["how many fingers are on a hand", "how many fingers has a hand"], "five"),
            (["how many days are in a week", "how many days has a week"], "seven"),
            (["can a bird fly"], "yes"), (["can a fish fly"], "no"), (["can a fish swim"], "yes"),
            (["can a house swim"], "no"), (["can a butterfly fly"], "yes"), (["can a horse fly"], "no")]
    for small, big in itertools.combinations(map(article, BY_SIZE), 2):
        big_noun, small_noun = big.split()[1], small.split()[1]
        out.append(([f"what is bigger {small} or {big}", f"which is bigger {big} or {small}"], big_noun))
        out.append(([f"what is smaller {big} or {small}"], small_noun))
    for word in KINDS + SIGNS + tuple(COLORS):
        out.append(([f"how do you spell {word}", f"spell the word {word}", f"please spell {word}"],
                    " ".join(word)))
    plain = {"color", "number", "day"}  # spoken without an article
    for kind, members in MEMBERS.items():
        others = [(k, word) for k, words in MEMBERS.items() if k != kind for word in words]
        for word, (other, stranger) in zip(members, rng.sample(others, len(members)), strict=True):
            for name, item, answer in ((kind, word, "yes"), (other, stranger, "no")):
                asked = item if name in plain else article(item)
                out.append(([f"is {asked} {article(kind)}"], answer))
    return out
