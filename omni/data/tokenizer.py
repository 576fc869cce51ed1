"""Text to token ids and back, the chat template, and the special tokens."""

import json
import re
from collections.abc import Sequence
from functools import cached_property, lru_cache
from pathlib import Path

import torch
from tokenizers import Tokenizer as BPETokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from omni.base.config import AudioArch, SiglipArch, VisionArch, WhisperArch
from omni.base.errors import UserError
from omni.data.batch import IGNORE, MEL_FRAMES_PER_SECOND
from omni.data.chat_templates import OWN, ROLES, ChatTemplate
from omni.data.sample import AUDIO, IMAGE

PAD, SYSTEM, USER, ASSISTANT, END = "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIALS = (PAD, SYSTEM, USER, ASSISTANT, END, IMAGE, AUDIO)
_PLACEHOLDER = re.compile(f"({re.escape(IMAGE)}|{re.escape(AUDIO)})")


class Tokenizer:
    """Byte-level BPE, so any text is decoded unchanged, and the chat template: our own, or open weights'.

    An answer is trained on together with the token that ends its turn. ValueError if the tokenizer lacks a
    special token or can't be used.

    `rows` is the number of embeddings of the model that a foreign tokenizer is for: the placeholders of media
    are ids beyond them, since features are written over these tokens and they are never predicted. `ends` are
    ids that end an answer besides the template's. `config_text` is the tokenizer_config.json, for export.
    """

    def __init__(self, json_text: str, template: ChatTemplate | None = None, rows: int | None = None,
                 ends: Sequence[int] = (), config_text: str | None = None):
        self.json_text, self.rows, self.config_text = json_text, rows, config_text
        self.template = template or OWN
        self.bpe = BPETokenizer.from_str(json_text)
        self.bpe.encode_special_tokens = True  # special tokens written in a user's text are plain text
        self.bpe.no_truncation()
        self.bpe.no_padding()
        if not isinstance(self.bpe.decoder, decoders.ByteLevel):
            raise ValueError("the tokenizer is not a byte-level BPE")
        form, own = self.template.form, self.template.family == "own"
        names = form.specials()
        self.ids = {name: self.bpe.token_to_id(name) for name in (SPECIALS if own else names)}
        missing = [name for name, token_id in self.ids.items() if token_id is None]
        if missing:
            raise ValueError(f"tokenizer lacks the special tokens {missing}")
        self.end = self.ids[form.end]  # ends a turn
        self.pad = self.ids[PAD] if own else self.end
        if own:
            self.image, self.audio = self.ids[IMAGE], self.ids[AUDIO]
        elif rows is None or rows <= max(self.bpe.get_vocab().values()):
            raise ValueError(f"{len(self)} tokens, but only {rows} embeddings")
        else:
            self.image, self.audio = rows, rows + 1
        self.ends = tuple(dict.fromkeys([self.end, *ends]))
        if not all(type(i) is int and 0 <= i < (rows or len(self)) for i in self.ends):
            raise ValueError(f"the ids that end an answer {list(ends)} are not all tokens")
        self.opens_answer = self.ids[names[0]]  # its last occurrence opens the last turn
        self._first, self._after = self._spelled(form.first), self.encode(form.after)
        self._openings = {role: self._spelled(form.opening.format(role=role)) for role in ROLES}
        self.closing = 1 + len(self._after)  # tokens after a turn's content

    def __setstate__(self, state: dict):
        self.__dict__ = state
        self.bpe.encode_special_tokens = True  # a pickled BPE loses it

    @classmethod
    def train(cls, texts, vocab_size: int) -> "Tokenizer":
        """A byte-level BPE trained on `texts`. Each digit is one token, so that sums can be learned."""
        bpe = BPETokenizer(models.BPE())
        bpe.pre_tokenizer = pre_tokenizers.Sequence(
            [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)])
        bpe.decoder = decoders.ByteLevel()
        bpe.train_from_iterator(texts, trainers.BpeTrainer(
            vocab_size=vocab_size, special_tokens=list(SPECIALS), show_progress=False,
            initial_alphabet=pre_tokenizers.ByteLevel.alphabet()))
        return cls(bpe.to_str())

    @classmethod
    def from_folder(cls, folder: Path, rows: int, ends: Sequence[int] = ()) -> "Tokenizer":
        """The tokenizer of a folder of open weights. UserError if it can't be used."""
        path = folder / "tokenizer.json"
        json_text = _read(path)
        if json_text is None:
            raise UserError(f"{folder}: tokenizer.json is missing; it lies beside the weights, or is made "
                            "by transformers: AutoTokenizer.from_pretrained(NAME).save_pretrained(FOLDER)")
        config_text = _read(folder / "tokenizer_config.json")
        try:
            config = json.loads(config_text or "{}")
            if not isinstance(config, dict):
                raise ValueError("not a JSON object")
        except (ValueError, RecursionError) as err:
            raise UserError(f"{folder / 'tokenizer_config.json'}: {str(err)[:120]}") from None
        jinja = _read(folder / "chat_template.jinja")
        try:
            bpe = BPETokenizer.from_str(json_text)
        except Exception as err:  # tokenizers raises plain Exception
            raise UserError(f"{path}: no usable tokenizer ({str(err)[:80]})") from None
        where = folder / ("tokenizer_config.json" if jinja is None else "chat_template.jinja")
        try:
            template = ChatTemplate.recognise(config, jinja, lambda token: bpe.token_to_id(token) is not None)
            where = path
            return cls(json_text, template, rows, ends, config_text)
        except ValueError as err:
            raise UserError(f"{where}: {err}") from None

    def content(self) -> dict:
        """What a checkpoint holds: `from_content` makes the tokenizer from it. Plain JSON types."""
        return {"json_text": self.json_text, "template": self.template.to_dict(), "rows": self.rows,
                "ends": list(self.ends), "config_text": self.config_text}

    @classmethod
    def from_content(cls, content: dict | str) -> "Tokenizer":
        """From `content()`, or the JSON text that older checkpoints hold. ValueError if it is neither."""
        if isinstance(content, str):
            return cls(content)
        kinds = {"json_text": str, "template": dict, "rows": int | None, "ends": list,
                 "config_text": str | None}
        if not isinstance(content, dict) or content.keys() != kinds.keys() or not all(
                isinstance(content[key], kind) for key, kind in kinds.items()):
            raise ValueError(f"a tokenizer needs {', '.join(kinds)}")
        return cls(**content | {"template": ChatTemplate.from_dict(content["template"])})

    def __len__(self) -> int:
        return self.bpe.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        return self.bpe.encode(text, add_special_tokens=False).ids

    def decode(self, ids) -> str:
        """The text of `ids` without special tokens."""
        return self.bpe.decode([int(i) for i in ids], skip_special_tokens=True)

    @lru_cache(maxsize=4)  # noqa: B019 - one tokenizer lives as long as its run
    def unfilled(self, rows: int) -> torch.Tensor | None:
        """(rows,) True for embeddings that stand for no token, so can't be chosen; None if there are none."""
        if len(self) == rows:
            return None
        unfilled = torch.ones(rows, dtype=torch.bool)
        unfilled[list(self.bpe.get_vocab().values())] = False
        return unfilled

    def chat(self, messages, image_tokens, audio_tokens, untrained=()) -> tuple[list[int], list[int]]:
        """(ids, next-token labels) of a conversation, equally long.

        `image_tokens` and `audio_tokens` hold the number of tokens of each medium in order: its placeholder
        is repeated that often, and is text where no medium is left. A label is the next token if that is part
        of an answer or ends it, otherwise IGNORE. Answers whose message indices are in `untrained` are
        ignored too. If the last turn is not the assistant's, the ids end with what opens it, so that the
        model answers next.
        """
        images, audios = iter(image_tokens), iter(audio_tokens)
        ids = [*self._first]
        answer = [False] * len(ids)
        for index, role, given, content in self.template.turns(messages):
            prompt = self._openings[role]
            if role == "assistant":  # encoded apart, so that training and generation see the same prompt
                prompt = prompt + self._encode_cached(given)
            else:
                content = given + content
            body = []
            for i, piece in enumerate(split_placeholders(content)):
                if piece == IMAGE and i % 2 and (count := next(images, None)) is not None:
                    body += [self.image] * count
                elif piece == AUDIO and i % 2 and (count := next(audios, None)) is not None:
                    body += [self.audio] * count
                elif piece:
                    body += self._encode_cached(piece)
            body.append(self.end)
            ids += prompt + body + self._after
            trained = role == "assistant" and index not in untrained
            answer += [False] * len(prompt) + [trained] * len(body) + [False] * len(self._after)
        if not messages or messages[-1][0] != "assistant":
            ids += self._openings["assistant"] + self._encode_cached(self.template.prompt)
            answer += [False] * (len(ids) - len(answer))
        labels = [ids[t + 1] if answer[t + 1] else IGNORE for t in range(len(ids) - 1)] + [IGNORE]
        return ids, labels

    def lead(self, ids: list[int]) -> int:
        """How many tokens at the front of a conversation belong to the template: they are never cut.

        These are the system turn that the template adds, and what opens the first turn of the conversation.
        """
        front = next(front for front in self._fronts if ids[:len(front)] == front)
        rest = ids[len(front):]
        return len(front) + max(_equal_at_front(rest, header) for header in self._headers)

    @cached_property
    def _fronts(self) -> list[list[int]]:
        """What may stand before the first turn of a conversation, longest first."""
        added = [self.encode(given + content) for _, _, given, content in self.template.turns(())]
        return [[*self._first, *self._openings["system"], *text, self.end, *self._after]
                for text in added] + [self._first]

    @cached_property
    def _headers(self) -> list[list[int]]:
        return [self._openings[role] + self.encode(self.template.given(role)) for role in ROLES]

    def most_tokens(self, turns: Sequence[str]) -> int:
        """A quick upper bound of the tokens of a Sample's `turns` without its media.

        A token is at least one byte of text, but a normaliser such as NFC may treble the bytes of a text.
        """
        text, form = "".join(turns), self.template.form
        size = len(text.encode()) * (3 if self.bpe.normalizer and not text.isascii() else 1)
        if self.template.family == "own":  # a role has no more tokens than letters
            return size
        fixed = len(self._first) + len(self._fronts[0]) + len(self.template.preamble.encode())
        turn = len((form.opening + form.given + form.end + form.after).encode())
        return size + fixed + len(turns) // 2 * (turn + len(self.template.prompt))

    def _spelled(self, text: str) -> list[int]:
        """The ids of a part of the template, in which special tokens are spelled out."""
        ids = []
        for piece in re.split("(" + "|".join(map(re.escape, self.ids)) + ")", text):
            ids += [self.ids[piece]] if piece in self.ids else self.encode(piece)
        return ids

    @lru_cache(maxsize=65536)  # noqa: B019 - one tokenizer lives as long as its run
    def _encode_cached(self, text: str) -> list[int]:
        return self.encode(text)


def _read(path: Path) -> str | None:
    """The text of a file, None if there is none. UserError if it can't be read."""
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        return None
    except (OSError, UnicodeDecodeError) as err:
        raise UserError(f"{path}: can't be read ({str(err)[:80]})") from None


def _equal_at_front(a: list[int], b: list[int]) -> int:
    """How many items of `a` and `b` are equal before the first that differs."""
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def split_placeholders(content: str) -> list[str]:
    """"a<image>b" -> ["a", "<image>", "b"]: items of odd index are placeholders, the others text."""
    return _PLACEHOLDER.split(content) if "<" in content else [content]


def patch_grid(arch: VisionArch | SiglipArch) -> int:
    """Patches a side of an image. UserError if they can't be merged into tokens without a remainder."""
    grid = arch.image_size // arch.patch_size
    if not grid or grid % arch.merge:
        raise UserError(f"image_size {arch.image_size} makes {grid} patches of {arch.patch_size} a side, "
                        f"which can't be merged {arch.merge} by {arch.merge}; choose another merge or size")
    return grid


def image_tokens(arch: VisionArch | SiglipArch) -> int:
    """Thinker tokens per image."""
    return (patch_grid(arch) // arch.merge) ** 2


def audio_tokens(arch: AudioArch | WhisperArch, mel_frames):
    """Thinker tokens of a clip of `mel_frames` frames, an int or a tensor of ints."""
    if isinstance(arch, WhisperArch):
        return ((mel_frames + 1) // 2 + arch.stack - 1) // arch.stack
    strides = round(MEL_FRAMES_PER_SECOND / arch.frames_per_second).bit_length() - 1
    for _ in range(strides):  # each stride halves the frames, rounding up
        mel_frames = (mel_frames + 1) // 2
    return mel_frames
