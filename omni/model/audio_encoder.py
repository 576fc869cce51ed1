"""The audio encoder: strided convolutions over log-mel to 25 or 12.5 frames/s, then transformer layers.

A clip's features don't depend on the other clips of its batch. Frames beyond a clip's end are set to zero
before each convolution, just like the convolution's own padding, and attention masks them.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from omni.base.config import AudioArch
from omni.data.batch import MEL_FRAMES_PER_SECOND, MELS
from omni.data.tokenizer import audio_tokens
from omni.model.attention import FullLayout
from omni.model.layers import Block, RMSNorm, Rope, init_weights, rope_table
from omni.model.words_first import WordsFirst


class ConvModule(nn.Module):
    """The convolution module of a Conformer layer (Gulati et al. 2020)."""

    def __init__(self, width: int, kernel: int):
        super().__init__()
        self.norm = RMSNorm(width)
        self.up_proj = nn.Linear(width, 2 * width, bias=False)
        self.depthwise = nn.Conv1d(width, width, kernel, padding=kernel // 2, groups=width)
        self.mid_norm = RMSNorm(width)
        self.down_proj = nn.Linear(width, width, bias=False)

    def forward(self, x: torch.Tensor, valid: torch.Tensor) -> torch.Tensor:
        y = F.glu(self.up_proj(self.norm(x)), dim=-1) * valid
        y = self.depthwise(y.transpose(1, 2)).transpose(1, 2)
        return x + self.down_proj(F.silu(self.mid_norm(y)))


class AudioLayer(nn.Module):
    """Convolution module, then the same block that the Thinker uses, without its causal mask."""

    def __init__(self, arch: AudioArch):
        super().__init__()
        self.conv = ConvModule(arch.width, arch.conv_kernel)
        self.block = Block(arch.width, arch.heads, arch.heads, arch.width // arch.heads, arch.mlp_width,
                           qk_norm=True)

    def forward(self, x: torch.Tensor, rope: Rope, layout: FullLayout) -> torch.Tensor:
        return self.block(self.conv(x, layout.valid[..., None]), rope, layout)


class AudioEncoder(nn.Module):
    """Log-mel (C, F, MELS) -> features (C, S, width); S = F / 8 at 12.5 frames/s, F / 4 at 25, rounded up."""

    def __init__(self, arch: AudioArch):
        super().__init__()
        self.arch, self.token_width = arch, arch.width
        strides = round(MEL_FRAMES_PER_SECOND / arch.frames_per_second).bit_length() - 1  # 3 or 2
        channels = [1] + [arch.stem_channels] * strides
        self.stem = nn.ModuleList(
            nn.Conv2d(a, b, 3, stride=2, padding=1) for a, b in zip(channels, channels[1:], strict=False))
        self.stem_proj = nn.Linear(arch.stem_channels * (MELS >> strides), arch.width)
        self.layers = nn.ModuleList(AudioLayer(arch) for _ in range(arch.layers))
        self.norm = RMSNorm(arch.width)
        self.words_first = WordsFirst(arch.width, arch.ctc_outputs) if arch.ctc_outputs else None
        init_weights(self, arch.layers)
        for conv in self.stem:
            nn.init.kaiming_normal_(conv.weight, nonlinearity="relu")
        nn.init.normal_(self.stem_proj.weight, 0.0, self.stem_proj.in_features ** -0.5)

    @property
    def lengths(self) -> Callable:
        """Mel frames of clips (a tensor or an int) -> the number of their features. It holds no weights, so
        that it can be sent to a process that makes batches.
        """
        return partial(audio_tokens, self.arch)

    def forward(self, mels: torch.Tensor, mel_lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (C, S, width) and how many of them each clip has (C,); those beyond are meaningless."""
        x, lengths = mels[:, None], mel_lengths  # (C, 1, F, MELS)
        for conv in self.stem:
            x = F.gelu(conv(x))
            lengths = (lengths + 1) // 2
            x = x * (torch.arange(x.shape[2], device=x.device) < lengths[:, None])[:, None, :, None]
        x = self.stem_proj(x.transpose(1, 2).flatten(2))  # (C, S, width)
        steps = torch.arange(x.shape[1], device=x.device)
        layout = FullLayout(valid=steps < lengths[:, None])  # (C, S)
        rope = rope_table(steps, self.arch.width // self.arch.heads)
        for layer in self.layers:
            x = layer(x, rope, layout)
        x = self.norm(x)
        return x if self.words_first is None else self.words_first(x, lengths), lengths
