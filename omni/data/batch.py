"""`Batch`: the samples of a step end to end, and where each begins. This is what data and model agree on.

The letters of the shapes, everywhere in this project: N tokens of a batch, R its rows (one a sample, and last
the padding), A answer tokens, I image tokens, U audio tokens, D width of the Thinker, V vocabulary, H heads,
K key heads, d width of a head, M images, P patches an image, C clips, F mel frames and S features a clip.
"""

from dataclasses import dataclass, fields, is_dataclass, replace

import torch

IGNORE = -100  # label of a position that is not trained on
MELS = 80  # mel bands of a clip
MEL_FRAMES_PER_SECOND = 100


@dataclass(frozen=True)
class BinGroup:
    """Bins of the same length. `mask` (bins, 1, length, length) is True where a query may look.

    Without a mask each bin begins with its only row, so causal attention is enough.
    """

    bins: int
    length: int
    mask: torch.Tensor | None


@dataclass(frozen=True)
class PackedLayout:
    """Where the rows of N packed tokens lie. The last row is padding, so R is one more than the samples.

    Attention without a kernel for packed rows sees them in bins: short rows share a bin, a long row has one
    for itself. A bin is a number of slots. Empty slots hold the last token, which is padding; all padding
    tokens share one slot.
    """

    positions: torch.Tensor  # (N,) int64: place of each token in its row; 0 in the padding
    rows: torch.Tensor  # (N,) int64: row of each token
    cu_seqlens: torch.Tensor  # (R + 1,) int32: where each row begins, and N
    max_seqlen: int  # no row is longer
    groups: tuple[BinGroup, ...]
    token_of_slot: torch.Tensor  # (slots,) int64, the slots of all groups end to end
    slot_of_token: torch.Tensor  # (N,) int64


@dataclass(frozen=True)
class Batch:
    """Packed samples with next-token labels, and their media in the order of their tokens.

    Media come raw (pixels, mels) or as frozen features, never both; a kind that is absent is None. The index
    tensors are padded with N - 1, the last padding token, so that sizes repeat from batch to batch.
    """

    ids: torch.Tensor  # (N,) int64; each image takes as many tokens as it has features, so does each clip
    labels: torch.Tensor  # (N,) int64: the token after ids[n] where it is trained on, else IGNORE
    layout: PackedLayout
    answers: torch.Tensor  # (A,) int64: tokens with a label; of prompts the last token of each row
    image_tokens: torch.Tensor  # (I,) int64: tokens that image features are written to
    audio_tokens: torch.Tensor  # (U,) int64: tokens that audio features are written to
    answer_counts: tuple[int, ...]  # answer tokens of each sample
    pixels: torch.Tensor | None = None  # (M, 3, image_size, image_size) float
    mels: torch.Tensor | None = None  # (C, F, MELS) float, zero beyond a clip's frames
    mel_lengths: torch.Tensor | None = None  # (C,) mel frames a clip
    audio_frames: torch.Tensor | None = None  # (U,) which of the C * S encoded frames each audio token is
    image_features: torch.Tensor | None = None  # (M, P, vision width)
    audio_features: torch.Tensor | None = None  # (U, audio width)

    @property
    def samples(self) -> int:
        return len(self.answer_counts)

    @property
    def answer_tokens(self) -> int:
        """Number of tokens that the loss is summed over."""
        return sum(self.answer_counts)

    @property
    def shape(self) -> str:
        """For messages to people."""
        return f"{self.samples} samples, {len(self.ids)} tokens with padding"

    def to(self, device: torch.device) -> "Batch":
        return moved(self, device)


def moved(value, device: torch.device):
    """`value` with every tensor in it on `device`."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=True)
    if isinstance(value, tuple):
        return tuple(moved(item, device) for item in value)
    if is_dataclass(value):
        return replace(value, **{f.name: moved(getattr(value, f.name), device) for f in fields(value)})
    return value
