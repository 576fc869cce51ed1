"""`Batch`: the samples of a step packed end to end. This is the interface between data and model.

The letters of the shapes, everywhere in this project: N tokens of a batch, R its rows (one per sample, then
one of padding), A answer tokens, I image tokens, U audio tokens, D width of the Thinker, V vocabulary,
H heads, K key heads, d width of a head, M images, P patches per image, C clips, F mel frames and S features
per clip. B is the number of rows of a padded tensor.
"""

from collections.abc import Callable
from dataclasses import dataclass, fields, is_dataclass, replace

import torch

from omni.data.layout import PackedLayout

IGNORE = -100  # label of a position that is not trained on
MELS = 80  # mel bands that our own audio encoder reads
MEL_FRAMES_PER_SECOND = 100


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
        return mapped(self, lambda tensor: tensor.to(device, non_blocking=device.type == "cuda"))

    def pinned(self) -> "Batch":
        """In page-locked memory, from which a copy to a GPU runs beside other work."""
        return mapped(self, torch.Tensor.pin_memory)


def mapped(value, change: Callable[[torch.Tensor], torch.Tensor]):
    """`value` with every tensor in it changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, tuple):
        return tuple(mapped(item, change) for item in value)
    if is_dataclass(value):
        return replace(value, **{f.name: mapped(getattr(value, f.name), change) for f in fields(value)})
    return value


def tensors_of(batch: Batch) -> list[torch.Tensor]:
    """Every tensor of a batch, in the order of its fields."""
    found: list[torch.Tensor] = []
    mapped(batch, lambda tensor: found.append(tensor) or tensor)
    return found
