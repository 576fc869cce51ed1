"""`Batch`: the samples of a step packed end to end. This is the interface between data and model.

The letters of the shapes, everywhere in this project: N tokens of a batch, R its rows (one per sample, then
one of padding), A answer tokens, I image tokens, U audio tokens, D width of the Thinker, V vocabulary,
H heads, K key heads, d width of a head, M images, P patches per image, C clips, F mel frames and S features
per clip. B is the number of rows of a padded tensor.
"""

from dataclasses import dataclass, fields, is_dataclass, replace

import torch

IGNORE = -100  # label of a position that is not trained on
MELS = 80  # mel bands that our own audio encoder reads
MEL_FRAMES_PER_SECOND = 100


@dataclass(frozen=True)
class BinGroup:
    """Bins of the same length. `mask` (bins, 1, length, length) is True where a query attends to a key.

    Without a mask each bin holds a single row, from its first slot on, so causal attention is enough.
    """

    bins: int
    length: int
    mask: torch.Tensor | None


@dataclass(frozen=True)
class PackedLayout:
    """Where the rows of N packed tokens lie. The last row is padding, so R is one more than the samples.

    Where there is no attention kernel for packed rows, the rows are copied into bins, which form rectangles.
    Short rows share a bin, a long row has its own. Each token has a slot in a bin. Empty slots hold the last
    token, which is padding; all padding tokens share one slot.
    """

    positions: torch.Tensor  # (N,) int64: position of each token in its row; 0 in the padding
    rows: torch.Tensor  # (N,) int64: row of each token
    cu_seqlens: torch.Tensor  # (R + 1,) int32: where each row begins, and N
    max_seqlen: int  # length of the longest row
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
    answers: torch.Tensor  # (A,) int64: indices of tokens with a label; in prompts, of each row's last
    image_tokens: torch.Tensor  # (I,) int64: indices of the tokens that image features replace
    audio_tokens: torch.Tensor  # (U,) int64: indices of the tokens that audio features replace
    answer_counts: tuple[int, ...]  # answer tokens of each sample
    pixels: torch.Tensor | None = None  # (M, 3, image_size, image_size) float
    mels: torch.Tensor | None = None  # (C, F, mels) float, zero beyond a clip's frames
    mel_lengths: torch.Tensor | None = None  # (C,) mel frames per clip
    audio_frames: torch.Tensor | None = None  # (U,) index of each audio token in the C * S features
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
    def summary(self) -> str:
        """Its size, for messages."""
        return f"{self.samples} samples, {len(self.ids)} tokens with padding"

    def to(self, device: torch.device) -> "Batch":
        return moved(self, device)


def moved(value, device: torch.device):
    """`value` with every tensor in it on `device`."""
    if isinstance(value, torch.Tensor):
        return value.to(device, non_blocking=device.type == "cuda")
    if isinstance(value, tuple):
        return tuple(moved(item, device) for item in value)
    if is_dataclass(value):
        return replace(value, **{f.name: moved(getattr(value, f.name), device) for f in fields(value)})
    return value
