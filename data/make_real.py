"""Makes manifests of four published data sets: easy-VQA, Free Spoken Digits, CIFAR-10 as JPEG, Alpaca.

    python data/make_real.py --real PATH_OF_THE_DOWNLOADS --out data/real

`--real` is a folder with the four as they are published: `easy-vqa/{train,test}/{images,questions.json}`,
`fsdd/{digit}_{speaker}_{take}.wav`, `cifar10/{train,test}/{kind}/*.jpg`, `alpaca/*.json`. Pictures are copied
and digits joined to strings, so the output needs no other files. Held out are the test images of easy-VQA and
CIFAR-10, one speaker of the digits, takes 0 to 4 of the other speakers, and every tenth instruction.
"""

import argparse
import json
import shutil
from pathlib import Path

import numpy as np
import soundfile
from tqdm import tqdm

NUMBERS = "zero one two three four five six seven eight nine".split()
ANIMALS = ("bird", "cat", "deer", "dog", "frog", "horse")
HELD_OUT_SPEAKER, HELD_OUT_TAKES = "lucas", 5  # of the other speakers, takes below this are held out
RATE = 8000


def conversation(question: str, answer: str, **more) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
            **more}


def write(path: Path, lines: list[dict]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), encoding="utf-8")
    print(f"{path}: {len(lines):,} samples")


def about_picture(turns: list[tuple[str, str]], image: str, split: str,
                  rng: np.random.Generator) -> list[dict]:
    """One conversation in training: a step learns more from each picture. Single questions if held out."""
    if split == "val":
        return [conversation(f"<image>{q}", a, images=[image], task="qa") for q, a in turns]
    turns = [turns[i] for i in rng.permutation(len(turns))]
    messages = [message for q, a in turns for message in conversation(q, a)["messages"]]
    messages[0]["content"] = "<image>" + messages[0]["content"]
    return [{"messages": messages, "images": [image], "task": "qa"}]


def easy_vqa(real: Path, out: Path, rng: np.random.Generator) -> None:
    """The questions as published, some ten a picture. Each answer is one of 13 words."""
    for theirs, ours in (("train", "train"), ("test", "val")):
        shutil.copytree(real / theirs / "images", out / ours, dirs_exist_ok=True)
        asked: dict[int, list] = {}
        rows = json.loads((real / theirs / "questions.json").read_text(encoding="utf-8"))
        for question, answer, number in rows:
            asked.setdefault(number, []).append((question, answer))
        write(out / f"{ours}.jsonl", [line for number, turns in asked.items()
                                      for line in about_picture(turns, f"{ours}/{number}.png", ours, rng)])


def article(noun: str) -> str:
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def photographs(real: Path, out: Path, rng: np.random.Generator) -> None:
    """Two or three questions a picture."""
    for theirs, ours in (("train", "train"), ("test", "val")):
        lines = []
        for path in sorted((real / theirs).glob("*/*.jpg")):
            kind, image = path.parent.name, f"{ours}/{path.parent.name}_{path.name}"
            (out / ours).mkdir(parents=True, exist_ok=True)
            shutil.copyfile(path, out / image)
            turns = [("What is in the picture?", f"There is {article(kind)} in the picture."),
                     ("Is it an animal?",
                      "Yes, it is an animal." if kind in ANIMALS else "No, it is a thing.")]
            if kind in ANIMALS:
                turns.append(("What animal?", f"This is {article(kind)}."))
            lines += about_picture(turns, image, ours, rng)
        write(out / f"{ours}.jsonl", lines)


def spoken(takes: dict, speakers: list[str], longest_pause: float,
           rng: np.random.Generator) -> tuple[np.ndarray, str]:
    """3 to 7 digits, each by a random speaker, joined with pauses (in seconds); and the transcript."""
    digits = rng.integers(10, size=rng.integers(3, 8))
    parts = []
    for digit in digits:
        choice = takes[speakers[rng.integers(len(speakers))], int(digit)]
        pause = np.zeros(int(RATE * rng.uniform(0.02, longest_pause)), np.float32)
        parts += [choice[rng.integers(len(choice))], pause]
    return np.concatenate(parts[:-1]), " ".join(NUMBERS[d] for d in digits)


def varied(sound: np.ndarray, rng: np.random.Generator) -> tuple[np.ndarray, int]:
    """A clip as if it were recorded elsewhere, and its sample rate in Hz.

    It gets random silence at both ends and a quiet hiss. The silence varies because the mean of the log-mels,
    which is subtracted, depends on it. The rate varies, which changes speed and pitch, so that three speakers
    sound like many.
    """
    margins = [int(RATE * rng.uniform(0, 0.4)) for _ in range(2)]
    hiss = 10 ** -rng.uniform(2.5, 5)
    sound = np.pad(sound, margins)
    return sound + hiss * rng.standard_normal(len(sound), np.float32), 100 * int(rng.integers(64, 100))


def digits(real: Path, out: Path, seed: int, train: int, val: int) -> None:
    """Strings of digits. Held out are other takes of the training speakers, and one speaker as a group."""
    heard: dict[str, dict] = {"train": {}, "val": {}}
    for path in sorted(real.glob("*.wav")):
        digit, speaker, take = path.stem.split("_")
        sound, rate = soundfile.read(path, dtype="float32")
        assert rate == RATE, f"{path}: {rate} Hz"
        split = "val" if speaker == HELD_OUT_SPEAKER or int(take) < HELD_OUT_TAKES else "train"
        heard[split].setdefault((speaker, int(digit)), []).append(sound)
    for split, count in (("train", train), ("val", val)):
        rng = np.random.default_rng([seed, split == "val"])
        speakers = sorted({speaker for speaker, _ in heard[split]})
        (out / split).mkdir(parents=True, exist_ok=True)
        lines = []
        for number in tqdm(range(count), desc=f"digits, {split}", disable=None):
            speaker = speakers[number % len(speakers)]
            name, rate = f"{split}/{number:05d}.wav", RATE
            if split == "train":  # half of them mix speakers, so that a digit's neighbours say less about it
                sound, text = spoken(heard[split], speakers if number % 2 else [speaker], 0.5, rng)
                sound, rate = varied(sound, rng)
            else:
                sound, text = spoken(heard[split], [speaker], 0.25, rng)
            soundfile.write(out / name, sound, rate)
            group = {"group": "left_out_speaker"} if speaker == HELD_OUT_SPEAKER else {}
            lines.append(conversation("<audio>Transcribe the audio.", text, audios=[name], task="asr",
                                      **group))
        write(out / f"{split}.jsonl", lines)


def instructions(real: Path, out: Path) -> None:
    """Alpaca; every tenth is held out."""
    rows = [row for path in sorted(real.glob("*.json"))
            for row in json.loads(path.read_text(encoding="utf-8"))]
    lines = [conversation("\n\n".join(filter(None, (row["instruction"], row["input"]))), row["output"])
             for row in rows]
    write(out / "train.jsonl", [line for i, line in enumerate(lines) if i % 10])
    write(out / "val.jsonl", lines[::10])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--real", required=True, type=Path)
    parser.add_argument("--out", default="data/real", type=Path)
    parser.add_argument("--strings", type=int, default=6000,
                        help="strings of digits for training; a sixth as many are held out")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    easy_vqa(args.real / "easy-vqa", args.out / "easyvqa", np.random.default_rng(args.seed))
    photographs(args.real / "cifar10", args.out / "animals", np.random.default_rng(args.seed))
    digits(args.real / "fsdd", args.out / "digits", args.seed, train=args.strings, val=args.strings // 6)
    instructions(args.real / "alpaca", args.out / "alpaca")


if __name__ == "__main__":
    main()
