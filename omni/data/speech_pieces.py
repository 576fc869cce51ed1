"""The pieces of words that an audio encoder's CTC head outputs."""

from collections.abc import Iterable

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

SIZE = 192  # pieces, if no other number is given


class SpeechPieces:
    """The small vocabulary of an audio encoder's CTC loss: a BPE over lower-case transcripts.

    CTC needs at least one frame per piece. At 12.5 frames a second there are fewer frames than letters, but
    enough for about 190 pieces: the letters and 160 merges.
    """

    def __init__(self, bpe: models.BPE):
        self._bpe = Tokenizer(bpe)
        self._bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
        self._bpe.decoder = decoders.ByteLevel()

    @classmethod
    def train(cls, texts: Iterable[str], size: int | None = None) -> "SpeechPieces":
        """At most `size` pieces (SIZE if it is None), but all letters of the texts."""
        pieces = cls(models.BPE())
        pieces._bpe.train_from_iterator(texts, trainers.BpeTrainer(vocab_size=size or SIZE,
                                                                   show_progress=False))
        return pieces

    @classmethod
    def of(cls, pieces: list[str]) -> "SpeechPieces":
        """The vocabulary of these `pieces`, in the order in which `train` made them.

        A checkpoint holds no merges. The merge that made a piece joined the two parts into which the earlier
        merges split it.
        """
        ids, merges = {piece: i for i, piece in enumerate(pieces)}, []
        for piece in pieces:
            if len(piece) > 1:
                parts = models.BPE(ids, merges).tokenize(piece)
                merges.append(tuple(part.value for part in parts))
        return cls(models.BPE(ids, merges))

    @property
    def pieces(self) -> list[str]:
        return [self._bpe.id_to_token(i) for i in range(len(self))]

    def __len__(self) -> int:
        return self._bpe.get_vocab_size()

    def spells(self, text: str) -> bool:
        """Whether there is a piece for each letter."""
        return self.decode(self.encode(text)) == text.strip()

    def encode(self, text: str) -> list[int]:
        """The text as ids of pieces. Letters that no piece has are dropped."""
        return self._bpe.encode(text).ids

    def decode(self, ids) -> str:
        return self._bpe.decode([int(i) for i in ids]).strip()

    def text(self, piece_id: int) -> str:
        """One piece as text, with a space before it if it begins a word."""
        return self._bpe.decode([piece_id])
