"""`OmniNetwork`: Thinker, encoders and projectors in one; how features are fused, the loss, generation."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint as recomputed

from omni import checkpoint
from omni.data.batch import IGNORE, Batch
from omni.data.packing import Packing, rounded_up
from omni.data.tokenizer import MERGE, Tokenizer, image_tokens
from omni.model.audio_encoder import AudioEncoder
from omni.model.generate import GREEDY
from omni.model.layers import LayerCache
from omni.model.projector import Projector
from omni.model.thinker import Thinker
from omni.model.vision_encoder import VisionEncoder

CONFIGS = Path(__file__).resolve().parent.parent / "configs"
LOGITS = 2 ** 26  # at once: 256 MB in float32, and as much again of their gradient


class OmniNetwork(nn.Module):
    """A Thinker that also reads pictures and sound. If an encoder is absent (None), its media are refused."""

    def __init__(self, tokenizer: Tokenizer, thinker: Thinker, audio_encoder: AudioEncoder | None = None,
                 vision_encoder: VisionEncoder | None = None, freeze_encoders: bool = True):
        super().__init__()
        self.tokenizer = tokenizer
        self.thinker = thinker
        self.audio_encoder = audio_encoder
        self.vision_encoder = vision_encoder
        self.freeze_encoders = freeze_encoders
        self.label_smoothing = 0.0  # share of the training target that is spread over the whole vocabulary
        self.reach_all = False  # of several ranks: each step's loss reaches every trained weight
        width = thinker.arch.width
        if audio_encoder is not None:
            self.audio_projector = Projector(audio_encoder.arch.width, width)
        if vision_encoder is not None:
            self.vision_projector = Projector(MERGE ** 2 * vision_encoder.arch.width, width)
            self.image_tokens = image_tokens(vision_encoder.arch)
        if freeze_encoders:
            for encoder in self.encoders():
                encoder.requires_grad_(False)
        self.train()

    def encoders(self) -> list[nn.Module]:
        return [e for e in (self.audio_encoder, self.vision_encoder) if e is not None]

    def train(self, mode: bool = True) -> "OmniNetwork":
        """As usual, but frozen encoders stay in eval mode."""
        super().train(mode)
        if self.freeze_encoders:
            for encoder in self.encoders():
                encoder.eval()
        return self

    def encode_images(self, pixels: torch.Tensor) -> torch.Tensor:
        """(M, 3, H, W) -> (M, P, vision width), without gradient if frozen."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoders):
            return self.vision_encoder(pixels)

    def encode_audio(self, mels: torch.Tensor,
                     mel_lengths: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """(N, F, MELS) -> true features end to end (sum of S, audio width), and their numbers (N,)."""
        with torch.set_grad_enabled(torch.is_grad_enabled() and not self.freeze_encoders):
            features, lengths = self.audio_encoder(mels, mel_lengths)
            valid = torch.arange(features.shape[1], device=features.device) < lengths[:, None]
            return features[valid], lengths

    def embed(self, batch: Batch, ids: torch.Tensor | None = None) -> torch.Tensor:
        """(B, T, D): token embeddings, with the projected features written once over their placeholders.

        Each modality is encoded in one call; a batch without one never runs its encoder or its projector.
        With `ids` (N,), those of the batch in their order but without padding, (N, D).
        """
        ids = batch.input_ids if ids is None else ids
        embeds = self.thinker.embed_tokens(ids)
        images = batch.image_features
        if images is None and batch.pixels is not None:
            images = self.encode_images(batch.pixels)
        if images is not None:
            embeds = self._scatter(embeds, ids == self.tokenizer.image, self._project_images(images))
        audio = batch.audio_features
        if audio is None and batch.mels is not None:
            audio, _ = self.encode_audio(batch.mels, batch.mel_lengths)
        if audio is not None:
            rows, dtype = len(audio), self.audio_projector.up_proj.weight.dtype
            audio = F.pad(audio.to(dtype), (0, 0, 0, rounded_up(rows) - rows))
            embeds = self._scatter(embeds, ids == self.tokenizer.audio, self.audio_projector(audio)[:rows])
        return embeds

    def _project_images(self, patches: torch.Tensor) -> torch.Tensor:
        """(M, P, width) -> (M * P / 4, D): squares of MERGE x MERGE neighbours side by side, then the MLP."""
        M, P, W = patches.shape
        half = self.vision_encoder.grid // MERGE
        squares = patches.view(M, half, MERGE, half, MERGE, W).transpose(2, 3).reshape(M * half * half, -1)
        return self.vision_projector(squares.to(self.vision_projector.up_proj.weight.dtype))

    @staticmethod
    def _scatter(embeds: torch.Tensor, places: torch.Tensor, features: torch.Tensor) -> torch.Tensor:
        """Features (n, D) in order over the n True places of (..., D). `index_put` refuses a wrong count."""
        rows = places.nonzero(as_tuple=True)  # the one wait for the device that index_put would do anyway
        if len(rows[0]) != len(features):  # index_put would spread a single feature over all places
            raise ValueError(f"{len(features)} features for {len(rows[0])} placeholders")
        return embeds.index_put(rows, features.to(embeds.dtype))

    def forward(self, batch: Batch) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Sum of the loss over answer tokens, their number, and how many of them the model predicts exactly.

        Nothing is computed on padding, and logits at answer positions only: the rest of (B, T, V) would be
        thrown away. Spare positions without a label round both up to a size met before. What would be more
        than LOGITS logits is computed a piece at a time, and again in the backward pass.
        """
        packing = Packing.of(batch.lengths)
        labels = packing.pack(batch.labels, IGNORE)
        answers = (labels != IGNORE).nonzero()[:, 0]
        answers = F.pad(answers, (0, rounded_up(len(answers)) - len(answers)), value=len(labels) - 1)
        embeds = self.embed(batch, packing.pack(batch.input_ids, self.tokenizer.pad))
        hidden, labels = self.thinker.hidden(embeds, packing, answers), labels[answers]
        rows = max(1, LOGITS // self.thinker.arch.vocab_size)
        if len(labels) <= rows:
            loss, right = self._predict(hidden, labels)
        else:
            pieces = zip(hidden.split(rows), labels.split(rows), strict=True)
            loss, right = map(sum, zip(*(recomputed(self._predict, *piece, use_reentrant=False)
                                         for piece in pieces), strict=True))
        if self.reach_all:  # the weights of a modality that this rank has none of: their gradient here is 0
            loss = loss + 0.0 * sum(p.sum() for name, p in self.named_parameters()
                                    if p.requires_grad and not name.startswith("thinker."))
        return loss, (batch.labels != IGNORE).sum(), right

    def _predict(self, hidden: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """The loss summed over (n, D), and how many of them are right.

        With label smoothing (Szegedy et al. 2016) only the gradient is smoothed: the loss that is told is the
        plain one.
        """
        logits = self.thinker.logits(hidden).float()  # (n, V)
        logs = logits.log_softmax(-1)
        loss = F.nll_loss(logs, labels, reduction="sum")
        if self.training and self.label_smoothing:
            even = -(logs.mean(-1) * (labels != IGNORE)).sum()
            smooth = torch.lerp(loss, even, self.label_smoothing)
            loss = loss.detach() + (smooth - smooth.detach())  # exactly the plain value
        return loss, (logits.detach().argmax(-1) == labels).sum()

    def generate(self, batch: Batch, max_new_tokens: int) -> list[list[int]]:
        """Greedy continuation of each right-padded prompt, until `<|end|>`: a list of ids a row."""
        answers = torch.stack(list(self.stream_ids(batch, max_new_tokens)), dim=1).tolist()
        end = self.tokenizer.end
        return [row[:row.index(end)] if end in row else row for row in answers]

    @torch.no_grad()  # under inference_mode autocast would cast each weight again at each use
    def stream_ids(self, batch: Batch, max_new_tokens: int, choose=GREEDY) -> Iterator[torch.Tensor]:
        """The next token of each row (B,), step by step, until every row has had its `<|end|>`.

        The prompt is read once and every later step reads one token a row against the KV cache. `choose`
        takes logits (B, V) and gives tokens (B,). Each time that half of the rows are through they go, for
        they would cost as much as the others.
        """
        lengths, packing = batch.lengths, Packing.of(batch.lengths)
        rows, longest = batch.input_ids.shape
        embeds = self.embed(batch, packing.pack(batch.input_ids, self.tokenizer.pad))
        cache = self.thinker.new_cache(rows, longest + max_new_tokens, embeds)
        hidden = self.thinker.hidden(embeds, packing, packing.ends(), cache)  # (B, D)
        asked, end = torch.arange(rows, device=lengths.device), self.tokenizer.end  # whom each row answers
        done = torch.zeros(rows, dtype=torch.bool, device=lengths.device)
        for step in range(max_new_tokens):
            token = choose(self.thinker.logits(hidden))
            yield lengths.new_full((rows,), end).index_copy(0, asked, token)
            done |= token == end
            left = len(done) - int(done.sum())
            if not left:
                return
            if left <= len(done) // 2:
                stay = ~done
                asked, token, lengths, done = asked[stay], token[stay], lengths[stay], done[stay]
                cache = [LayerCache(layer.keys[stay], layer.values[stay]) for layer in cache]
            embeds, reach = self.thinker.embed_tokens(token), longest + step + 1
            hidden = self.thinker.extend(embeds, cache, lengths + step, reach)

    def content(self) -> dict:
        """The whole system for a checkpoint: what `load_system` rebuilds."""
        parts = {"thinker": self.thinker, "audio_encoder": self.audio_encoder,
                 "vision_encoder": self.vision_encoder}
        projectors = {k: v for k, v in self.state_dict().items() if "_projector." in k}
        return {"tokenizer": self.tokenizer.json_text, "projectors": projectors,
                **{name: checkpoint.part(module) for name, module in parts.items()}}
