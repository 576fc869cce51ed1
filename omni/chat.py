"""Talk to a trained system.

    python -m omni.chat --ckpt checkpoints/omni_sft_tiny/omni_final.pt --image cat.png "What animal is this?"

Without a question an interactive session starts: /image PATH and /audio PATH add a medium to the next
question, /reset forgets the talk so far, /quit (or Ctrl-D) leaves.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator

import torch

from omni import checkpoint
from omni.config import SFTConfig, build
from omni.console import command
from omni.data import conversations
from omni.data.collate import Collator
from omni.data.media_reader import MediaReader
from omni.data.sample import AUDIO, IMAGE, Sample, flat
from omni.data.tokenizer import split_placeholders
from omni.device import autocast, choose_device
from omni.errors import MediaError, UserError
from omni.eval.evaluate import Evaluator
from omni.model.generate import Sampling, stream_tokens
from omni.model.load import load_system
from omni.model.omni import OmniNetwork

COMMANDS = "/image PATH, /audio PATH, /reset, /quit"


class OmniModel(OmniNetwork):
    """The whole system of a finished run, ready to answer."""

    @classmethod
    def load(cls, path: str, device: str = "auto") -> "OmniModel":
        """The system in `path` (omni_final.pt or omni_best.pt of a run). UserError if it holds none."""
        content = checkpoint.load(path, "omni", "a run of sft_omni.py writes it: omni_final.pt, omni_best.pt")
        system = load_system(content, path, cls)
        system.config = build(SFTConfig, content.get("config"), f"{path} (config)")
        return system.to(choose_device(device))

    def chat(self, messages: list[dict], **options) -> str:
        """The answer to a talk that ends with the user's turn; `options` are those of `stream`.

        A content is a text, or a list of parts: {"type": "text", "text": ...}, {"type": "image", "image":
        PATH}, {"type": "audio", "audio": PATH}. UserError if something of it can't be used.
        """
        return "".join(self.stream(messages, **options))

    def stream(self, messages: list[dict], max_new_tokens: int | None = None, temperature: float = 0.0,
               top_p: float = 1.0, seed: int = 0) -> Iterator[str]:
        """The answer piece by piece as it is made. Greedy unless a temperature is given."""
        if max_new_tokens is not None and max_new_tokens < 1:
            raise UserError(f"max_new_tokens must be at least 1, and {max_new_tokens} was given")
        try:
            sample, choose = as_sample(messages), Sampling(temperature, top_p, seed)
        except ValueError as err:
            raise UserError(str(err)) from None
        device, ids, told = next(self.parameters()).device, [], 0
        with torch.inference_mode(), autocast(device, self.config.precision):
            batch = self.collator(NamingReader)([sample], prompts=True).to(device)
        tokens = stream_tokens(self, batch, max_new_tokens or self.config.max_new_tokens, choose)
        while True:
            with autocast(device, self.config.precision):  # not held while the caller has the word
                token = next(tokens, None)
            if token is None or int(token) == self.tokenizer.end:
                break
            ids.append(int(token))
            text = self.tokenizer.decode(ids)
            if not text.endswith("\ufffd"):  # the rest of a letter is still to come
                yield text[told:]
                told = len(text)
        yield self.tokenizer.decode(ids)[told:]

    def reader(self, kind=MediaReader) -> MediaReader:
        return kind(self.vision_encoder.arch.image_size, level=self.audio_encoder.arch.level)

    def collator(self, reader=MediaReader) -> Collator:
        return Collator(self.tokenizer, self.reader(reader), self.image_tokens, self.audio_encoder.lengths,
                        self.config.max_length)


class NamingReader(MediaReader):
    """Says which file can't be used, not only why."""

    def pixels(self, path: str, take: int = 0) -> torch.Tensor:
        try:
            return super().pixels(path, take)
        except MediaError as err:
            raise UserError(f"{path}: {err}") from None

    def mel(self, path: str, take: int = 0) -> torch.Tensor:
        try:
            return super().mel(path, take)
        except MediaError as err:
            raise UserError(f"{path}: {err}") from None


def as_sample(messages: list[dict]) -> Sample:
    """A talk as the data's `Sample` with an empty answer. ValueError says what is wrong with it."""
    entry = conversations.convert({"messages": messages})[1]
    turns = tuple(entry["messages"])
    media = {mark: tuple(entry[key]) if key in entry else () for mark, key in
             ((IMAGE, "images"), (AUDIO, "audios"))}
    for mark, paths in media.items():
        places = sum(content.count(mark) for _, content in turns)
        if places != len(paths):
            raise ValueError(f"{places} {mark} placeholders for {len(paths)} files")
    if not turns or turns[-1][0] != "user":
        raise ValueError("the last message must be the user's")
    return Sample(flat((*turns, ("assistant", ""))), media[IMAGE], media[AUDIO])


def question_parts(question: str, images: list[str], audios: list[str]) -> list[dict]:
    """A question's content: its media stand before it, or where its <image> and <audio> say."""
    left = {IMAGE: list(images), AUDIO: list(audios)}
    counts = {mark: question.count(mark) for mark in left}
    parts = []
    for mark, paths in left.items():
        if counts[mark] > len(paths):
            raise UserError(f"the question has more {mark} placeholders than files were given")
        parts += [medium(mark, paths.pop(0)) for _ in range(len(paths) - counts[mark])]
    for i, piece in enumerate(split_placeholders(question)):
        parts.append(medium(piece, left[piece].pop(0)) if i % 2 else {"type": "text", "text": piece})
    return parts


def medium(mark: str, path: str) -> dict:
    kind = mark[1:-1]
    return {"type": kind, kind: path}


class Chat:
    """A talk with a system: questions with media go in, answers come out, the history is kept."""

    def __init__(self, system: OmniModel, as_json: bool = False, **options):
        self.system, self.as_json, self.options = system, as_json, options
        self.messages: list[dict] = []

    def ask(self, question: str, images: list[str], audios: list[str]) -> None:
        """Print the answer as it comes, or one JSON object. Nothing is remembered of what fails."""
        asked = [*self.messages, {"role": "user", "content": question_parts(question, images, audios)}]
        begun, first, pieces = time.time(), None, []
        for piece in self.system.stream(asked, **self.options):
            first = time.time() - begun if first is None else first
            pieces.append(piece)
            if not self.as_json:
                print(piece, end="", flush=True)
        answer = "".join(pieces)
        print(json.dumps({"question": question, "images": images, "audios": audios, "answer": answer,
                          "first_token_seconds": round(first, 3), "seconds": round(time.time() - begun, 3)})
              if self.as_json else "", flush=True)
        self.messages = [*asked, {"role": "assistant", "content": answer}]


def converse(chat: Chat, images: list[str], audios: list[str]) -> None:
    """The interactive session. `images` and `audios` belong to the first question."""
    if not chat.as_json:
        print(f"Ask something. {COMMANDS}")
    reader = chat.system.reader(NamingReader)
    images, audios = list(images), list(audios)
    while True:
        try:
            line = input("" if chat.as_json else "> ").strip()
        except (EOFError, KeyboardInterrupt):
            print("", file=sys.stderr)
            return
        command, _, path = line.partition(" ")
        path = path.strip().strip("\"'")
        try:
            if command == "/quit":
                return
            if command == "/reset":
                chat.messages, images, audios = [], [], []
            elif command == "/image":
                reader.pixels(path)  # so that a wrong path is told at once
                images.append(path)
            elif command == "/audio":
                reader.mel(path)
                audios.append(path)
            elif command.startswith("/"):
                print(f"{command} is none of: {COMMANDS}", file=sys.stderr)
            elif line or audios:
                asked, images, audios = (line, images, audios), [], []
                chat.ask(*asked)
        except UserError as err:
            print(f"that can't be used: {err}", file=sys.stderr)
        except KeyboardInterrupt:
            print("\nstopped; that question is forgotten", file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m omni.chat", description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", required=True, help="omni_final.pt or omni_best.pt of a run")
    parser.add_argument("--image", action="append", default=[], metavar="PATH",
                        help="a picture (may be repeated)")
    parser.add_argument("--audio", action="append", default=[], metavar="PATH",
                        help="a clip (may be repeated)")
    parser.add_argument("--json", action="store_true", help="each answer as one line of JSON, for scripts")
    parser.add_argument("--temperature", type=float, default=0.0, help="0 (default): the likeliest token")
    parser.add_argument("--top-p", type=float, default=1.0, help="share of the likeliest tokens drawn from")
    parser.add_argument("--seed", type=int, default=0, help="of the draws")
    parser.add_argument("--max-new-tokens", type=int, help="default: as the run was evaluated")
    parser.add_argument("question", nargs="?",
                        help="without it, and without --audio, an interactive session starts")
    args = parser.parse_args(arguments)
    try:
        Sampling(args.temperature, args.top_p, args.seed)
    except ValueError as err:
        raise UserError(str(err)) from None
    chat = Chat(OmniModel.load(args.ckpt), args.json, temperature=args.temperature, top_p=args.top_p,
                seed=args.seed, max_new_tokens=args.max_new_tokens)
    if args.question is None and not args.audio:
        converse(chat, args.image, args.audio)
    else:
        chat.ask(args.question or "", args.image, args.audio)


def system_evaluator(system: OmniModel) -> Evaluator:
    """What answers many samples at once: the code that scored the system while it was trained."""
    return Evaluator(system, system.collator(), system.config.eval_batch_size, system.config.max_new_tokens,
                     system.config.precision)


if __name__ == "__main__":
    command(main)
