"""The vision encoder: a ViT whose patches come from a convolutional stem."""

import torch
from torch import nn
from torch.nn import functional as F

from omni.base.config import VisionArch
from omni.data.tokenizer import patch_grid
from omni.model.attention import FullLayout
from omni.model.layers import Block, RMSNorm, init_weights


class StemBlock(nn.Module):
    """A residual block of two 3x3 convolutions with normalisation before each (He et al. 2016)."""

    def __init__(self, channels: int):
        super().__init__()
        self.norms = nn.ModuleList(nn.GroupNorm(1, channels) for _ in range(2))
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, padding=1) for _ in range(2))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = x
        for norm, conv in zip(self.norms, self.convs, strict=True):
            y = conv(F.gelu(norm(y)))
        return x + y


class VisionEncoder(nn.Module):
    """Pixels (M, 3, image_size, image_size) -> patch features (M, P, width), row by row.

    ViT (Dosovitskiy et al. 2021). A stem of strided 3x3 convolutions (Xiao et al. 2021) replaces the single
    patch-sized convolution: so it learns from far fewer images. Photographs, but not drawings, also need
    residual blocks in the stem: `stem_blocks` after each halving.
    """

    def __init__(self, arch: VisionArch):
        super().__init__()
        self.arch, self.grid = arch, patch_grid(arch)
        self.token_width = arch.merge ** 2 * arch.width
        halvings = arch.patch_size.bit_length() - 1
        channels = [3] + [arch.width >> (halvings - 1 - i) for i in range(halvings)]
        self.stem = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(channels, channels[1:], strict=False))
        self.stem_blocks = nn.ModuleList(
            nn.Sequential(*(StemBlock(c) for _ in range(arch.stem_blocks))) for c in channels[1:])
        self.stem_norms = nn.ModuleList(nn.GroupNorm(1, c) for c in channels[1:-1])
        self.positions = nn.Parameter(torch.zeros(self.grid ** 2, arch.width))
        self.layers = nn.ModuleList(
            Block(arch.width, arch.heads, arch.heads, arch.width // arch.heads, arch.mlp_width, qk_norm=True)
            for _ in range(arch.layers))
        self.norm = RMSNorm(arch.width)
        init_weights(self, arch.layers)
        for conv in self.stem:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        for block in (block for level in self.stem_blocks for block in level):
            nn.init.kaiming_normal_(block.convs[0].weight, nonlinearity="relu")
            nn.init.zeros_(block.convs[1].weight)  # a block begins as the identity

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = pixels.contiguous(memory_format=torch.channels_last)
        for i, conv in enumerate(self.stem):
            x = self.stem_blocks[i](conv(x))
            if i < len(self.stem_norms):
                x = F.gelu(self.stem_norms[i](x))
        x = x.flatten(2).transpose(1, 2) + self.positions  # (M, P, width)
        for layer in self.layers:
            x = layer(x, None, FullLayout())
        return self.norm(x)
