"""Chat with a trained system, from Python or in a terminal.

    python -m omni.chat --ckpt checkpoints/omni_sft_tiny/omni_final.pt --image cat.png "What animal is this?"

Without a question an interactive session starts. /image PATH and /audio PATH attach a file to the next
question, as does a file that is dragged into the terminal; /reset forgets the conversation so far, /quit (or
Ctrl-D) leaves.
"""

import argparse
import json
import sys
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from omni.base import checkpoint
from omni.base.config import SFTConfig, build
from omni.base.console import command
from omni.base.device import autocast, choose_device, computes_in_bf16
from omni.base.errors import MediaError, UserError
from omni.data import conversations
from omni.data.batch import Batch
from omni.data.collate import Collator
from omni.data.media_reader import MediaReader
from omni.data.question import question_parts, spelled_out, take_dragged, typed_path
from omni.data.sample import AUDIO, IMAGE, Sample, flat
from omni.eval.evaluate import Evaluator
from omni.model import exported
from omni.model.generate import Sampling, stream_tokens
from omni.model.load import load_system
from omni.model.omni import OmniNetwork

LARGE = 30_000_000  # weights of a Thinker
LONGEST_ANSWER = 1024  # tokens, where the config of the run sets no limit
COMMANDS = "/image PATH, /audio PATH, /reset, /quit"


class OmniModel(OmniNetwork):
    """A trained system that answers questions, with the config of its run."""

    def __init__(self, config: SFTConfig, *parts, **options):
        super().__init__(*parts, **options)
        self.config = config

    @classmethod
    def load(cls, path: str, device: str = "auto") -> "OmniModel":
        """Load omni_final.pt or omni_best.pt of a run, or an exported folder. UserError if it is neither."""
        content = exported.read(Path(path)) if Path(path).is_dir() else \
            checkpoint.load(path, "omni", "a run of sft_omni.py writes it: omni_final.pt, omni_best.pt")
        config = build(SFTConfig, content.get("config"), f"{path} (config)")
        model = load_system(content, path, partial(cls, config)).to(choose_device(device))
        model._cast_once()
        return model

    def _cast_once(self) -> None:
        """Keep a large system's weights in bf16 if it computes in bf16. Else they are cast for each token."""
        if computes_in_bf16(next(self.parameters()).device, self.config.precision) and \
                sum(p.numel() for p in self.thinker.parameters()) >= LARGE:
            self.requires_grad_(False)
            self.store_frozen(torch.bfloat16, lossy=True)

    def chat(self, messages: list[dict], **options) -> str:
        """The answer to a conversation that ends with the user's turn; `options` are those of `stream`.

        A message has a "role" (system, user or assistant) and a "content": a text, or a list of parts
        {"type": "text", "text": ...}, {"type": "image", "image": PATH}, {"type": "audio", "audio": PATH}.
        UserError if a message, a file or an option can't be used.
        """
        return "".join(self.stream(messages, **options))

    def stream(self, messages: list[dict], **options) -> Iterator[str]:
        """The answer in pieces, as it is generated; `options` are those of `answer`."""
        yield from self.answer(self.prompt(messages), **options)

    def prompt(self, messages: list[dict], reader=None) -> Batch:
        """A conversation as a batch of one prompt. Its media are read by a reader of the class `reader`."""
        try:
            sample = as_sample(messages)
        except ValueError as err:
            raise UserError(str(err)) from None
        try:
            return self.collator(reader or NamingReader)([sample], prompts=True)
        except ValueError as err:
            raise UserError(f"the question is too long: {err}") from None

    def answer(self, prompt: Batch, max_new_tokens: int | None = None, temperature: float = 0.0,
               top_p: float = 1.0, seed: int = 0) -> Iterator[str]:
        """The answer's text, a piece for each token, then what is left. A piece may be empty.

        Greedy decoding unless a temperature is given.
        """
        if max_new_tokens is not None and max_new_tokens < 1:
            raise UserError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
        try:
            choose = Sampling(temperature, top_p, seed)
        except ValueError as err:
            raise UserError(str(err)) from None
        device, ids, sent = next(self.parameters()).device, [], 0  # sent: characters yielded so far
        tokens = stream_tokens(self, prompt.to(device), max_new_tokens or self.longest_answer, choose)
        while True:
            with autocast(device, self.config.precision):  # off while the caller runs
                token = next(tokens, None)
            if token is None or int(token) in self.tokenizer.ends:
                break
            ids.append(int(token))
            text = self.tokenizer.decode(ids)
            complete = not text.endswith("\ufffd")  # else its last character lacks bytes
            yield text[sent:] if complete else ""
            sent = len(text) if complete else sent
        yield self.tokenizer.decode(ids)[sent:]

    @property
    def longest_answer(self) -> int:
        """How many tokens an answer may have where the caller sets no limit."""
        return self.config.max_new_tokens or LONGEST_ANSWER

    def reader(self, kind=MediaReader) -> MediaReader:
        """Reads media in the form that the encoders need."""
        return kind(self.vision_encoder.arch, self.audio_encoder.arch)

    def collator(self, reader=MediaReader) -> Collator:
        """Makes batches of samples; their media are read by a reader of the class `reader`."""
        return Collator(self.tokenizer, self.reader(reader), self.image_tokens, self.audio_encoder.lengths,
                        self.config.max_length)


class NamingReader(MediaReader):
    """A reader whose errors name the file. In a chat no caller adds the name."""

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
    """A conversation as a `Sample` with an empty answer. ValueError if it is malformed.

    A placeholder that is spelled in a text is text.
    """
    entry = conversations.convert(messages)
    for placeholder, key in ((IMAGE, "images"), (AUDIO, "audios")):
        spelled = sum(content.count(placeholder) for _, content in entry["messages"])
        if entry.get(key) and spelled > len(entry[key]):  # else the media would stand at the wrong ones
            messages = spelled_out(messages, placeholder)
            entry = conversations.convert(messages)
        alone = [content for _, content in entry["messages"] if content.strip() == placeholder]
        if alone and not entry.get(key):
            raise ValueError(f"{len(alone)} {placeholder} placeholders for 0 files")
    turns = tuple(entry["messages"])
    if not turns or turns[-1][0] != "user":
        raise ValueError("the last message must be the user's")
    return Sample(flat((*turns, ("assistant", ""))), tuple(entry.get("images", ())),
                  tuple(entry.get("audios", ())))


class Chat:
    """A conversation with a system, and its history. `instructions` are the system message before it."""

    def __init__(self, system: OmniModel, as_json: bool = False, instructions: str | None = None, **options):
        self.system, self.as_json, self.options = system, as_json, options
        self.first = [{"role": "system", "content": instructions}] if instructions else []
        self.messages: list[dict] = []

    def ask(self, question: str, images: list[str], audios: list[str]) -> None:
        """Print the answer as it is generated, or one JSON object. A question that fails is not kept.

        If an answer reaches its longest length before its end, that is printed or is in the object.
        """
        asked = [*self.messages, {"role": "user", "content": question_parts(question, images, audios)}]
        begun, first, pieces = time.time(), None, []
        for piece in self.system.stream([*self.first, *asked], **self.options):
            first = time.time() - begun if first is None else first
            pieces.append(piece)
            if not self.as_json:
                print(piece, end="", flush=True)
        answer, limit = "".join(pieces), self.options.get("max_new_tokens") or self.system.longest_answer
        cut = len(pieces) > limit  # the last piece is what was left, not a token
        print(json.dumps({"question": question, "images": images, "audios": audios, "answer": answer,
                          "cut": cut, "first_token_seconds": round(first, 3),
                          "seconds": round(time.time() - begun, 3)})
              if self.as_json else "", flush=True)
        if cut and not self.as_json:
            print(f"[stopped after {limit:,} tokens, before its end; --max-new-tokens allows more]",
                  file=sys.stderr)
        self.messages = [*asked, {"role": "assistant", "content": answer}]


def converse(chat: Chat, images: list[str], audios: list[str]) -> None:
    """The interactive session. `images` and `audios` go with the first question."""
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
        action, _, path = line.partition(" ")
        path = typed_path(path)
        try:
            if action == "/quit":
                return
            if action == "/reset":
                chat.messages, images, audios = [], [], []
            elif action == "/image":
                reader.pixels(path)  # so that a wrong path is reported at once
                images.append(path)
            elif action == "/audio":
                reader.mel(path)
                audios.append(path)
            else:
                line, more_images, more_audios = take_dragged(line)
                for path in more_images + more_audios:
                    (reader.pixels if path in more_images else reader.mel)(path)
                    print(f"[attached {path}]", file=sys.stderr)
                images, audios = images + more_images, audios + more_audios
                if line in (IMAGE, AUDIO) and more_images + more_audios:
                    continue  # a file alone, for the next question
                if line.startswith("/"):
                    print(f"unknown command {action}; there are {COMMANDS}", file=sys.stderr)
                elif line or audios:
                    asked, images, audios = (line, images, audios), [], []
                    chat.ask(*asked)
        except UserError as err:
            print(f"error: {err}", file=sys.stderr)
        except KeyboardInterrupt:
            print("\nstopped; the question is not kept", file=sys.stderr)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m omni.chat", description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", required=True,
                        help="omni_final.pt or omni_best.pt of a run, or an exported folder")
    parser.add_argument("--image", action="append", default=[], metavar="PATH",
                        help="an image to ask about; may be repeated")
    parser.add_argument("--audio", action="append", default=[], metavar="PATH",
                        help="an audio clip to ask about; may be repeated")
    parser.add_argument("--system", metavar="TEXT", help="the system message before the conversation")
    parser.add_argument("--json", action="store_true", help="print each answer as one line of JSON")
    parser.add_argument("--temperature", type=float, default=0.0,
                        help="sampling temperature; 0 (default) is greedy decoding")
    parser.add_argument("--top-p", type=float, default=1.0,
                        help="sample from the likeliest tokens whose probabilities sum to this")
    parser.add_argument("--seed", type=int, default=0, help="random seed of the sampling")
    parser.add_argument("--max-new-tokens", type=int,
                        help=f"longest answer (default: as in the run's config, else {LONGEST_ANSWER})")
    parser.add_argument("question", nargs="?",
                        help="without it and --audio, an interactive session starts")
    args = parser.parse_args(arguments)
    try:
        Sampling(args.temperature, args.top_p, args.seed)
    except ValueError as err:
        raise UserError(str(err)) from None
    chat = Chat(OmniModel.load(args.ckpt), args.json, args.system, temperature=args.temperature,
                top_p=args.top_p, seed=args.seed, max_new_tokens=args.max_new_tokens)
    images, audios = ([typed_path(path) for path in paths] for paths in (args.image, args.audio))
    if args.question is None and not audios:
        converse(chat, images, audios)
    else:
        chat.ask(args.question or "", images, audios)


def system_evaluator(system: OmniModel) -> Evaluator:
    """The evaluator that training uses, for answering many samples at once."""
    return Evaluator(system, system.collator(), system.config.eval_batch_size, system.config.max_new_tokens,
                     system.config.precision)


if __name__ == "__main__":
    command(main)
