"""The three tasks: how a sample's task is guessed, and how its answer is graded."""

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
    """As VQA does it (Antol et al. 2015): case, punctuation, articles and number words make no difference."""
    words = text.lower().translate(_PUNCTUATION).split()
    return " ".join(DIGITS.get(w, w) for w in words if w not in ARTICLES)


def normalise_words(text: str) -> list[str]:
    """The words of a transcript: lower case, without punctuation."""
    return text.lower().translate(_PUNCTUATION).split()


def correct(answer: str, reference: str) -> bool:
    """Whether a generated answer equals the reference after `normalise_answer`."""
    return normalise_answer(answer) == normalise_answer(reference)


def unlike(answer: str, reference: str) -> float:
    """How far a wrong answer is off, to find the worst: 1 less the share of words in common, in any order."""
    given, wanted = Counter(normalise_words(answer)), Counter(normalise_words(reference))
    return 1 - (given & wanted).total() / max(1, given.total(), wanted.total())


@dataclass(frozen=True)
class WordErrors:
    """Errors and reference words of a set of transcripts: their ratio is the corpus word error rate."""

    errors: int = 0
    words: int = 0

    def __add__(self, other: "WordErrors") -> "WordErrors":
        return WordErrors(self.errors + other.errors, self.words + other.words)

    @property
    def rate(self) -> float:
        return self.errors / max(self.words, 1)


def word_errors(answer: str, reference: str) -> WordErrors:
    """Substitutions, insertions and deletions of one transcript against its reference."""
    said, heard = normalise_words(reference), normalise_words(answer)
    return WordErrors(edit_distance(said, heard), len(said))
