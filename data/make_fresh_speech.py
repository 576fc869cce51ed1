"""Speaks the many clips that stage B learns from: `python data/make_fresh_speech.py`.

They come into `data/fresh/speech/` and are like those of `make_speech.py`, which `sft_omni.py` trains on, but
not shipped: more sentences, words and voices. They are made in parts, and parts that are there are kept, so
it can be stopped and started again. No sentence of `tiny/audio_text/val.jsonl` is spoken, nor is the voice
used that is unseen there.
"""

import argparse
import json
import random
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from zlib import crc32

import assistant
import facts
import soundfile as sf
from fresh_text import QUESTIONS
from make_speech import TRANSCRIBE, turns
from more_voices import LIMIT, NEURAL_VOICE, RATE, draw_voice, spoken
from sentences import LEXICON, NOT_FREE, template_sentence
from talks import HELD_NAMES, NAMES
from tqdm import tqdm
from transcripts import spoken_questions
from wordings import plain

TINY = Path(__file__).parent / "tiny"
KINDS = {  # kind of text -> percent
    "free": 38, "word": 6, "sentence": 23, "question": 11, "fact": 6, "about": 9, "definition": 3,
    "unknown": 4,
}
EVERYDAY = """
again stop start begin listen repeat transcribe voice number people child city street road train bus plane
money job office doctor nurse police kitchen window bathroom bed floor wall roof paper letter message email
television radio video film game ball team sport football dance dinner lunch breakfast coffee sugar salt
butter cheese soup meat potato tomato orange juice wine summer winter spring autumn weather storm cloud
mountain beach island lake sea minute hour month birthday party holiday travel ticket hotel question problem
idea reason because always never often sometimes maybe perhaps really only also too just both every each
another other same different easy difficult important strong weak short tall wide narrow heavy light dark
bright new free buy sell pay work try think feel believe remember forget send bring take keep leave stay
wait turn move carry break cut build draw paint wash wear cry smile speak hope wish between against through
without around during until since while if or but us them him our their its myself one thousand hundred
million second third half
"""
ALOUD = {"ai": "A.I.", "dna": "D.N.A."}  # how a word is written for the synthesisers
PART = 1000  # clips
BATCH = 50
DEV_SHARE = 40  # one in so many sentences with slots is left for choosing a model


def is_dev(text: str) -> bool:
    """Whether a sentence is left for choosing a model, by its hash."""
    return crc32(f"dev {text}".encode()) % DEV_SHARE == 0


@cache
def held_out() -> frozenset:
    """Spoken texts of the held-out clips, and the sums in them: no wording of these is asked."""
    texts = set()
    with (TINY / "audio_text/val.jsonl").open(encoding="utf-8") as file:
        for line in map(json.loads, file):
            texts.add(line.get("transcript", line["messages"][1]["content"]))
    return frozenset(texts | {pair for text in texts if (pair := sum_of(text))})


def sum_of(text: str) -> tuple | None:
    """(sign, number, number) of a text like "what is two plus three", in the order of the alphabet."""
    for sign in ("plus", "minus"):
        left, found, right = text.partition(f" {sign} ")
        if found:
            pair = left.split()[-1], right.split()[0]
            return (sign, *(sorted(pair) if sign == "plus" else pair))
    return None


@cache
def talk_words() -> tuple[str, ...]:
    """Words of small talk, of questions about the assistant and some everyday words that LEXICON lacks."""
    texts = [text for wordings in assistant.INTENTS.values() for text in wordings[:-1]]
    texts += [*assistant.GREETINGS[:-1], *assistant.DEFINITIONS, *assistant.ASKED[:-1]]
    texts += [*assistant.ALONE_LIST, *(n for n in NAMES if n not in HELD_NAMES), EVERYDAY]
    words = {word for text in texts for word in plain(text).split() if word.isalpha() and len(word) > 1}
    return tuple(sorted(words - set(LEXICON)))


class Sentences:
    """Draws (kind, spoken text, answer or "" to transcribe). Equal seeds give equal sentences."""

    def __init__(self, seed: str, dev: bool = False, without: Sequence[str] = ()):
        self.rng, self.dev, self.deck = random.Random(seed), dev, []
        self.kinds = {kind: percent for kind, percent in KINDS.items() if kind not in without}
        self.questions = spoken_questions(random.Random(0))
        self.words = [word for word in LEXICON if word not in NOT_FREE] * 2 + list(talk_words())

    def draw(self, kind: str) -> tuple[str, str, str]:
        while True:
            said, answer = getattr(self, kind)()
            text = plain(said)
            fixed = kind in ("word", "about", "definition")  # too few to leave any out
            if (text.replace(" ", "").isalpha() and "'" not in said and text not in held_out()
                    and sum_of(text) not in held_out() and (fixed or is_dev(text) == self.dev)):
                return kind, said, answer

    def any(self) -> tuple[str, str, str]:
        return self.draw(self.rng.choices(list(self.kinds), list(self.kinds.values()))[0])

    def free(self) -> tuple[str, str]:
        """Random words; each is as frequent as another, those of the held-out clips twice as much."""
        size = self.rng.choice((2, 3, 3, 4, 4, 5, 5, 6, 7))
        if len(self.deck) < size:
            self.deck += self.rng.sample(self.words, len(self.words))
        words, self.deck = self.deck[:size], self.deck[size:]
        return " ".join(words), ""

    def word(self) -> tuple[str, str]:
        greeting = self.rng.random() < 0.3
        return self.rng.choice(assistant.GREETINGS[:-1] if greeting else self.words), ""

    def sentence(self) -> tuple[str, str]:
        return template_sentence(self.rng)[0], ""

    def question(self) -> tuple[str, str]:
        return self.rng.choice(self.questions)

    def fact(self) -> tuple[str, str]:
        """A question that is asked in writing, to be transcribed."""
        relation, subject, answer = facts.draw(self.rng, False)
        return facts.fill(self.rng.choice(QUESTIONS[relation.name]), subject, answer), ""

    def _talk(self, make) -> tuple[str, str]:
        (_, said), (_, answer) = make(self.rng, False)
        return said, answer

    def about(self) -> tuple[str, str]:
        return self._talk(assistant.about)

    def definition(self) -> tuple[str, str]:
        if self.rng.random() < 0.15:  # which everybody asks
            return "What is AI?", assistant.DEFINITIONS["AI"]
        return self._talk(assistant.definition)

    def unknown(self) -> tuple[str, str]:
        return self._talk(assistant.unknown)


def line_of(sentence: tuple[str, str, str], path: str, voice: str, rng: random.Random) -> dict:
    """A line of a manifest, with how the text is written for the synthesisers as `spoken`."""
    kind, said, answer = sentence
    text = plain(said)
    if answer and rng.random() < 0.6:
        asked = "<audio>" + rng.choice(("", "Answer the question."))
        line = {"messages": turns(asked, answer), "audios": [path], "task": "qa", "transcript": text}
    else:
        line = {"messages": turns("<audio>" + rng.choice(TRANSCRIBE), text), "audios": [path], "task": "asr"}
    if voice == NEURAL_VOICE:
        line["group"] = "neural_talk" if kind == "about" else "neural"
    return line | {"kind": kind, "voice": voice, "spoken": aloud(said, rng)}


def aloud(said: str, rng: random.Random) -> str:
    """A text as the synthesisers get it: at times with its punctuation, from which they get a melody."""
    words = (said if rng.random() < 0.5 else plain(said)).split()
    return " ".join(ALOUD.get(plain(word), word).replace("μ", "") for word in words)


def make(folder: Path, name: str, wanted: list[tuple[tuple[str, str, str], str]], seed: str) -> None:
    """Speak (sentence, voice) pairs into `folder/name/` and write their manifest `folder/name.jsonl`."""
    if (folder / f"{name}.jsonl").exists():
        return
    rng, lines = random.Random(f"ways {seed}"), []
    (folder / name).mkdir(parents=True, exist_ok=True)
    for i, (sentence, voice) in enumerate(wanted):
        lines.append(line_of(sentence, f"{name}/{i:04d}.ogg", voice, rng))
    lines.sort(key=lambda line: line["voice"])  # Festival changes its voice less often
    kept = []
    for start in tqdm(range(0, len(lines), BATCH), desc=name, disable=None):
        some = lines[start:start + BATCH]
        waves = spoken([(line.pop("spoken"), line["voice"]) for line in some], rng)
        for line, wave in zip(some, waves, strict=True):
            if len(wave) <= LIMIT * RATE:
                sf.write(folder / line["audios"][0], wave, RATE, format="OGG", subtype="VORBIS",
                         compression_level=rng.uniform(0.6, 1.0))
                kept.append(line)
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in kept)
    (folder / f"{name}.jsonl").write_text(text, encoding="utf-8")


def dev_clips(seed: int, neural: bool) -> list[tuple[tuple[str, str, str], str]]:
    """Held-out sentences, by voices of training or by the neural one, with talk for the latter."""
    sentences = Sentences(f"dev {neural} {seed}", dev=True)
    chosen = [sentences.draw(kind) for kind in ("free", "sentence") * 130 + ("question", "fact") * 40]
    if neural:
        chosen += [sentences.draw("about") for _ in range(100)]
    return [(one, NEURAL_VOICE if neural else draw_voice(sentences.rng)) for one in chosen]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "fresh/speech")
    parser.add_argument("--parts", type=int, default=16, help=f"parts of {PART} clips")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--neural", action="store_true",
                        help="the neural voice: its clips to choose a model by, and --parts to train on")
    parser.add_argument("--without", nargs="+", choices=list(KINDS), default=[], metavar="KIND",
                        help=f"kinds of text that are not spoken: {', '.join(KINDS)}")
    args = parser.parse_args()
    sort = "joe" if args.neural else "train"
    dev = "dev_joe" if args.neural else "dev"
    make(args.out, dev, dev_clips(args.seed, args.neural), f"dev {args.seed}")
    for number in range(args.parts):
        seed = f"{sort} {args.seed} {number}"
        sentences = Sentences(seed, without=args.without)
        wanted = [(sentences.any(), NEURAL_VOICE if args.neural else draw_voice(sentences.rng))
                  for _ in range(PART)]
        make(args.out, f"{sort}_{number:03d}", wanted, seed)
        parts = sorted(args.out.glob(f"{sort}_*.jsonl"))
        whole = "".join(part.read_text(encoding="utf-8") for part in parts)
        (args.out / f"{sort}.jsonl").write_text(whole, encoding="utf-8")


if __name__ == "__main__":
    main()
