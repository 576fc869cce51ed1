"""Speaks the texts of Alpaca: `python data/make_spoken.py`, after make_real.py.

It needs what make_fresh_speech.py needs. An encoder that is trained on the shipped clips alone knows some
1,000 words, and forgets others. So short sentences of Alpaca's answers are spoken, and nearly all of its
words in random strings, to be transcribed. Its short instructions are spoken too, about a quarter of them to
be answered; `asked.jsonl` has these alone. The texts of `alpaca/val.jsonl` are held out, to be transcribed.
"""

import argparse
import json
import random
import re
from pathlib import Path

from make_fresh_speech import make
from more_voices import draw_voice
from wordings import plain

LEAST, MOST = 3, 12  # words that are spoken at once
LONGEST = 120  # words of an answer
TOGETHER = 5  # words of a string
TAKES = 4  # clips of each training text, in several voices
WORD = r"(?<![^\s(\"])[A-Za-z]?[a-z]{2,}(?![^\s,;:.?!)\"])"  # between spaces or punctuation
Sentence = tuple[str, str, str]  # kind, spoken text, answer or "" to transcribe


def speakable(text: str) -> bool:
    """Whether a text is short and has words alone, which all voices read alike."""
    return LEAST <= len(text.split()) <= MOST and re.fullmatch(r"[A-Za-z ,;:.?!]+", text) is not None \
        and not any(word.isupper() and len(word) > 1 for word in re.findall("[A-Za-z]+", text))


def sentences(lines: list[dict], answered: bool) -> list[Sentence]:
    """The short instructions and the short sentences of the answers, each once, without punctuation."""
    found: dict[str, Sentence] = {}
    for line in lines:
        asked, answer = (turn["content"] for turn in line["messages"][-2:])
        if speakable(asked):
            given = answer if answered and len(answer.split()) <= LONGEST else ""
            found.setdefault(plain(asked), ("instruction", plain(asked), given))
        for part in re.split(r"(?<=[.?!])\s+|\n+", answer):
            if speakable(part.strip()):
                found.setdefault(plain(part), ("sentence", plain(part), ""))
    return list(found.values())


def strings(lines: list[dict], rng: random.Random) -> list[Sentence]:
    """Each word once, in random order, but no abbreviations, and no words with a hyphen or an apostrophe."""
    texts = [turn["content"] for line in lines for turn in line["messages"]]
    words = sorted({word.lower() for text in texts for word in re.findall(WORD, text)})
    rng.shuffle(words)
    return [("free", " ".join(words[i:i + TOGETHER]), "") for i in range(0, len(words), TOGETHER)]


def read(path: Path) -> list[dict]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--texts", type=Path, default=Path(__file__).parent / "real/alpaca")
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "real/spoken")
    args = parser.parse_args()
    held_out = sentences(read(args.texts / "val.jsonl"), False)
    kept = {plain(said) for _, said, _ in held_out}
    lines = read(args.texts / "train.jsonl")
    train = [one for one in sentences(lines, True) if plain(one[1]) not in kept] * TAKES
    for take in range(TAKES):
        train += strings(lines, random.Random(take))
    for name, chosen in (("val", held_out), ("train", train)):
        rng = random.Random(name)
        make(args.out, name, [(one, draw_voice(rng)) for one in chosen], f"spoken {name}")
        print(f"{args.out / name}.jsonl: {len(chosen):,} clips or fewer, those of over 5 seconds are dropped")
    asked = [line for line in read(args.out / "train.jsonl") if line["kind"] == "instruction"]
    (args.out / "asked.jsonl").write_text("".join(json.dumps(line) + "\n" for line in asked),
                                          encoding="utf-8")


if __name__ == "__main__":
    main()
