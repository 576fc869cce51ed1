"""Things to do with numbers and words: sums, counting, ordering, spelling, copying, small talk.

A maker takes a random stream and `held`, and gives a talk and its kind. What is kept for the held-out split (a pair of
numbers, a word to spell) is decided by a hash, so training never meets it.
"""

import random
from zlib import crc32

from sentences import LEXICON
from world import NUMBER_WORDS

WORDS = [w for w in LEXICON if 3 <= len(w) <= 7]


def _kept(key: str) -> bool:
    return crc32(key.encode()) % 6 == 0


def _words(rng: random.Random, count: int, held: bool) -> list[str]:
    """Different words whose list as a whole is kept for the held-out split, or is not."""
    while True:
        words = rng.sample(WORDS, count)
        if _kept(" ".join(sorted(words))) == held:
            return words


def _talk(question: str, answer: str, kind: str):
    return [("user", question), ("assistant", answer)], kind


def arithmetic(rng: random.Random, held: bool):
    """Sums and differences up to 50; the full answer repeats the sum."""
    while True:
        a, b = rng.randint(0, 50), rng.randint(0, 50)
        if rng.random() < 0.4:
            a, b = rng.randint(0, 12), rng.randint(0, 12)
        plus = rng.random() < 0.6
        if not plus:
            a, b = max(a, b), min(a, b)
        if _kept(f"{'+' if plus else '-'} {min(a, b)} {max(a, b)}") == held:
            break
    value, sign = (a + b, "+") if plus else (a - b, "-")
    if max(a, b, value) <= 20 and rng.random() < 0.4:
        word = "plus" if plus else "minus"
        text = f"{NUMBER_WORDS[a]} {word} {NUMBER_WORDS[b]}"
        return _talk(rng.choice(("What is {}?", "How much is {}?")).format(text), NUMBER_WORDS[value], "sum")
    text = f"{a} {sign} {b}"
    return _talk(rng.choice(("What is {}?", "Compute {}.", "{} = ?")).format(text), f"{text} = {value}.", "sum")


def count_up(rng: random.Random, held: bool):
    while True:
        start, length, down = rng.randint(0, 60), rng.randint(3, 8), rng.random() < 0.3
        if _kept(f"count {start} {length}") == held:
            break
    numbers = list(range(start, start + length))
    numbers = numbers[::-1] if down else numbers
    return _talk(f"Count from {numbers[0]} to {numbers[-1]}.", " ".join(map(str, numbers)), "counting")


def occurrences(rng: random.Random, held: bool):
    words = _words(rng, 2, held)
    times = rng.randint(1, 4)
    row = [words[0]] * times + [words[1]] * rng.randint(1, 3)
    rng.shuffle(row)
    question = f"How many times does the word {words[0]} occur in: {' '.join(row)}?"
    return _talk(question, NUMBER_WORDS[times], "counting")


def compare(rng: random.Random, held: bool):
    while True:
        a, b = rng.sample(range(100), 2)
        if _kept(f"compare {min(a, b)} {max(a, b)}") == held:
            break
    if rng.random() < 0.5:
        return _talk(f"Which is bigger, {a} or {b}?", f"{max(a, b)} is bigger than {min(a, b)}.", "ordering")
    return _talk(f"Which is smaller, {a} or {b}?", f"{min(a, b)} is smaller than {max(a, b)}.", "ordering")


def sort_numbers(rng: random.Random, held: bool):
    while True:
        numbers = rng.sample(range(30), rng.choice((3, 3, 4)))
        if _kept(f"sort {sorted(numbers)}") == held:
            break
    return _talk(f"Sort the numbers: {' '.join(map(str, numbers))}.", " ".join(map(str, sorted(numbers))), "ordering")


def spell(rng: random.Random, held: bool):
    word = rng.choice([w for w in WORDS if _kept(f"spell {w}") == held])
    question = rng.choice(("Spell the word {}.", "How do you spell {}?")).format(word)
    return _talk(question, "-".join(word), "spelling")


def copy(rng: random.Random, held: bool):
    words = _words(rng, rng.randint(2, 5), held)
    row = " ".join(words)
    question, answer = rng.choice((
        (f"Repeat: {row}", row), (f"What is the first word of: {row}?", words[0]),
        (f"What is the last word of: {row}?", words[-1]), (f"Say backwards: {row}", " ".join(words[::-1])),
        (f"How many words are there: {row}?", NUMBER_WORDS[len(words)])))
    return _talk(question, answer, "copying")


NAMES = "Anna Ben Clara David Emma Felix Grace Henry Iris Jack Kate Leo Mia Noah Olga Paul Rosa Sam Tina Victor".split()


def small_talk(rng: random.Random, held: bool):
    """Two or three turns in which something said before must be remembered."""
    names = [n for n in NAMES if _kept(f"name {n}") == held] or NAMES[:2]
    name, (thing, other) = rng.choice(names), _words(rng, 2, held)
    turns = [("system", "You are a friendly helper.")] if rng.random() < 0.5 else []
    turns += [("user", f"Hello, my name is {name}."), ("assistant", f"Hello {name}, how can I help you?")]
    if rng.random() < 0.5:
        turns += [("user", f"Remember the word {thing}."), ("assistant", f"I will remember the word {thing}.")]
        if rng.random() < 0.5:
            turns += [("user", "Which word was it?"), ("assistant", f"The word was {thing}.")]
            return turns, "dialogue"
    asked = rng.random()
    if asked < 0.4:
        turns += [("user", "What is my name?"), ("assistant", f"Your name is {name}.")]
    elif asked < 0.7:
        turns += [("user", f"I like {thing} and {other}."), ("assistant", f"So you like {thing} and {other}, {name}.")]
    else:
        turns += [("user", "Thank you and goodbye."), ("assistant", f"Goodbye {name}!")]
    return turns, "dialogue"


MAKERS = ((0.16, arithmetic), (0.05, count_up), (0.05, occurrences), (0.05, compare), (0.05, sort_numbers),
          (0.05, spell), (0.08, copy), (0.06, small_talk))
