"""Whisper's encoder (Radford et al. 2022), on a clip's own length or on 30 s as it was trained.

A clip's features don't depend on the other clips of its batch.
"""

from collections.abc import Callable
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from omni.base.config import WhisperArch
from omni.data.batch import MEL_FRAMES_PER_SECOND
from omni.data.tokenizer import audio_tokens
from omni.model.attention import FullLayout
from omni.model.encoder_layer import EncoderLayer
from omni.model.published import arch_values, check_heads, renamed, require
from omni.model.words_first import WordsFirst

LOWEST, RANGE = -1.5, 2.0  # of Whisper's log-mel: its least value, and the least below a clip's loudest


class WhisperEncoder(nn.Module):
    """Log-mel (C, F, mels) -> features (C, S, width * stack): `stack` frames, of 50 per second, are joined.

    With the window "clip", frames beyond a clip's end are zero before each convolution, like its own padding,
    and attention masks them. With "30s", silence follows until all positions are filled.
    """

    IGNORED = ("model.decoder.", "decoder.", "proj_out.")  # of a published file

    def __init__(self, arch: WhisperArch):
        super().__init__()
        check_heads(arch.width, arch.heads, "heads")
        self.arch, self.token_width = arch, arch.width * arch.stack
        self.conv1 = nn.Conv1d(arch.mels, arch.width, 3, padding=1)
        self.conv2 = nn.Conv1d(arch.width, arch.width, 3, stride=2, padding=1)
        self.register_buffer("embed_positions", torch.zeros(arch.positions, arch.width))  # never trained
        self.layers = nn.ModuleList(EncoderLayer(arch.width, arch.heads, arch.mlp_width, F.gelu, 1e-5,
                                                 key_bias=False) for _ in range(arch.layers))
        self.layer_norm = nn.LayerNorm(arch.width, 1e-5)
        self.words_first = WordsFirst(self.token_width, arch.ctc_outputs) if arch.ctc_outputs else None

    @property
    def lengths(self) -> Callable:
        """Mel frames of clips (a tensor or an int) -> the number of their features. It holds no weights, so
        that it can be sent to a process that makes batches.
        """
        return partial(audio_tokens, self.arch)

    def forward(self, mels: torch.Tensor, mel_lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Features (C, S, width * stack) and how many each clip has (C,); those beyond are meaningless."""
        frames = mels.shape[1]
        if frames > 2 * self.arch.positions:
            raise ValueError(f"{frames} mel frames, and Whisper has positions for {2 * self.arch.positions}")
        clip = _until(mel_lengths, frames)  # (C, F, 1)
        if self.arch.window == "30s":
            x = self._encode(_with_silence(mels, clip, 2 * self.arch.positions), None)[:, :(frames + 1) // 2]
        else:
            x = self._encode(mels * clip, clip)
        x = x * _until((mel_lengths + 1) // 2, x.shape[1])
        x = F.pad(x, (0, 0, 0, -x.shape[1] % self.arch.stack))
        x, lengths = x.unflatten(1, (-1, self.arch.stack)).flatten(2), self.lengths(mel_lengths)
        return x if self.words_first is None else self.words_first(x, lengths), lengths

    def _encode(self, mels: torch.Tensor, clip: torch.Tensor | None) -> torch.Tensor:
        """(C, F, mels) -> (C, F / 2, width). `clip` (C, F, 1) is False beyond the end; None: no clip ends."""
        x = F.gelu(self.conv1(mels.transpose(1, 2)))
        if clip is not None:
            x = x * clip.transpose(1, 2)
            clip = clip[:, ::2, 0]  # (C, F / 2): frame s of the second convolution is centred on frame 2 s
        x = F.gelu(self.conv2(x)).transpose(1, 2)
        x = x + self.embed_positions[:x.shape[1]]
        layout = FullLayout(valid=clip)
        for layer in self.layers:
            x = layer(x, layout)
        return self.layer_norm(x)

    @classmethod
    def arch_of(cls, config: dict, preprocessor: dict | None = None) -> WhisperArch:
        """The shape that a published config.json describes. ValueError names the key that isn't supported.

        `preprocessor` is the preprocessor_config.json, if there is one: it must be Whisper's own.
        """
        if config.get("model_type") != "whisper":
            raise ValueError(f'"model_type" is {config.get("model_type")!r}; only "whisper" is supported')
        require(config, activation_function="gelu", scale_embedding=False, quantization_config=None)
        names = {"mels": "num_mel_bins", "width": "d_model", "layers": "encoder_layers",
                 "heads": "encoder_attention_heads", "mlp_width": "encoder_ffn_dim",
                 "positions": "max_source_positions"}
        arch = WhisperArch(**arch_values(WhisperArch, config, names, needed=True))
        check_heads(arch.width, arch.heads, "encoder_attention_heads")
        require(preprocessor or {}, feature_size=arch.mels, sampling_rate=160 * MEL_FRAMES_PER_SECOND,
                hop_length=160, n_fft=400, padding_value=0.0, dither=0.0, do_normalize=False,
                nb_max_frames=2 * arch.positions)
        return arch

    @classmethod
    def rename(cls, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A published state dict under our names, without what begins with one of IGNORED."""
        return renamed(state, cls.IGNORED, (
            ("^model.", ""), ("^encoder.", ""), ("^embed_positions.weight", "embed_positions"),
            ("self_attn_layer_norm", "layer_norm1"), ("final_layer_norm", "layer_norm2")))


def _until(lengths: torch.Tensor, size: int) -> torch.Tensor:
    """(C,) -> (C, size, 1): True in front of each length."""
    return (torch.arange(size, device=lengths.device) < lengths[:, None])[..., None]


def _with_silence(mels: torch.Tensor, clip: torch.Tensor, frames: int) -> torch.Tensor:
    """(C, F, mels) -> (C, frames, mels): silence as Whisper's log-mel has it follows each clip."""
    loudest = mels.masked_fill(~clip, float("-inf")).amax((1, 2), keepdim=True)
    silence = (loudest - RANGE).clamp_min(LOWEST)  # (C, 1, 1)
    padded = torch.where(clip, mels, silence)
    return torch.cat((padded, silence.expand(-1, frames - mels.shape[1], mels.shape[2])), 1)
