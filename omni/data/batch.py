"""`Sample` and `Batch`: the only contract between data and model.

The letters of the shapes, everywhere in this project: B samples of a batch, T tokens (right-padded), D width
of the Thinker, V vocabulary, H heads, M pictures of a batch, P patch features a picture, N clips of a batch,
F mel frames (padded), S audio features (padded).
"""

from dataclasses import dataclass, fields, replace

import torch

IGNORE = -100  # label of a position that is not trained on
MELS = 80  # mel bands of a clip
MEL_FRAMES_PER_SECOND = 100


@dataclass(frozen=True)
class Batch:
    """Right-padded tokens with next-token labels, and all samples' media in the order of their placeholders.

    Either raw media (pixels, mels) or their frozen features are given, never both; without media all are
    None.
    """

    input_ids: torch.Tensor  # (B, T) int64; an image placeholder repeats once a feature, so does an audio one
    labels: torch.Tensor  # (B, T) int64; labels[b, t] is the token after input_ids[b, t], or IGNORE
    lengths: torch.Tensor  # (B,) tokens that are not padding
    pixels: torch.Tensor | None = None  # (M, 3, image_size, image_size) float
    mels: torch.Tensor | None = None  # (N, F, MELS) float, zero beyond a clip's frames
    mel_lengths: torch.Tensor | None = None  # (N,) mel frames a clip
    image_features: torch.Tensor | None = None  # (M, P, vision width)
    audio_features: torch.Tensor | None = None  # (sum of the clips' S, audio width), end to end

    def to(self, device: torch.device) -> "Batch":
        moved = {f.name: getattr(self, f.name) for f in fields(self)}
        moved = {k: v.to(device, non_blocking=True) for k, v in moved.items() if v is not None}
        return replace(self, **moved)
