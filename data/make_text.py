"""Writes the shipped text: `python data/make_text.py`, and with `--fresh 320000` text for stage A.

`text_only` holds questions with answers. The fresh text, which is not shipped, is what the Thinker is
pretrained on (stage A). No held-out question is in the training split of either. Held-out facts are stated in
stage A, so that a model can know them.
"""

import argparse
import json
import random
from collections.abc import Callable, Iterator
from functools import partial
from multiprocessing import Pool
from pathlib import Path

import assistant
import facts
import talks
from facts import fill
from fresh_text import SHARES, TEXT_ONLY, Fresh
from scenes import Balance, Conversation, Dice, conversation
from talks import FULL, SHORT
from wordings import plain

TRAIN = 14000
VAL, ABOUT = 600, {"about": 40, "definition": 20, "unknown": 40}  # held out: of the first kinds, and of these
FRESH_VAL, PART = 2000, 5000  # lines of fresh text held out; lines of a part, which has its own seed


def ask_fact(rng: random.Random, held: bool, wording: bool = False) -> Conversation:
    """A question about a fact, in a training wording or, with `wording`, in the held-out one."""
    relation, s, a = facts.draw(rng, held)
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


class HeldOut:
    """Makes held-out conversations of every kind."""

    def __init__(self, seed: int):
        self.rng, self.balance = Dice(seed), Balance()

    def make(self, kind: str) -> Conversation:
        rng = self.rng
        makers: dict[str, Callable[[], Conversation]] = {
            "scene": lambda: conversation(rng, True, self.balance, 1),
            "fact_heldout": lambda: ask_fact(rng, True),
            "wording": lambda: ask_fact(rng, False, wording=True),
            "sum": lambda: talks.sums(rng, True, False),
            "sum_small": lambda: talks.sums(rng, True, True),
            "counting": lambda: talks.counting(rng, True),
            "ordering": lambda: talks.ordering(rng, True),
            "spelling": lambda: talks.spelling(rng, True),
            "list": lambda: talks.lists(rng, True),
            "dialogue": lambda: talks.small_talk(rng, True),
            "about": lambda: assistant.about(rng, True),
            "definition": lambda: assistant.definition(rng, True),
            "unknown": lambda: assistant.unknown(rng, True),
        }
        return makers[kind]()


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


def distinct(kind: str, count: int, seen: set[str], maker: HeldOut) -> Iterator[Conversation]:
    """Up to `count` conversations whose prompts are not in `seen` yet; fewer if no new ones can be found."""
    misses = 0
    while count and misses < 300:
        turns = maker.make(kind)
        key = "\n".join(plain(c) for _, c in turns[:-1])
        misses += 1
        if key not in seen:
            seen.add(key)
            count, misses = count - 1, 0
            yield turns


def write(path: Path, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(text + "\n" for text in lines), encoding="utf-8")


def held_out(seed: int) -> list[str]:
    """The held-out lines: those about the assistant and the world outside come last."""
    rng, seen, maker = random.Random(seed), set(), HeldOut(seed)
    lines = [line(turns, kind=kind) for kind, share in VAL_KINDS.items()
             for turns in distinct(kind, round(share * VAL), seen, maker)]
    rng.shuffle(lines)
    maker = HeldOut(seed + 1)
    return lines + [line(turns, kind=kind) for kind, count in ABOUT.items()
                    for turns in distinct(kind, count, seen, maker)]


def fresh_lines(seed: int, shares: dict[str, float], part: int) -> list[str]:
    """A part of the fresh text. Part 0 is held out: its lines say of which kind they are."""
    fresh = Fresh(seed * 10 ** 6 + part)
    return [fresh.line(shares, named=part == 0) for _ in range(PART if part else FRESH_VAL)]


def with_pictures(percent: float) -> dict[str, float]:
    """SHARES with another share of lines about pictures."""
    others = sum(SHARES.values()) - SHARES["picture"]
    return {**SHARES, "picture": others * percent / (100 - percent)}


def write_fresh(folder: Path, count: int, seed: int, procs: int, shares: dict[str, float] = SHARES) -> None:
    """`count` lines of fresh text in train.jsonl, and others in val.jsonl; the same for any `procs`."""
    folder.mkdir(parents=True, exist_ok=True)
    with Pool(procs) as pool, open(folder / "train.jsonl", "w", encoding="utf-8") as file:
        parts = pool.imap(partial(fresh_lines, seed, shares), range(-(-count // PART) + 1))
        for number, lines in enumerate(parts):
            if number == 0:
                write(folder / "val.jsonl", lines)
            else:
                file.writelines(text + "\n" for text in lines[:count - (number - 1) * PART])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/tiny"))
    parser.add_argument("--fresh", type=int, metavar="LINES",
                        help="write so many lines of stage A's text instead")
    parser.add_argument("--pictures", type=float, metavar="PERCENT",
                        help="with --fresh: the share of lines about pictures, in place of 12")
    parser.add_argument("--fresh-out", type=Path, default=Path("data/fresh/text"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--procs", type=int, default=2)
    args = parser.parse_args()
    if args.fresh:
        shares = SHARES if args.pictures is None else with_pictures(args.pictures)
        write_fresh(args.fresh_out, args.fresh, args.seed, args.procs, shares)
        return
    write(args.out / "text_only" / "val.jsonl", held_out(args.seed))
    fresh, lines = Fresh(args.seed), {}
    while len(lines) < TRAIN:
        lines[fresh.line(TEXT_ONLY, longer=False)] = None
    write(args.out / "text_only" / "train.jsonl", list(lines))


if __name__ == "__main__":
    main()
