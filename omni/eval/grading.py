"""How a generated answer is graded: equality for questions, word errors for transcripts."""

import re
import sys
import unicodedata
from collections import Counter
from dataclasses import dataclass

from torchaudio.functional import edit_distance

ARTICLES = {"a", "an", "the"}
DIGITS = {word: str(n) for n, word in enumerate(
    "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen "
    "seventeen eighteen nineteen twenty".split())}
# Apostrophes, and the quotation marks and primes that are typed for them.
_APOSTROPHES = str.maketrans(dict.fromkeys("\u2018\u2019\u201b\u02bc\u02b9\u2032\uff07`\u00b4", "'"))
_MINUS = str.maketrans(dict.fromkeys("\u2212\u2010\u2011\u2012\u2013\ufe63\uff0d", "-"))
_PUNCTUATION = {code: " " for code in range(sys.maxunicode + 1)
                if unicodedata.category(chr(code)).startswith("P") and code != ord("'")}
# In a transcript no symbol of ASCII is a word either.
_NOT_SPOKEN = {**_PUNCTUATION, **{ord(c): " " for c in "$+<=>^|~"}}
# In an answer these say something: 50 %, C#, R&D.
_ANSWERS = {code: " " for code in _PUNCTUATION if chr(code) not in "%&#@\uff05\u2030"} | {ord("|"): " "}
# A number with its sign, point or fraction, that is not a part of a word: -5, 1,000.5, 3/4.
_DIGITS = r"(?:\d{1,3}(?:,\d{3})+(?!\d)|\d+)(?:\.\d+)*"
_NUMBER = re.compile(r"((?:(?<![^\W_])(?<![.,)%])[-+])?"
                     rf"(?<![^\W_])(?:{_DIGITS}(?:/{_DIGITS})?|\.\d+)(?![^\W_]))")
# Scripts that are written without spaces between words: there each character counts as a word.
UNSPACED = ("\u0e00-\u0eff\u1000-\u109f\u1780-\u17ff\u1950-\u19df\u1a20-\u1aaf\u3005-\u3007\u3040-\u30ff"
            "\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\uff66-\uff9f\U00020000-\U0003ffff")
_UNSPACED = re.compile(f"([{UNSPACED}])")


def _plain(text: str) -> str:
    """NFC, lower case, one kind of apostrophe."""
    return unicodedata.normalize("NFC", unicodedata.normalize("NFC", text).lower()).translate(_APOSTROPHES)


def normalise_answer(text: str) -> str:
    """Lower case, no punctuation, no articles, number words as digits: as VQA does it (Antol et al. 2015).

    Signs, decimal points and symbols such as % are kept. An article is removed only before another word:
    "A" may be an answer.
    """
    parts = _NUMBER.split(_plain(text).translate(_MINUS))  # those of odd index are numbers
    parts = [part.lstrip("+").replace(",", "") if i % 2 else part.translate(_ANSWERS)
             for i, part in enumerate(parts)]
    words = [DIGITS.get(word, word) for word in (w.strip("'") for w in " ".join(parts).split()) if word]
    last = len(words) - 1
    return " ".join(word for i, word in enumerate(words) if word not in ARTICLES or i == last)


def normalise_words(text: str) -> list[str]:
    """The words of a transcript: NFC, lower case, without punctuation.

    In scripts without spaces between words, each character.
    """
    text = _plain(text).translate(_NOT_SPOKEN)
    if not text.isascii():
        text = _UNSPACED.sub(r" \1 ", text)
    return [word for word in (w.strip("'") for w in text.split()) if word]


def correct(answer: str, reference: str) -> bool:
    """Whether a generated answer equals the reference after `normalise_answer`.

    If nothing is left of both, such as of "?" and "!", they are compared as they are.
    """
    given, wanted = normalise_answer(answer), normalise_answer(reference)
    return given == wanted if given or wanted else answer.strip() == reference.strip()


def word_distance(answer: str, reference: str) -> float:
    """How wrong an answer is, from 0 to 1: the share of words that the two texts don't have in common.

    Word order makes no difference. The share is relative to the longer text.
    """
    given, wanted = Counter(normalise_words(answer)), Counter(normalise_words(reference))
    return 1 - (given & wanted).total() / max(1, given.total(), wanted.total())


@dataclass(frozen=True)
class WordErrors:
    """Word errors and reference words, summed over transcripts. Their ratio is the corpus word error rate.

    In scripts without spaces between words each character counts as a word; if most words are of this kind,
    the ratio is a character error rate.
    """

    errors: int = 0
    words: int = 0
    characters: int = 0  # those of the words that are single characters of such scripts

    def __add__(self, other: "WordErrors") -> "WordErrors":
        return WordErrors(self.errors + other.errors, self.words + other.words,
                          self.characters + other.characters)

    @property
    def by_character(self) -> bool:
        return 2 * self.characters > self.words

    @property
    def rate(self) -> float:
        return self.errors / max(self.words, 1)


def word_errors(answer: str, reference: str) -> WordErrors:
    """Word substitutions, insertions and deletions that turn the reference into the transcript `answer`."""
    wanted, given = normalise_words(reference), normalise_words(answer)
    characters = 0 if reference.isascii() else sum(_UNSPACED.fullmatch(word) is not None for word in wanted)
    return WordErrors(edit_distance(wanted, given), len(wanted), characters)
