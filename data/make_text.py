"""Writes the shipped text: `python data/make_text.py`.

`text_only` holds questions with answers. `thinker_text` is the text that the Thinker is pretrained on (stage
A). No held-out question is in the training split of either. Held-out facts are stated in stage A, so that a
model can know them.
"""

import argparse
import itertools
import json
import random
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import talks
from facts import HELD, RELATIONS, Relation, fill
from scenes import Balance, Conversation, Dice, caption, conversation
from sentences import facts as spoken_facts
from sentences import free_strings, template_sentence
from sentences import sums as spoken_sums
from stories import story
from talks import FULL, SHORT

TRAIN, VAL = 9500, 600
STAGE_A_VAL = 500
STAGE_A = {  # kind -> conversations in stage A
    "fact": 3800,
    "sum": 2600,
    "counting": 800,
    "ordering": 900,
    "spelling": 500,
    "list": 1100,
    "dialogue": 400,
    "scene": 4000,
    "spoken_scene": 2500,
}
# Of stage A: word strings (and as many sentences), stories, captions, and paragraphs with each statement.
SPOKEN, STORIES, CAPTIONS, PARAGRAPHS = 3050, 2400, 2000, 4


def plain(text: str) -> str:
    """Text as in a transcript: lower case, no punctuation."""
    return " ".join(re.sub(r"[^a-z0-9+\-= ]", " ", text.lower()).split())


def pick_fact(rng: random.Random, held: bool) -> tuple[Relation, str, str]:
    """A random fact. Large relations are drawn more often, but less than in proportion to their size."""
    relation = rng.choices(RELATIONS, [len(r.facts) ** 0.6 for r in RELATIONS])[0]
    subject = rng.choice([s for s in relation.facts if (s in HELD[relation.name]) == held])
    return relation, subject, relation.facts[subject]


def ask_fact(rng: random.Random, held: bool, wording: bool = False) -> Conversation:
    """A question about a fact, in a training wording or, with `wording`, in the held-out one."""
    relation, s, a = pick_fact(rng, held)
    texts = relation.questions[-1:] if wording else relation.questions[:-1]
    question, full = fill(rng.choice(texts), s, a), fill(relation.statements[0], s, a)
    if rng.random() < 0.4:
        return [
            ("system", rng.choice(SHORT[2:] if " " in a else SHORT)),
            ("user", question),
            ("assistant", a),
        ]
    system = [("system", rng.choice(FULL))] if rng.random() < 0.3 else []
    return [*system, ("user", question), ("assistant", full)]


def dialogue(rng: random.Random, held: bool) -> Conversation:
    """Small talk, or two or three questions about facts, all answered briefly or all in full sentences."""
    if held or rng.random() < 0.5:
        return talks.small_talk(rng, held)
    short = rng.random() < 0.5
    out: Conversation = [("system", SHORT[2] if short else FULL[0])]
    for _ in range(rng.randint(2, 3)):
        relation, s, a = pick_fact(rng, held)
        question = fill(rng.choice(relation.questions[:-1]), s, a)
        out += [("user", question), ("assistant", a if short else fill(relation.statements[0], s, a))]
    return out


class Maker:
    """Makes conversations of every kind."""

    def __init__(self, seed: int):
        self.rng, self.balance = Dice(seed), {True: Balance(), False: Balance()}

    def scene(self, held: bool) -> Conversation:
        return conversation(self.rng, held, self.balance[held], 1 if held else self.rng.randint(1, 3))

    def spoken_scene(self, held: bool) -> Conversation:
        return [(r, plain(t)) for r, t in conversation(self.rng, held, self.balance[held])]

    def make(self, kind: str, held: bool = False) -> Conversation:
        rng = self.rng
        makers: dict[str, Callable[[], Conversation]] = {
            "fact": lambda: ask_fact(rng, held),
            "scene": lambda: self.scene(held),
            "fact_heldout": lambda: ask_fact(rng, True),
            "wording": lambda: ask_fact(rng, False, wording=True),
            "sum": lambda: talks.sums(rng, held, False if held else None),
            "sum_small": lambda: talks.sums(rng, held, True),
            "counting": lambda: talks.counting(rng, held),
            "ordering": lambda: talks.ordering(rng, held),
            "spelling": lambda: talks.spelling(rng, held),
            "list": lambda: talks.lists(rng, held),
            "dialogue": lambda: dialogue(rng, held),
            "spoken_scene": lambda: self.spoken_scene(held),
        }
        return makers[kind]()


TRAIN_KINDS = {
    "fact": 0.17,
    "scene": 0.18,
    "sum": 0.16,
    "counting": 0.09,
    "ordering": 0.1,
    "spelling": 0.07,
    "list": 0.11,
    "dialogue": 0.12,
}
VAL_KINDS = {
    "fact_heldout": 0.25,
    "sum": 0.15,
    "sum_small": 0.05,
    "wording": 0.2,
    "scene": 0.13,
    "spelling": 0.04,
    "counting": 0.05,
    "ordering": 0.05,
    "list": 0.05,
    "dialogue": 0.03,
}


def line(turns: Conversation, **more: str) -> str:
    return json.dumps({"messages": [{"role": r, "content": c} for r, c in turns], **more})


def distinct(kind: str, count: int, seen: set[str], maker: Maker,
             held: bool = False) -> Iterator[Conversation]:
    """Up to `count` conversations whose prompts are not in `seen` yet; fewer if no new ones can be found."""
    misses = 0
    while count and misses < 300:
        turns = maker.make(kind, held)
        key = "\n".join(plain(c) for _, c in turns[:-1])
        misses += 1
        if key not in seen:
            seen.add(key)
            count, misses = count - 1, 0
            yield turns


def statements(rng: random.Random) -> Iterator[str]:
    """Every fact in each of its statements, alone and in paragraphs of two to four."""
    said = [fill(form, s, a) for r in RELATIONS for s, a in r.facts.items() for form in r.statements]
    yield from said
    for _ in range(PARAGRAPHS):
        rest = rng.sample(said, len(said))
        while rest:
            size = rng.randint(2, 4)
            yield " ".join(rest[:size])
            del rest[:size]


def gives_away(question: str, answer: str) -> bool:
    """Whether a spoken question asks for a held-out fact (or the reverse of one) or a held-out spelling."""
    asked = set(question.split())
    for relation in RELATIONS:
        for s in HELD[relation.name]:
            one, other = plain(s), plain(relation.facts[s])
            if any(set(x.split()) <= asked and y == answer for x, y in ((one, other), (other, one))):
                return True
    letters = answer.replace(" ", "")
    return (
        len(answer) == 2 * len(letters) - 1
        and letters in asked
        and len(letters) > 1
        and not talks.may_spell(letters, False)
    )


def spoken(rng: random.Random) -> Iterator[str]:
    """Strings of words and sentences as in transcripts, and spoken questions with their answers."""
    said = dict.fromkeys(free_strings(SPOKEN, rng))
    while len(said) < 2 * SPOKEN:
        said[template_sentence(rng)[0]] = None
    for text in said:
        yield json.dumps({"text": text, "kind": "spoken"})
    asked = [(text, answer) for wordings, answer in spoken_facts(rng) for text in wordings]
    for (word, a, b), wordings in spoken_sums().items():
        if not talks.is_held_out_sum("+" if word == "plus" else "-", a, b):
            asked += wordings
    for text, answer in rng.sample(asked, len(asked)):
        if not gives_away(text, answer):
            yield line([("user", text), ("assistant", answer)])


def stage_a_lines(rng: random.Random, seen: set[str], maker: Maker) -> list[str]:
    """All lines of stage A's text, shuffled."""
    texts = itertools.chain(
        statements(rng), (story(rng) for _ in range(STORIES)), (caption(maker.rng) for _ in range(CAPTIONS))
    )
    lines = [json.dumps({"text": text}) for text in texts] + list(spoken(rng))
    for kind, count in STAGE_A.items():
        lines += [line(turns) for turns in distinct(kind, count, seen, maker)]
    lines = list(dict.fromkeys(lines))
    rng.shuffle(lines)
    return lines


def write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(text + "\n" for text in lines), encoding="utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/tiny"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, seen, maker = random.Random(args.seed), set(), Maker(args.seed)
    splits: dict[str, list[str]] = {"val": [], "train": []}
    for split, kinds, total in (("val", VAL_KINDS, VAL), ("train", TRAIN_KINDS, TRAIN)):
        for kind, share in kinds.items():
            for turns in distinct(kind, round(share * total), seen, maker, split == "val"):
                splits[split].append(line(turns, kind=kind) if split == "val" else line(turns))
        rng.shuffle(splits[split])
        write(args.out / "text_only" / f"{split}.jsonl", splits[split])
    lines = stage_a_lines(rng, seen, maker)
    write(args.out / "thinker_text" / "val.jsonl", lines[:STAGE_A_VAL])
    write(args.out / "thinker_text" / "train.jsonl", lines[STAGE_A_VAL:])


if __name__ == "__main__":
    main()
