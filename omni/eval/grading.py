"""How a generated answer is graded: equality for questions, word errors for transcripts."""

import string
from collections import Counter
from dataclasses import dataclass

from torchaudio.functional import edit_distance

ARTICLES = {"a", "an", "the"}
DIGITS = {word: str(n) for n, word in enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty".split())}
_PUNCTUATION = str.maketrans({c: " " for c in string.punctuation if c != "'"})


def normalise_answer(text: str) -> str:
    """Lower case, no punctuation, no articles, number words as digits: as VQA does it (Antol et al. 2015)."""
    words = text.lower().translate(_PUNCTUATION).split()
    return " ".join(DIGITS.get(w, w) for w in words if w not in ARTICLES)


def normalise_words(text: str) -> list[str]:
    """The words of a transcript: lower case, without punctuation."""
    return text.lower().translate(_PUNCTUATION).split()


def correct(answer: str, reference: str) -> bool:
    """Whether a generated answer equals the reference after `normalise_answer`."""
    return normalise_answer(answer) == normalise_answer(reference)


def word_distance(answer: str, reference: str) -> float:
    """How wrong an answer is, from 0 to 1: the share of words that the two texts don't have in common.

    Word order makes no difference. The share is relative to the longer text.
    """
    given, wanted = Counter(normalise_words(answer)), Counter(normalise_words(reference))
    return 1 - (given & wanted).total() / max(1, given.total(), wanted.total())


@dataclass(frozen=True)
class WordErrors:
    """Word errors and reference words, summed over transcripts. Their ratio is the corpus word error rate."""

    errors: int = 0
    words: int = 0

    def __add__(self, other: "WordErrors") -> "WordErrors":
        return WordErrors(self.errors + other.errors, self.words + other.words)

    @property
    def rate(self) -> float:
        return self.errors / max(self.words, 1)


def word_errors(answer: str, reference: str) -> WordErrors:
    """Word substitutions, insertions and deletions that turn the reference into the transcript `answer`."""
    wanted, given = normalise_words(reference), normalise_words(answer)
    return WordErrors(edit_distance(wanted, given), len(wanted))
