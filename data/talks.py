"""Conversations about numbers and words: sums, counting, ordering, spelling, lists, small talk.

Each function takes a random generator and `held`: whether the conversation is for the held-out split. A hash
decides which numbers, words and lists are held out; training never has them.
"""

import random
from zlib import crc32

from sentences import FRUIT, LEXICON
from world import ANIMALS, COLORS, KINDS, NUMBER_WORDS, SIGNS, plural

Conversation = list[tuple[str, str]]
WORDS = [w for w in LEXICON if 3 <= len(w) <= 7]
SPELLED_ALOUD = {*KINDS, *SIGNS, *COLORS}  # asked in the speech set, so never held out
NAMES = "Anna Ben Clara David Emma Felix Grace Henry Iris Jack Kate Leo Mia Noah Olga Paul Rosa Tina".split()
HELD_NAMES = {"Grace", "Leo", "Rosa"}
SHORT = ("You are a friendly helper. Answer in one word.", "Answer in one word.", "Give a short answer.")
FULL = ("You are a friendly helper.", "Answer in a full sentence.")


def is_held_out(key: str, share: int = 6) -> bool:
    """Whether `key` is held out, by its hash: one in `share` is."""
    return crc32(key.encode()) % share == 0


def is_held_out_sum(sign: str, a: int, b: int) -> bool:
    """Whether a sum is held out, in both orders of its numbers."""
    return is_held_out(f"{sign} {min(a, b)} {max(a, b)}")


def is_small(sign: str, a: int, b: int) -> bool:
    """Whether all numbers are at most 20. Such sums may be in words, and the speech set asks some of them."""
    return max(a, b) <= 20 and (a + b if sign == "+" else a - b) <= 20


def _say(question: str, answer: str) -> Conversation:
    return [("user", question), ("assistant", answer)]


def _words(rng: random.Random, count: int, held: bool) -> list[str]:
    while True:
        words = rng.sample(WORDS, count)
        if is_held_out(" ".join(sorted(words))) == held:
            return words


def sums(rng: random.Random, held: bool, small: bool | None = None) -> Conversation:
    """A sum or difference of numbers up to 50. An answer in digits mostly repeats the whole sum."""
    while True:
        top = 50 if rng.random() < 0.65 else 14
        a, b, sign = rng.randint(0, top), rng.randint(0, top), rng.choice("+++--")
        if sign == "-":
            a, b = max(a, b), min(a, b)
        if a + b < 100 and is_held_out_sum(sign, a, b) == held and small in (None, is_small(sign, a, b)):
            break
    value = a + b if sign == "+" else a - b
    if is_small(sign, a, b) and rng.random() < 0.5:
        text = f"{NUMBER_WORDS[a]} {'plus' if sign == '+' else 'minus'} {NUMBER_WORDS[b]}"
        return _say(rng.choice(("What is {}?", "How much is {}?")).format(text), NUMBER_WORDS[value])
    text = f"{a} {sign} {b}"
    question = rng.choice(("What is {}?", "How much is {}?", "Compute {}.", "{} = ?")).format(text)
    if rng.random() < 0.2:
        return [("system", rng.choice(SHORT)), *_say(question, str(value))]
    return _say(question, f"{text} = {value}.")


def counting(rng: random.Random, held: bool) -> Conversation:
    """Count up or down, or count words."""
    if rng.random() < 0.5:
        one, other = _words(rng, 2, held)
        row = [one] * rng.randint(1, 4) + [other] * rng.randint(1, 3)
        rng.shuffle(row)
        form = rng.choice(
            ("How many times does the word {} occur in: {}?", "How often do you see {} in: {}?")
        )
        return _say(form.format(one, " ".join(row)), NUMBER_WORDS[row.count(one)])
    if rng.random() < 0.25:
        words = _words(rng, rng.randint(2, 6), held)
        return _say(f"How many words are there in: {' '.join(words)}?", NUMBER_WORDS[len(words)])
    while True:
        start, length = rng.randint(0, 60), rng.randint(3, 8)
        if is_held_out(f"count {start} {length}") == held:
            break
    numbers = list(range(start, start + length))
    if rng.random() < 0.3:
        numbers.reverse()
    form = rng.choice(("Count from {} to {}.", "Say the numbers from {} to {}."))
    return _say(form.format(numbers[0], numbers[-1]), " ".join(map(str, numbers)) + ".")


def ordering(rng: random.Random, held: bool) -> Conversation:
    """Sort numbers or words, or compare two numbers."""
    sort, count = rng.random(), rng.choice((3, 3, 4))
    if sort < 0.35:
        while True:
            a, b = rng.sample(range(100), 2)
            if is_held_out(f"compare {min(a, b)} {max(a, b)}") == held:
                break
        word, best = rng.choice((("bigger", max), ("smaller", min)))
        other = a + b - best(a, b)
        return _say(f"Which is {word}, {a} or {b}?", f"{best(a, b)} is {word} than {other}.")
    if sort < 0.7:
        while True:
            numbers = rng.sample(range(50), count)
            if is_held_out(f"sort {sorted(numbers)}") == held:
                break
        down = rng.random() < 0.3
        form = (
            "Sort the numbers, the biggest first: {}."
            if down
            else rng.choice(("Sort the numbers: {}.", "Put the numbers in order: {}."))
        )
        return _say(
            form.format(" ".join(map(str, numbers))), " ".join(map(str, sorted(numbers, reverse=down))) + "."
        )
    words = _words(rng, count, held)
    form = rng.choice(("Sort the words by the alphabet: {}.", "Put the words in alphabetical order: {}."))
    return _say(form.format(" ".join(words)), " ".join(sorted(words)) + ".")


def may_spell(word: str, held: bool) -> bool:
    return (is_held_out(f"spell {word}") and word not in SPELLED_ALOUD) == held


def spelling(rng: random.Random, held: bool) -> Conversation:
    word = rng.choice([w for w in WORDS if may_spell(w, held)])
    form = rng.choice(
        ("Spell the word {}.", "How do you spell {}?", "Please spell {}.", "Say the letters of {}.")
    )
    if rng.random() < 0.2:
        return _say(f"Which word is this: {'-'.join(word)}?", word)
    return _say(form.format(word), "-".join(word))


def lists(rng: random.Random, held: bool) -> Conversation:
    """Repeat, reverse or pick words of a list."""
    words = _words(rng, rng.randint(2, 5), held)
    row, times = " ".join(words), rng.randint(2, 4)
    question, answer = rng.choice(
        (
            (f"Repeat: {row}", row),
            (f"Copy these words: {row}", row),
            (f"What is the first word of: {row}?", words[0]),
            (f"What is the last word of: {row}?", words[-1]),
            (f"What is the second word of: {row}?", words[1]),
            (f"Reverse the list: {row}", " ".join(words[::-1])),
            (f"Say backwards: {row}", " ".join(words[::-1])),
            (f"Write with commas: {row}", ", ".join(words)),
            (
                f"Say {words[0]} {NUMBER_WORDS[times]} times after {words[1]}.",
                " ".join([words[1]] + [words[0]] * times),
            ),
        )
    )
    return _say(question, answer)


def small_talk(rng: random.Random, held: bool) -> Conversation:
    """Two or three turns; some ask about what was said earlier."""
    name = rng.choice([n for n in NAMES if (n in HELD_NAMES) == held])
    hello = rng.choice(("Hello", "Hi", "Good morning", "Good evening"))
    animal, color = plural(rng.choice(ANIMALS)), rng.choice(tuple(COLORS))
    thing = rng.choice(("ball", "hat", "book", "car", "boat", "house", *FRUIT))
    turns: Conversation = [("system", FULL[0])] if rng.random() < 0.5 else []
    me = rng.choice(("my name is {}", "I am {}")).format(name)
    turns += _say(f"{hello}, {me}.", f"{hello} {name}, how can I help you?")
    middle = rng.randrange(4)
    if middle == 0:
        turns += _say(f"I like {animal}.", f"So you like {animal}, {name}.")
    elif middle == 1:
        turns += _say(
            f"I have a {color} {thing}.", f"A {color} {thing}, how nice!".replace("A orange", "An orange")
        )
    elif middle == 2:
        turns += _say("How are you?", "I am fine, thank you.")
    turns = [(r, t.replace("a orange", "an orange")) for r, t in turns]
    end = rng.randrange(3)
    if end == 0:
        turns += _say("What is my name?", f"Your name is {name}.")
    elif end == 1 and middle < 2:
        turns += (
            _say("What do I like?", f"You like {animal}.")
            if middle == 0
            else _say(f"What color is my {thing}?", f"Your {thing} is {color}.")
        )
    else:
        turns += _say(
            *rng.choice(
                (
                    ("Thank you and goodbye.", f"Goodbye {name}!"),
                    ("Thank you.", f"You are welcome, {name}."),
                    ("Good night.", f"Good night {name}!"),
                )
            )
        )
    return turns
