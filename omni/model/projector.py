"""The projectors between the encoders and the Thinker."""

import math

import torch
from torch import nn
from torch.nn import functional as F

from omni.base import checkpoint


class Projector(nn.Module):
    """A two-layer MLP from an encoder's features to the Thinker's embeddings."""

    def __init__(self, features: int, width: int):
        super().__init__()
        self.up_proj = nn.Linear(features, 2 * width)
        self.down_proj = nn.Linear(2 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.down_proj(F.gelu(self.up_proj(x)))


def merge_patches(patches: torch.Tensor, merge: int) -> torch.Tensor:
    """Features of patches, row by row, (M, P, width) -> of `merge` x `merge` squares of them, which are a
    token each: (M, P / merge ** 2, merge ** 2 * width).
    """
    side = math.isqrt(patches.shape[1]) // merge
    squares = patches.unflatten(1, (side, merge, side, merge)).transpose(2, 3)
    return squares.reshape(len(patches), side ** 2, -1)


def words_hash(embeddings: torch.Tensor) -> str:
    """A hash of a Thinker's embeddings (V, D). A pretrained projector is of use to this Thinker alone."""
    return checkpoint.fingerprint({"embeddings": embeddings}, torch.float32)
