"""Text to token ids and back, the chat template, and the special tokens."""

import re
from functools import lru_cache

from tokenizers import Tokenizer as BPETokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from omni.config import AudioArch, VisionArch
from omni.data.batch import IGNORE, MEL_FRAMES_PER_SECOND
from omni.data.sample import AUDIO, IMAGE

PAD, SYSTEM, USER, ASSISTANT, END = "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIALS = (PAD, SYSTEM, USER, ASSISTANT, END, IMAGE, AUDIO)
MERGE = 2  # each MERGE x MERGE square of patches becomes one token of the Thinker
ROLES = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
_PLACEHOLDER = re.compile(f"({re.escape(IMAGE)}|{re.escape(AUDIO)})")


class Tokenizer:
    """Byte-level BPE, so any text is decoded unchanged, with a special token for each role.

    A turn is `<|role|> content <|end|>`; an answer is trained on together with its `<|end|>`. ValueError if
    the tokenizer lacks a special token.
    """

    def __init__(self, json_text: str):
        self.json_text = json_text
        self.bpe = BPETokenizer.from_str(json_text)
        self.bpe.encode_special_tokens = True  # special tokens written in a user's text are plain text
        self.ids = {name: self.bpe.token_to_id(name) for name in SPECIALS}
        missing = [name for name, token_id in self.ids.items() if token_id is None]
        if missing:
            raise ValueError(f"tokenizer lacks the special tokens {missing}")
        self.pad, self.end = self.ids[PAD], self.ids[END]
        self.image, self.audio = self.ids[IMAGE], self.ids[AUDIO]

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

    def __len__(self) -> int:
        return self.bpe.get_vocab_size()

    def encode(self, text: str) -> list[int]:
        return self.bpe.encode(text, add_special_tokens=False).ids

    def decode(self, ids) -> str:
        """The text of `ids` without special tokens."""
        return self.bpe.decode([int(i) for i in ids], skip_special_tokens=True)

    def chat(self, messages, image_tokens, audio_tokens, untrained=()) -> tuple[list[int], list[int]]:
        """(ids, next-token labels) of a conversation, equally long.

        `image_tokens` and `audio_tokens` hold the number of tokens of each medium in order: its placeholder
        is repeated that often, and is text where no medium is left. A label is the next token if that is part of an answer or ends it, otherwise
        IGNORE. Answers whose message indices are in `untrained` are ignored too. If the last turn is not the
        assistant's, the ids end with `<|assistant|>`, so that the model answers next.
        """
        images, audios = iter(image_tokens), iter(audio_tokens)
        ids: list[int] = []
        answer: list[bool] = []
        for index, (role, content) in enumerate(messages):
            turn = [self.ids[ROLES[role]]]
            for i, piece in enumerate(split_placeholders(content)):
                if piece == IMAGE and i % 2 and (count := next(images, None)) is not None:
                    turn += [self.image] * count
                elif piece == AUDIO and i % 2 and (count := next(audios, None)) is not None:
                    turn += [self.audio] * count
                elif piece:
                    turn += self._encode_cached(piece)
            ids += turn + [self.end]
            answer += [False] + [role == "assistant" and index not in untrained] * len(turn)
        if not messages or messages[-1][0] != "assistant":
            ids.append(self.ids[ASSISTANT])
            answer.append(False)
        labels = [ids[t + 1] if answer[t + 1] else IGNORE for t in range(len(ids) - 1)] + [IGNORE]
        return ids, labels

    @lru_cache(maxsize=65536)  # noqa: B019 - one tokenizer lives as long as its run
    def _encode_cached(self, text: str) -> list[int]:
        return self.encode(text)


def split_placeholders(content: str) -> list[str]:
    """"a<image>b" -> ["a", "<image>", "b"]: items of odd index are placeholders, the others text."""
    return _PLACEHOLDER.split(content) if "<" in content else [content]


def image_tokens(arch: VisionArch) -> int:
    """Thinker tokens per image."""
    return (arch.image_size // arch.patch_size // MERGE) ** 2


def audio_tokens(arch: AudioArch, mel_frames):
    """Thinker tokens of a clip of `mel_frames` frames, an int or a tensor of ints."""
    strides = round(MEL_FRAMES_PER_SECOND / arch.frames_per_second).bit_length() - 1
    for _ in range(strides):  # each stride halves the frames, rounding up
        mel_frames = (mel_frames + 1) // 2
    return mel_frames


class SpeechPieces:
    """The small vocabulary of an audio encoder's CTC loss: a BPE over lower-case transcripts.

    CTC needs at least one frame per piece. At 12.5 frames a second there are fewer frames than letters, but
    enough for about 190 pieces: the letters and 160 merges.
    """

    def __init__(self, texts, size: int):
        self._bpe = BPETokenizer(models.BPE())
        self._bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        self._bpe.decoder = decoders.ByteLevel()
        self._bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size, show_progress=False))
        self.pieces = [self._bpe.id_to_token(i) for i in range(self._bpe.get_vocab_size())]

    def __len__(self) -> int:
        return len(self.pieces)

    def encode(self, text: str) -> list[int]:
        """The text as ids of pieces. Letters that were not in the training texts are dropped."""
        return self._bpe.encode(text).ids

    def decode(self, ids) -> str:
        return self._bpe.decode([int(i) for i in ids]).strip()

    def text(self, piece_id: int) -> str:
        """One piece as text, with a space before it if it begins a word."""
        return self._bpe.decode([piece_id])
