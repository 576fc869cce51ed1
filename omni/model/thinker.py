"""The Thinker: a decoder-only language model with the mathematics and the names of Llama and Qwen3."""

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from omni.base.config import ThinkerArch
from omni.data.layout import PackedLayout
from omni.model import cpu_block
from omni.model.attention import DecodeLayout
from omni.model.layers import Block, LayerCache, RMSNorm, Rope, init_weights, rope_table


class Thinker(nn.Module):
    """Token embeddings, blocks, final norm and head. Weights are named as in `transformers`, less `model.`.

    With `activation_checkpointing` the backward pass computes each block again: less memory, more time.
    """

    def __init__(self, arch: ThinkerArch, activation_checkpointing: bool = False):
        super().__init__()
        self.arch, self.activation_checkpointing = arch, activation_checkpointing
        self.embed_tokens = nn.Embedding(arch.vocab_size, arch.width)
        self.layers = nn.ModuleList(
            Block(arch.width, arch.heads, arch.kv_heads, arch.head_dim, arch.mlp_width, arch.qk_norm,
                  arch.norm_eps, arch.qkv_bias)
            for _ in range(arch.layers))
        self.norm = RMSNorm(arch.width, arch.norm_eps)
        if not arch.tied_head:
            self.lm_head = nn.Linear(arch.width, arch.vocab_size, bias=False)
        init_weights(self, arch.layers)

    def embed(self, ids: torch.Tensor) -> torch.Tensor:
        """Token ids (N,) -> embeddings (N, D) in the precision of the residual stream.

        Ids of media placeholders may be beyond the vocabulary. They get some row, which features replace.
        """
        embeds = self.embed_tokens(ids.clamp(max=self.arch.vocab_size - 1))
        return embeds.to(self.norm.weight.dtype)

    def hidden(self, embeds: torch.Tensor, layout: PackedLayout, keep: torch.Tensor | None = None,
               cache: list[LayerCache] | None = None) -> torch.Tensor:
        """Packed embeddings (N, D) -> last hidden states (N, D), or only those of tokens `keep` (A,): (A, D).

        For tokens that are not kept the last block computes only attention. The keys and values of all
        tokens are written to the `cache`.
        """
        rope, x = self._rope(layout.positions), embeds
        # Fused blocks are used only where they compute the same as the plain ones.
        blocks = cpu_block.fused(self.layers, x, rope, layout) or self.layers
        for number, block in enumerate(blocks):
            inputs = (x, rope, layout, None if cache is None else cache[number],
                      keep if number == len(blocks) - 1 else None)
            if self.activation_checkpointing and torch.is_grad_enabled():
                x = checkpoint(block, *inputs, use_reentrant=False)
            else:
                x = block(*inputs)
        return self.norm(x)

    def _rope(self, positions: torch.Tensor) -> Rope:
        return rope_table(positions, self.arch.head_dim, self.arch.rope_theta, self.arch.rope_scaling)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., V)."""
        return F.linear(hidden, self.head_weight)

    @property
    def head_weight(self) -> torch.Tensor:
        """(V, D)."""
        return self.embed_tokens.weight if self.arch.tied_head else self.lm_head.weight

    def new_cache(self, rows: int, length: int, like: torch.Tensor) -> list[LayerCache]:
        """An empty cache for `rows` rows of up to `length` tokens, with the device and dtype of `like`."""
        shape = (rows, self.arch.kv_heads, length, self.arch.head_dim)
        return [LayerCache(like.new_zeros(shape), like.new_zeros(shape)) for _ in self.layers]

    def decode(self, embeds: torch.Tensor, cache: list[LayerCache], layout: DecodeLayout) -> torch.Tensor:
        """Hidden states (B, D) of one new token per row (B, D), which is added to the cache."""
        rope = self._rope(layout.positions[:, None])
        x = embeds[:, None]
        for block, layer_cache in zip(self.layers, cache, strict=True):
            x = block(x, rope, layout, layer_cache)
        return self.norm(x[:, 0])
