"""Spoken questions with their answers, as transcripts, without those that are held out."""

import random

import talks
from facts import HELD, RELATIONS
from sentences import facts, sums
from wordings import plain

_PAIRS = [(plain(s), plain(r.facts[s])) for r in RELATIONS for s in HELD[r.name]]
_GIVEN = [(frozenset(one.split()), other) for a, b in _PAIRS for one, other in ((a, b), (b, a))]


def gives_away(question: str, answer: str) -> bool:
    """Whether a spoken question asks for a held-out fact (or the reverse of one) or a held-out spelling."""
    words = set(question.split())
    if any(other == answer and one <= words for one, other in _GIVEN):
        return True
    letters = answer.replace(" ", "")
    return (
        len(answer) == 2 * len(letters) - 1
        and letters in words
        and len(letters) > 1
        and not talks.may_spell(letters, False)
    )


def spoken_questions(rng: random.Random) -> list[tuple[str, str]]:
    """All questions of the speech set that training may ask, in any wording: (question, answer)."""
    asked = [(text, answer) for wordings, answer in facts(rng) for text in wordings]
    for (word, a, b), wordings in sums().items():
        if not talks.is_held_out_sum("+" if word == "plus" else "-", a, b):
            asked += wordings
    return [pair for pair in asked if not gives_away(*pair)]
