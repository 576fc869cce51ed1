"""Text to token ids and back, the chat template, and the special and placeholder tokens."""

import re
from functools import lru_cache

from tokenizers import Tokenizer as BPETokenizer
from tokenizers import decoders, models, pre_tokenizers, trainers

from omni.config import AudioArch, VisionArch
from omni.data.batch import IGNORE, MEL_FRAMES_PER_SECOND
from omni.data.sample import AUDIO, IMAGE

PAD, SYSTEM, USER, ASSISTANT, END = "<|pad|>", "<|system|>", "<|user|>", "<|assistant|>", "<|end|>"
SPECIALS = (PAD, SYSTEM, USER, ASSISTANT, END, IMAGE, AUDIO)
MERGE = 2  # patches of a MERGE x MERGE square become one token of the Thinker
ROLES = {"system": SYSTEM, "user": USER, "assistant": ASSISTANT}
_PLACEHOLDER = re.compile(f"({re.escape(IMAGE)}|{re.escape(AUDIO)})")


class Tokenizer:
    """Byte-level BPE (any text goes in and comes out unchanged) with one special token a role.

    A turn reads `<|role|> content <|end|>`; the answer is trained on together with its `<|end|>`.
    """

    def __init__(self, json_text: str):
        self.json_text = json_text
        self.bpe = BPETokenizer.from_str(json_text)
        self.bpe.encode_special_tokens = True  # a special token spelled out in a user's text stays text
        self.ids = {name: self.bpe.token_to_id(name) for name in SPECIALS}
        missing = [name for name, token_id in self.ids.items() if token_id is None]
        if missing:
            raise ValueError(f"tokenizer lacks the special tokens {missing}")
        self.pad, self.end = self.ids[PAD], self.ids[END]
        self.image, self.audio = self.ids[IMAGE], self.ids[AUDIO]

    @classmethod
    def train(cls, texts, vocab_size: int) -> "Tokenizer":
        """A byte-level BPE over `texts`; digits stay single, so that sums can be learned."""
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
        """The text of `ids`; special tokens are left out."""
        return self.bpe.decode([int(i) for i in ids], skip_special_tokens=True)

    def chat(self, messages, image_tokens, audio_tokens, untrained=()) -> tuple[list[int], list[int]]:
        """Ids and next-token labels of a conversation.

        `image_tokens` and `audio_tokens` give the number of features of each medium in order: its placeholder
        is repeated that often. Labels are IGNORE except where the next token belongs to an answer (or ends
        it); the answers whose numbers among the messages are `untrained` stay IGNORE too. If the last turn is
        not the assistant's, the ids end with `<|assistant|>`, ready to be answered.
        """
        images, audios = iter(image_tokens), iter(audio_tokens)
        ids: list[int] = []
        answer: list[bool] = []
        for number, (role, content) in enumerate(messages):
            turn = [self.ids[ROLES[role]]]
            for i, piece in enumerate(split_placeholders(content)):
                if piece == IMAGE and i % 2:
                    turn += [self.image] * next(images)
                elif piece == AUDIO and i % 2:
                    turn += [self.audio] * next(audios)
                elif piece:
                    turn += self._encode_cached(piece)
            ids += turn + [self.end]
            answer += [False] + [role == "assistant" and number not in untrained] * len(turn)
        if not messages or messages[-1][0] != "assistant":
            ids.append(self.ids[ASSISTANT])
            answer.append(False)
        labels = [ids[t + 1] if answer[t + 1] else IGNORE for t in range(len(ids) - 1)] + [IGNORE]
        return ids, labels

    @lru_cache(maxsize=65536)  # noqa: B019 - one tokenizer lives as long as its run
    def _encode_cached(self, text: str) -> list[int]:
        return self.encode(text)


def split_placeholders(content: str) -> list[str]:
    """Text and placeholders by turns: "a<image>b" -> ["a", "<image>", "b"]; odd places hold placeholders."""
    return _PLACEHOLDER.split(content) if "<" in content else [content]


def image_tokens(arch: VisionArch) -> int:
    """Tokens of the Thinker a picture."""
    return (arch.image_size // arch.patch_size // MERGE) ** 2


def audio_tokens(arch: AudioArch, mel_frames):
    """Tokens of the Thinker of clips of so many mel frames, 100 a second (a tensor or an int)."""
    strides = round(MEL_FRAMES_PER_SECOND / arch.frames_per_second).bit_length() - 1
    for _ in range(strides):  # each halves the frames, rounded up
        mel_frames = (mel_frames + 1) // 2
    return mel_frames


class SpeechPieces:
    """The few pieces that an audio encoder names: a BPE of its own over lower-case transcripts.

    At 12.5 frames a second there are fewer frames than letters; some 190 pieces (the letters and 160 merges)
    fit.
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
        """Piece numbers of the text; a letter never seen when the pieces were made is left out."""
        return self._bpe.encode(text).ids

    def decode(self, numbers) -> str:
        return self._bpe.decode([int(n) for n in numbers]).strip()

    def text(self, number: int) -> str:
        """One piece as it stands in a text: with the space before it, if it begins a word."""
        return self._bpe.decode([number])
