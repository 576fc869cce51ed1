"""Makes some of the fresh clips the training clips of `audio_text`: `python data/ship_speech.py`.

Run `make_fresh_speech.py` first. The clips are encoded anew, at 17 kbit/s. Held-out clips stay as they are.
"""

import argparse
import json
import random
from collections import Counter
from pathlib import Path

import soundfile as sf
from make_speech import MIN_WORD_CLIPS, write_manifest
from more_voices import NEURAL_VOICE
from sentences import LEXICON
from tqdm import tqdm

DATA = Path(__file__).parent
WANTED = {  # (kind, task) -> clips
    ("free", "asr"): 2800, ("word", "asr"): 350, ("sentence", "asr"): 1400, ("fact", "asr"): 150,
    ("question", "qa"): 950, ("question", "asr"): 100, ("about", "qa"): 330, ("about", "asr"): 150,
    ("definition", "qa"): 120, ("definition", "asr"): 60, ("unknown", "qa"): 140, ("unknown", "asr"): 50,
}
MAX_REPEATS = 8  # clips of one sentence; no two are by the same voice


def chosen(lines: list[dict], wanted: dict[tuple[str, str], int], rng: random.Random) -> list[dict]:
    """As many of the lines of each kind as are wanted, in random order. An error if there are too few."""
    left, repeats, taken, found = Counter(wanted), Counter(), set(), []
    for line in rng.sample(lines, len(lines)):
        sort = line["kind"], line["task"]
        text = said(line)
        if left[sort] and repeats[text] < MAX_REPEATS and (text, line["voice"]) not in taken:
            left[sort] -= 1
            repeats[text] += 1
            taken.add((text, line["voice"]))
            found.append(line)
    missing = +left
    assert not missing, f"too few fresh clips: {dict(missing)} are missing; make more --parts"
    return found


def said(line: dict) -> str:
    return line.get("transcript", line["messages"][1]["content"])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--fresh", type=Path, default=DATA / "fresh/speech")
    parser.add_argument("--out", type=Path, default=DATA / "tiny/audio_text")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    with (args.fresh / "train.jsonl").open(encoding="utf-8") as file:
        lines = chosen([json.loads(row) for row in file], WANTED, random.Random(args.seed))
    assert NEURAL_VOICE not in {line["voice"] for line in lines}, "this voice may not be shipped"
    counts = Counter(word for line in lines for word in {*said(line).split()})
    rare = {word: counts[word] for word in LEXICON if counts[word] < MIN_WORD_CLIPS}
    assert not rare, f"words in too few clips: {rare}"
    (args.out / "audio").mkdir(parents=True, exist_ok=True)
    for old in (args.out / "audio").glob("train_*.ogg"):
        old.unlink()
    for i, line in enumerate(tqdm(lines, unit="clip"), 1):
        wave, rate = sf.read(args.fresh / line["audios"][0])
        line["audios"] = [f"audio/train_{i:05d}.ogg"]
        sf.write(args.out / line["audios"][0], wave, rate, format="OGG", subtype="OPUS",
                 compression_level=0.97)
    write_manifest(args.out / "train.jsonl", lines)
    size = sum(path.stat().st_size for path in (args.out / "audio").glob("train_*.ogg"))
    print(f"{len(lines)} clips, {size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
