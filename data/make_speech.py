"""Synthesises the shipped clips: `audio_text`, and `image_audio_text` with spoken questions about pictures.

    python data/make_speech.py --out data/tiny --only audio_text

This needs the Debian programs flite, festival (with three voices) and espeak-ng; see data/README.md. The
questions of `image_audio_text` come from `questions_{train,val}.jsonl`, which make_images.py writes. The same
seed gives the same words and voices.
"""

import argparse
import json
import multiprocessing
import random
from collections import Counter
from pathlib import Path

from sentences import LEXICON, facts, free_strings, sums, template_sentence
from tqdm import tqdm
from voices import UNSEEN_VOICE, draw_voices, make_clip, write_clips

TRANSCRIBE = ("Transcribe the audio.", "Transcribe.", "What is said?", "Write down what you hear.")
TRAIN = {"free": 3300, "sentence": 1980, "sum": 560, "fact": 760}
VAL = {"free": 150, "sentence": 150, "sum": 75, "fact": 75}
UNSEEN = {"free": 75, "sentence": 75}
MIN_WORD_CLIPS = 12
HELD_OUT_SUMS = 0.15
MAX_REPEATS = 3  # clips of the same sentence, each by another voice
BATCH = 24

Utterance = tuple[str, str, str]  # kind, spoken text, answer ("" for a clip to transcribe)


def turns(user: str, assistant: str) -> list[dict]:
    return [{"role": "user", "content": user}, {"role": "assistant", "content": assistant}]


def asr_sentences(rng: random.Random) -> tuple[list[Utterance], list[Utterance], list[Utterance]]:
    """Sentences to transcribe for train, val and the unseen voice. No held-out sentence is in train."""
    held, repeats = [], Counter()
    wanted = VAL["sentence"] + UNSEEN["sentence"]
    while len(held) < wanted:
        text, slots = template_sentence(rng)
        if slots > 1 and text not in held:  # all sentences of a template with one slot could be held out
            held.append(text)
    while repeats.total() < TRAIN["sentence"]:
        text, _ = template_sentence(rng)
        if text not in held and repeats[text] < MAX_REPEATS:
            repeats[text] += 1
    free = free_strings(TRAIN["free"] + VAL["free"] + UNSEEN["free"], rng)
    cut = TRAIN["free"], TRAIN["free"] + VAL["free"]

    def transcribed(kind: str, texts: list[str]) -> list[Utterance]:
        return [(kind, text, "") for text in texts]

    train = transcribed("free", free[: cut[0]]) + transcribed("sentence", list(repeats.elements()))
    val = transcribed("free", free[cut[0] : cut[1]]) + transcribed("sentence", held[: VAL["sentence"]])
    return train, val, transcribed("free", free[cut[1] :]) + transcribed("sentence", held[VAL["sentence"] :])


def _deal(groups: list[list[tuple[str, str]]], count: int, kind: str, rng: random.Random) -> list[Utterance]:
    """`count` questions, one of each group in turn: facts with many wordings are not asked more often."""
    out: list[Utterance] = []
    while len(out) < count:
        for group in rng.sample(groups, len(groups)):
            out.append((kind, *rng.choice(group)))
    return out[:count]


def questions(rng: random.Random) -> tuple[list[Utterance], list[Utterance]]:
    """Spoken questions for train and val. Held out are pairs of numbers, and wordings of facts."""
    pairs = list(sums().values())
    rng.shuffle(pairs)
    held = int(HELD_OUT_SUMS * len(pairs))
    val = list(dict.fromkeys(_deal(pairs[:held], VAL["sum"], "sum", rng)))  # 67 without the repeated ones
    train = _deal(pairs[held:], TRAIN["sum"], "sum", rng)
    groups = [[(wording, answer) for wording in wordings] for wordings, answer in facts(rng)]
    rng.shuffle(groups)
    left = VAL["fact"]
    for group in groups:
        if left and len(group) > 1:
            val.append(("fact", *group.pop(rng.randrange(len(group)))))
            left -= 1
    return train + _deal(groups, TRAIN["fact"], "fact", rng), val


def pair_voices(utterances: list[Utterance], rng: random.Random) -> list[str]:
    """A training voice for each clip; no sentence is spoken twice by the same voice."""
    voices, taken = draw_voices(len(utterances), rng), set()
    for i, (_, text, _) in enumerate(utterances):
        while (text, voices[i]) in taken:
            j = rng.randrange(i, len(utterances)) if i < len(utterances) - 1 else i
            if j == i:
                voices[i] = draw_voices(8, rng)[0]
            voices[i], voices[j] = voices[j], voices[i]
        taken.add((text, voices[i]))
    return voices


def speak(lines: list[dict], folder: Path, rng: random.Random) -> list[dict]:
    """Write the clips of the lines, with two processes. Returns the lines whose clip is not too long."""
    clips = [make_clip(str(folder / line["audios"][0]), line["spoken"], line["voice"], rng) for line in lines]
    order = sorted(range(len(clips)), key=lambda i: clips[i].voice)
    batches = [[clips[i] for i in order[at : at + BATCH]] for at in range(0, len(order), BATCH)]
    kept, total = set(), 0.0
    with multiprocessing.Pool(2) as pool, tqdm(total=len(clips), unit="clip", desc=folder.name) as bar:
        for batch, seconds in zip(batches, pool.imap(write_clips, batches), strict=True):
            for clip, length in zip(batch, seconds, strict=True):
                if length is not None:
                    kept.add(clip.path)
                    total += length
            bar.update(len(batch))
    size = sum(Path(path).stat().st_size for path in kept)
    print(f"{len(kept)} of {len(clips)} clips, {size / len(kept):.0f} bytes and "
          f"{total / len(kept):.2f} s each, {size / 1e6:.1f} MB in all")
    return [line for line, clip in zip(lines, clips, strict=True) if clip.path in kept]


def write_manifest(path: Path, lines: list[dict]) -> None:
    """Write one JSON object a line, without the internal key `spoken`."""
    with path.open("w", encoding="utf-8") as file:
        for line in lines:
            file.write(json.dumps({k: v for k, v in line.items() if k != "spoken"}) + "\n")


def audio_line(utterance: Utterance, voice: str, rng: random.Random) -> dict:
    """A line of the audio_text manifests, without the clip's path."""
    kind, text, answer = utterance
    if kind in ("sum", "fact"):
        user = "<audio>" + rng.choice(("", "Answer the question."))
        line = {"messages": turns(user, answer), "audios": [], "task": "qa", "transcript": text}
    else:
        line = {"messages": turns("<audio>" + rng.choice(TRANSCRIBE), text), "audios": [], "task": "asr"}
    return line | {"kind": kind, "voice": voice, "spoken": text}


def make_audio_text(out: Path, seed: int) -> None:
    """Clips to transcribe, and spoken questions to answer."""
    rng = random.Random(f"audio_text {seed}")
    train, val, unseen = asr_sentences(rng)
    asked, asked_val = questions(rng)
    train, val = train + asked, val + asked_val
    rng.shuffle(train)
    heard = {text for _, text, _ in train}
    assert not heard & {text for _, text, _ in val + unseen}, "a held-out sentence is in train"
    lines = {
        "train": [audio_line(s, voice, rng) for s, voice in zip(train, pair_voices(train, rng), strict=True)],
        "val": [audio_line(s, voice, rng) for s, voice in zip(val, pair_voices(val, rng), strict=True)]
        + [audio_line(s, UNSEEN_VOICE, rng) | {"group": "unseen_voice"} for s in unseen],
    }
    folder = prepare(out / "audio_text")
    for split, some in lines.items():
        for i, line in enumerate(some, 1):
            line["audios"] = [f"audio/{split}_{i:05d}.ogg"]
    kept = speak(lines["train"] + lines["val"], folder, rng)
    trained = [line for line in kept if "train_" in line["audios"][0]]
    clips = Counter(word for line in trained for word in set(line["spoken"].split()))
    unknown = {word for line in kept for word in line["spoken"].split()} - set(LEXICON)
    assert not unknown, f"words outside of the lexicon: {unknown}"
    rare = {word: clips[word] for word in LEXICON if clips[word] < MIN_WORD_CLIPS}
    assert not rare, f"words in too few training clips: {rare}"
    write_manifest(folder / "train.jsonl", trained)
    write_manifest(folder / "val.jsonl", [line for line in kept if "val_" in line["audios"][0]])


def make_image_audio_text(out: Path, seed: int) -> None:
    """Clips of the questions about pictures that make_images.py wrote."""
    rng = random.Random(f"image_audio_text {seed}")
    folder, lines = prepare(out / "image_audio_text"), []
    for split in ("train", "val"):
        with (folder / f"questions_{split}.jsonl").open(encoding="utf-8") as file:
            asked = [json.loads(row) for row in file]
        for ask, voice in zip(asked, draw_voices(len(asked), rng), strict=True):
            user = rng.choice(("<image><audio>", "<audio><image>", "<image><audio>Answer the question."))
            task = "text" if ask["kind"] == "describe" else "qa"
            if task == "text":
                user = user.removesuffix("Answer the question.")
            lines.append({
                "messages": turns(user, ask["answer"]), "images": [ask["image"]],
                "audios": [f"audio/{Path(ask['image']).stem}.ogg"], "task": task,
                "transcript": ask["question"], "kind": ask["kind"], "voice": voice, "spoken": ask["question"],
            })
    unknown = Counter(w for line in lines for w in line["spoken"].split() if w not in LEXICON)
    if unknown:
        print("words that audio_text does not teach:", dict(unknown))
    kept = speak(lines, folder, rng)
    for split in ("train", "val"):
        write_manifest(folder / f"{split}.jsonl", [x for x in kept if f"{split}_" in x["audios"][0]])


def prepare(folder: Path) -> Path:
    """Create the audio folder, or delete the clips in it."""
    (folder / "audio").mkdir(parents=True, exist_ok=True)
    for old in (folder / "audio").glob("*.ogg"):
        old.unlink()
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("data/tiny"))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", choices=("audio_text", "image_audio_text"))
    args = parser.parse_args()
    if args.only != "image_audio_text":
        make_audio_text(args.out, args.seed)
    if args.only != "audio_text":
        make_image_audio_text(args.out, args.seed)


if __name__ == "__main__":
    main()
