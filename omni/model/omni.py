"""`OmniNetwork`: Thinker, encoders and projectors in one; how media are fused with text."""

from collections.abc import Collection

import torch
from torch import nn

from omni.base import checkpoint
from omni.data.batch import Batch
from omni.data.tokenizer import Tokenizer, image_tokens
from omni.model.audio_encoder import AudioEncoder
from omni.model.lora import merged_state
from omni.model.loss import answer_loss
from omni.model.projector import Projector, merge_patches
from omni.model.thinker import Thinker
from omni.model.vision_encoder import VisionEncoder

MATRICES = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Embedding)  # their products are computed in half precision


class OmniNetwork(nn.Module):
    """A Thinker that also reads images and sound. Without an encoder (None) it can't read that medium.

    `frozen` names the parts that are not trained: "thinker", "audio", "vision". `label_smoothing` is the
    share of the training target that is spread over the whole vocabulary.
    """

    def __init__(self, tokenizer: Tokenizer, thinker: Thinker, audio_encoder: AudioEncoder | None = None,
                 vision_encoder: VisionEncoder | None = None,
                 frozen: Collection[str] = ("audio", "vision"), label_smoothing: float = 0.0):
        super().__init__()
        self.tokenizer = tokenizer
        self.thinker = thinker
        self.audio_encoder = audio_encoder
        self.vision_encoder = vision_encoder
        self.frozen, self.label_smoothing = frozenset(frozen), label_smoothing
        width = thinker.arch.width
        if audio_encoder is not None:
            self.audio_projector = Projector(audio_encoder.token_width, width)
        if vision_encoder is not None:
            self.vision_projector = Projector(vision_encoder.token_width, width)
            self.image_tokens = image_tokens(vision_encoder.arch)
        for module in self._frozen_modules():
            module.requires_grad_(False)
        self.train()

    def encoders(self) -> list[nn.Module]:
        return [e for e in (self.audio_encoder, self.vision_encoder) if e is not None]

    def _frozen_modules(self) -> list[nn.Module]:
        parts = {"thinker": self.thinker, "audio": self.audio_encoder, "vision": self.vision_encoder}
        return [module for name, module in parts.items() if name in self.frozen and module is not None]

    def train(self, mode: bool = True) -> "OmniNetwork":
        """As usual, but frozen parts stay in eval mode."""
        super().train(mode)
        for module in self._frozen_modules():
            module.eval()
        return self

    def store_frozen(self, dtype: torch.dtype, lossy: bool) -> None:
        """Keep the matrices of frozen parts in `dtype`, in which they are computed anyway: half the memory.

        Unless `lossy`, only matrices that lose nothing by it, such as those that were published in bf16.
        Embeddings must never lose anything, since they are looked up and not multiplied.
        """
        for module in self.modules():
            weight = getattr(module, "weight", None)
            if isinstance(module, MATRICES) and not weight.requires_grad:
                stored, may_round = weight.data.to(dtype), lossy and not isinstance(module, nn.Embedding)
                if may_round or torch.equal(stored.to(weight.dtype), weight.data):
                    weight.data = stored

    def frozen_weights(self) -> dict[str, torch.Tensor]:
        """The weights that are not trained, by name; buffers too."""
        weights = [*self.named_parameters(), *self.named_buffers()]
        return {name: weight for name, weight in weights if not weight.requires_grad}

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """(M, 3, image_size, image_size) -> (M, P, vision width), without gradient if frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and "vision" not in self.frozen):
            return self.vision_encoder(pixels)

    def encode_audio(self, mels: torch.Tensor,
                     mel_lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(C, F, mels) -> features (C, S, audio width) and how many of them each clip has (C,).

        Without gradient if frozen.
        """
        with torch.set_grad_enabled(torch.is_grad_enabled() and "audio" not in self.frozen):
            return self.audio_encoder(mels, mel_lengths)

    def embed(self, batch: Batch) -> torch.Tensor:
        """Token embeddings (N, D), with projected features in place of image and audio tokens.

        A batch without a kind of media never runs its encoder or its projector.
        """
        embeds = self.thinker.embed(batch.ids)
        images = batch.image_features
        if batch.pixels is not None:
            images = self.encode_images(batch.pixels)
        if images is not None:
            embeds = _replaced(embeds, batch.image_tokens, self._project_images(images))
        audio = batch.audio_features
        if batch.mels is not None:
            features, _ = self.encode_audio(batch.mels, batch.mel_lengths)
            audio = features.flatten(0, 1).index_select(0, batch.audio_frames)
        if audio is not None:
            dtype = self.audio_projector.up_proj.weight.dtype
            embeds = _replaced(embeds, batch.audio_tokens, self.audio_projector(audio.to(dtype)))
        return embeds

    def _project_images(self, patches: torch.Tensor) -> torch.Tensor:
        """(M, P, width) -> (M * P / merge ** 2, D): each merge x merge square of patches is one token."""
        squares = merge_patches(patches, self.vision_encoder.arch.merge).flatten(0, 1)
        return self.vision_projector(squares.to(self.vision_projector.up_proj.weight.dtype))

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss summed over the batch's answer tokens, and how many of them are predicted exactly."""
        hidden = self.thinker.hidden(self.embed(batch), batch.layout, keep=batch.answers)
        labels = batch.labels.index_select(0, batch.answers)
        smoothing = self.label_smoothing if self.training else 0.0
        loss, right = answer_loss(self.thinker, hidden, labels, smoothing)
        return loss + self._zero_of_absent(batch), right

    def _zero_of_absent(self, batch: Batch) -> torch.Tensor | float:
        """0, with a gradient of 0 for the trained weights of media that the batch lacks.

        A rank may have no images while others have some. It must still compute a gradient for every weight,
        or the others wait for it. With one rank the same is done, so that it trains like several.
        """
        absent = []
        if self.vision_encoder is not None and not len(batch.image_tokens):
            absent += [self.vision_encoder, self.vision_projector]
        if self.audio_encoder is not None and not len(batch.audio_tokens):
            absent += [self.audio_encoder, self.audio_projector]
        weights = [p for module in absent for p in module.parameters() if p.requires_grad]
        return 0.0 * sum(p.sum() for p in weights) if weights and torch.is_grad_enabled() else 0.0

    def content(self) -> dict:
        """The whole system for a checkpoint: what `omni.model.load.load_system` rebuilds."""
        parts = {"thinker": self.thinker, "audio_encoder": self.audio_encoder,
                 "vision_encoder": self.vision_encoder}
        projectors = {k: v for k, v in self.state_dict().items() if "_projector." in k}
        content = {"tokenizer": self.tokenizer.content(), "projectors": projectors,
                   **{name: checkpoint.part(module) for name, module in parts.items()}}
        content["thinker"]["state"] = merged_state(self.thinker)
        return content


def _replaced(embeds: torch.Tensor, tokens: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
    """`embeds` (N, D) with features (n, D) in place of the `tokens` (n,)."""
    if len(tokens) != len(features):
        raise ValueError(f"{len(features)} features for {len(tokens)} tokens")
    return embeds.index_copy(0, tokens, features.to(embeds.dtype))
