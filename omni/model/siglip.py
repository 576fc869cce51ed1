"""SigLIP's vision encoder (Zhai et al. 2023), of a fixed resolution; SigLIP2's of that kind are the same."""

from dataclasses import replace
from functools import partial

import torch
from torch import nn
from torch.nn import functional as F

from omni.base.config import SiglipArch
from omni.data.tokenizer import patch_grid
from omni.model.attention import FullLayout
from omni.model.encoder_layer import EncoderLayer
from omni.model.published import arch_values, check_heads, renamed, require

RESAMPLE = {2: "bilinear", 3: "bicubic"}  # Pillow's numbers


class SiglipEncoder(nn.Module):
    """Pixels (M, 3, image_size, image_size) -> patch features (M, P, width), row by row."""

    # Of a published file. The numbers of the positions are in files that old versions wrote.
    IGNORED = ("text_model.", "logit_scale", "logit_bias", "vision_model.head.", "head.",
               "vision_model.embeddings.position_ids", "embeddings.position_ids")

    def __init__(self, arch: SiglipArch):
        super().__init__()
        check_heads(arch.width, arch.heads, "heads")
        self.arch, self.grid = arch, patch_grid(arch)
        self.token_width = arch.merge ** 2 * arch.width
        self.patch_embedding = nn.Conv2d(3, arch.width, arch.patch_size, stride=arch.patch_size)
        self.position_embedding = nn.Parameter(torch.zeros(self.grid ** 2, arch.width))
        self.layers = nn.ModuleList(
            EncoderLayer(arch.width, arch.heads, arch.mlp_width, partial(F.gelu, approximate="tanh"),
                         arch.norm_eps) for _ in range(arch.layers))
        self.post_layernorm = nn.LayerNorm(arch.width, arch.norm_eps)

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        x = self.patch_embedding(pixels).flatten(2).transpose(1, 2) + self.position_embedding
        for layer in self.layers:
            x = layer(x, FullLayout())
        return self.post_layernorm(x)

    @classmethod
    def arch_of(cls, config: dict, preprocessor: dict) -> SiglipArch:
        """The shape that a published config.json describes, and how preprocessor_config.json says to resize.

        The config may be that of the vision encoder or of the whole model. What it lacks has its published
        default, which is SiglipArch's. ValueError names the key that isn't supported.
        """
        kind = config.get("model_type")
        if kind == "siglip":
            config = config.get("vision_config")
            if not isinstance(config, dict):
                raise ValueError('"vision_config" must be an object {...}')
            require(config, model_type="siglip_vision_model")
        elif kind != "siglip_vision_model":
            naflex = " of a fixed resolution; this is NaFlex" if str(kind).startswith("siglip2") else ""
            raise ValueError(f'"model_type" is {kind!r}; only "siglip" is supported, SigLIP2 too{naflex}')
        require(config, hidden_act="gelu_pytorch_tanh", num_channels=3, quantization_config=None)
        names = {"image_size": "image_size", "patch_size": "patch_size", "width": "hidden_size",
                 "layers": "num_hidden_layers", "heads": "num_attention_heads",
                 "mlp_width": "intermediate_size", "norm_eps": "layer_norm_eps"}
        values = arch_values(SiglipArch, config, names, needed=False)
        arch = SiglipArch(**values)
        check_heads(arch.width, arch.heads, "num_attention_heads")
        grid = arch.image_size // arch.patch_size
        if not grid:
            raise ValueError(f'"patch_size" is {arch.patch_size} and "image_size" only {arch.image_size}')
        return replace(arch, resample=_resample(preprocessor, arch.image_size),
                       merge=next(m for m in (2, 3, 1) if grid % m == 0))

    @classmethod
    def rename(cls, state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """A published state dict under our names, without what begins with one of IGNORED."""
        return renamed(state, cls.IGNORED, (
            ("^vision_model.", ""), ("^embeddings.position_embedding.weight", "position_embedding"),
            ("^embeddings.", ""), ("^encoder.", ""), (".mlp.", ".")))


def _resample(preprocessor: dict, size: int) -> str:
    """How the published preprocessor resizes; ValueError if it does anything else than ours does."""
    require(preprocessor, image_mean=[0.5] * 3, image_std=[0.5] * 3, do_resize=True, do_rescale=True,
            do_normalize=True, size={"height": size, "width": size})
    for key in ("do_center_crop", "do_pad"):
        if preprocessor.get(key):
            raise ValueError(f'"{key}" is set; only resizing to the square is supported')
    number = preprocessor.get("resample", 3)
    if number not in RESAMPLE:
        raise ValueError(f'"resample" is {number!r}; only 2 (bilinear) and 3 (bicubic) are supported')
    factor = preprocessor.get("rescale_factor", 1 / 255)
    if not isinstance(factor, float) or abs(factor * 255 - 1) > 1e-5:
        raise ValueError(f'"rescale_factor" is {factor!r}; only 1 / 255 is supported')
    return RESAMPLE[number]
