"""The projectors between the encoders and the Thinker."""

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


def words_hash(embeddings: torch.Tensor) -> str:
    """A hash of a Thinker's embeddings (V, D). A pretrained projector is of use to this Thinker alone."""
    return checkpoint.fingerprint({"embeddings": embeddings}, torch.float32)
