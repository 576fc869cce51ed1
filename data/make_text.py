"""Writes the shipped text: `python data/make_text.py`.

`text_only` asks and answers; `thinker_text` is what the Thinker reads before (stage A). Facts whose hash falls into
the held-out eighth are stated in stage A and asked in the held-out split alone.
"""

import argparse
import json
import random
from collections.abc import Iterator
from pathlib import Path
from zlib import crc32

import numpy as np
import skills
from facts import RELATIONS
from make_images import counting, digit, objects, questions, settle, sign
from questions import DESCRIBE, describe
from sentences import facts as spoken_facts
from sentences import free_strings, sums, template_sentence

FULL, SHORT = "", "Answer in one word."
Talk = list[tuple[str, str]]  # (role, content)


def held_out(key: str, share: int = 8) -> bool:
    """Whether a fact, a pair of numbers or a word is kept for the held-out split: one in `share`, by its hash."""
    return crc32(key.encode()) % share == 0


def ask_fact(rng: random.Random, held: bool, wording: bool = False) -> tuple[Talk, str]:
    """A question about a fact; with `wording`, in a wording that training never uses."""
    while True:
        relation = rng.choice(RELATIONS)
        subject, answer = rng.choice(list(relation.facts.items()))
        kept = len(relation.questions) == 4
        if held_out(f"{relation.name} {subject}") == held and (kept or not wording):
            break
    texts = relation.questions[-1:] if wording else relation.questions[:3]
    question = rng.choice(texts).format(s=subject)
    full = relation.statements[0].format(s=subject, a=answer)
    if rng.random() < 0.4:
        return [("system", SHORT), ("user", question), ("assistant", answer)], "fact"
    return [("user", question), ("assistant", full)], "fact"


def scene_talk(rng: random.Random, held: bool) -> tuple[Talk, str]:
    """A described scene and questions about it, as they are asked about pictures."""
    nprng = np.random.default_rng(rng.getrandbits(32))
    make = rng.choices((objects, counting, digit, sign), (60, 25, 5, 10))[0]
    scene = make(nprng, held)
    asked = []
    while not asked:
        asked = [q for q in questions(nprng, scene, held, 4) if clear(q, scene)]
    picture = f"Picture: {placed(scene)}"
    turns = [settle(q, TURNS) for q in asked[:1 if held else rng.randint(1, 3)]]
    talk = []
    for i, (question, answer) in enumerate(turns):
        talk += [("user", f"{picture} {question}" if i == 0 else question), ("assistant", answer)]
    return talk, "scene"


TURNS: dict = {}  # of yes and no, for `settle`


def placed(scene) -> str:
    """The description, with the side of each thing: what a picture shows and its description leaves out."""
    text = describe(scene)
    if scene.sort != "objects":
        return text if scene.sort != "sign" else f"{text[:-1]} {('in' if scene.place == 'room' else 'on')} {scene.place}."
    parts = [f"a {i.size} {i.color} {i.kind} on the {'left' if i.x < 64 else 'right'}"
             for i in sorted(scene.items, key=lambda i: i.x)]
    return f"{', '.join(parts)}, {scene.place}.".capitalize()


def clear(question, scene) -> bool:
    """Whether the description tells the answer: where things are many, it leaves out most of their colors."""
    return scene.sort != "counting" or question.kind in ("count", "compare")


MAKERS = (  # (share of text_only, maker)
    (0.26, ask_fact), (0.22, scene_talk), *skills.MAKERS)


def talk(rng: random.Random, held: bool) -> tuple[Talk, str]:
    maker = rng.choices([m for _, m in MAKERS], [w for w, _ in MAKERS])[0]
    return maker(rng, held)


def line(turns: Talk, **more) -> str:
    return json.dumps({"messages": [{"role": r, "content": c} for r, c in turns], **more})


def distinct(count: int, seen: set[str], make) -> Iterator[tuple[Talk, str]]:
    """`count` talks whose prompts are new to `seen`."""
    while count:
        turns, kind = make()
        key = "\n".join(c for _, c in turns[:-1])
        if key not in seen:
            seen.add(key)
            count -= 1
            yield turns, kind


def val_talk(rng: random.Random, index: int) -> tuple[Talk, str]:
    """A quarter each: facts never asked, unseen wordings; the rest with numbers, words and scenes kept apart."""
    if index % 4 == 0:
        return ask_fact(rng, held=True)[0], "fact_heldout"
    if index % 4 == 1:
        return ask_fact(rng, held=False, wording=True)[0], "wording"
    while True:
        turns, kind = talk(rng, held=True)
        if kind != "fact":
            return turns, kind


def statements(rng: random.Random) -> Iterator[str]:
    """Every fact in each of its forms, alone and in small paragraphs."""
    said = [form.format(s=s, a=a) for r in RELATIONS for s, a in r.facts.items() for form in r.statements]
    said = [text[0].upper() + text[1:] for text in said]
    yield from said
    for _ in range(2):
        rng.shuffle(said)
        for start in range(0, len(said), 3):
            yield " ".join(said[start:start + 3])


def spoken(rng: random.Random) -> Iterator[str]:
    """Lines as they are spoken: lower case, no punctuation. Questions come with their answer."""
    for text in free_strings(3000, rng):
        yield json.dumps({"text": text, "kind": "spoken"})
    for text in dict.fromkeys(template_sentence(rng)[0] for _ in range(3600)):
        yield json.dumps({"text": text, "kind": "spoken"})
    asked = [(text, answer) for wordings, answer in spoken_facts(rng) for text in wordings]
    asked += [one for pair, wordings in sums().items() if not held_out(str(pair), 7) for one in wordings]
    for text, answer in rng.sample(asked, len(asked)):
        yield line([("user", text), ("assistant", answer)])


def described(rng: random.Random) -> str:
    """A caption, or a picture's talk in spoken style."""
    nprng = np.random.default_rng(rng.getrandbits(32))
    scene = rng.choice((objects, objects, counting, sign, digit))(nprng, False)
    if rng.random() < 0.5:
        return json.dumps({"text": describe(scene)})
    return line([("user", f"Picture: {placed(scene)} {DESCRIBE}"), ("assistant", describe(scene))])


def write(path: Path, lines) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(text + "\n" for text in lines), encoding="utf-8")


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("data/tiny"))
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    rng, seen = random.Random(args.seed), set()
    counter = iter(range(10**9))
    val = [line(turns, kind=kind) for turns, kind in distinct(600, seen, lambda: val_talk(rng, next(counter)))]
    train = [line(turns) for turns, _ in distinct(9000, seen, lambda: talk(rng, False))]
    write(args.out / "text_only" / "train.jsonl", train)
    write(args.out / "text_only" / "val.jsonl", val)
    read = [json.dumps({"text": text}) for text in statements(rng)]
    read += spoken(rng)
    read += [described(rng) for _ in range(2500)]
    read += [line(turns) for turns, _ in distinct(13000, seen, lambda: talk(rng, False))]
    rng.shuffle(read)
    write(args.out / "thinker_text" / "train.jsonl", read[400:])
    write(args.out / "thinker_text" / "val.jsonl", read[:400])


if __name__ == "__main__":
    main()
