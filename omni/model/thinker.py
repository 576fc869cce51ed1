"""The Thinker: a decoder-only language model with the mathematics and the names of Llama and Qwen3."""

from functools import partial

import torch
from torch import nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from omni.config import ThinkerArch
from omni.data.packing import Packing
from omni.model import cpu_block
from omni.model.layers import Block, LayerCache, RMSNorm, init_weights, rope_table


class Thinker(nn.Module):
    """Token embeddings, blocks, final norm and head. `transformers` adds only `model.` before a name."""

    def __init__(self, arch: ThinkerArch):
        super().__init__()
        self.arch = arch
        self.activation_checkpointing = False
        self.embed_tokens = nn.Embedding(arch.vocab_size, arch.width)
        self.layers = nn.ModuleList(
            Block(arch.width, arch.heads, arch.kv_heads, arch.head_dim, arch.mlp_width, arch.qk_norm,
                  arch.norm_eps)
            for _ in range(arch.layers))
        self.norm = RMSNorm(arch.width, arch.norm_eps)
        if not arch.tied_head:
            self.lm_head = nn.Linear(arch.width, arch.vocab_size, bias=False)
        init_weights(self, arch.layers)

    def hidden(self, embeds: torch.Tensor, packing: Packing | None = None,
               keep: torch.Tensor | None = None, cache: list[LayerCache] | None = None) -> torch.Tensor:
        """(B, T, D) embeddings -> (B, T, D) last hidden states.

        The batch is right-padded and attention is causal, so no true token ever sees padding: no mask is
        needed. With a `packing`, (N, D) of its tokens -> (N, D), or the (A, D) that `keep` (A,) names: for
        the others the last block computes attention alone. All keys and values are put to the `cache`.
        """
        positions, x = torch.arange(embeds.shape[1], device=embeds.device), embeds
        if packing is not None:
            positions = packing.positions
        rope = rope_table(positions, self.arch.head_dim, self.arch.rope_theta)
        plan = cpu_block.Plan.of(packing, self.arch, rope, x.dtype) if cpu_block.serves(x, packing) else None
        for layer, layer_cache in zip(self.layers, cache or [None] * len(self.layers), strict=True):
            run = partial(checkpoint, layer, use_reentrant=False) \
                if self.activation_checkpointing and torch.is_grad_enabled() else layer
            x = run(x, rope, causal=True, packing=packing, plan=plan, cache=layer_cache,
                    keep=keep if layer is self.layers[-1] else None)
        return self.norm(x)

    def logits(self, hidden: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., V)."""
        weight = self.embed_tokens.weight if self.arch.tied_head else self.lm_head.weight
        return F.linear(hidden, weight)

    def new_cache(self, rows: int, length: int, like: torch.Tensor) -> list[LayerCache]:
        shape = (rows, self.arch.kv_heads, length, self.arch.head_dim)
        return [LayerCache(like.new_zeros(shape), like.new_zeros(shape)) for _ in self.layers]

    def extend(self, embeds: torch.Tensor, cache: list[LayerCache], positions: torch.Tensor,
               reach: int) -> torch.Tensor:
        """Hidden states (B, D) of a new token a row, at `positions` (B,) below `reach`; also to the cache."""
        rope = rope_table(positions[:, None], self.arch.head_dim, self.arch.rope_theta)
        mask = torch.arange(reach, device=embeds.device) <= positions[:, None, None, None]  # (B, 1, 1, reach)
        x = embeds[:, None]
        for layer, layer_cache in zip(self.layers, cache, strict=True):
            x = layer(x, rope, mask=mask, cache=layer_cache, positions=positions)
        return self.norm(x[:, 0])
