"""A simple Thinker over right-padded rows: the reference for all code that works on packed rows."""

import math

import torch

from omni.data.batch import Batch
from omni.data.layout import PackedLayout
from omni.model.layers import apply_rope, rope_table
from omni.model.thinker import Thinker


def padded_hidden(thinker: Thinker, embeds: torch.Tensor) -> torch.Tensor:
    """(B, T, D) embeddings -> (B, T, D) last hidden states. Attention is causal, so no token sees padding."""
    B, T, _ = embeds.shape
    rope = rope_table(torch.arange(T), thinker.arch.head_dim, thinker.arch.rope_theta)
    future = torch.ones(T, T, dtype=torch.bool).triu(1)
    x = embeds
    for layer in thinker.layers:
        attn, y = layer.self_attn, layer.input_layernorm(x)
        q, k, v = (projection(y).unflatten(-1, (-1, attn.head_dim))
                   for projection in (attn.q_proj, attn.k_proj, attn.v_proj))
        q, k = apply_rope(attn.q_norm(q), rope), apply_rope(attn.k_norm(k), rope)
        k, v = (z.repeat_interleave(attn.heads // attn.kv_heads, dim=2) for z in (k, v))
        scores = torch.einsum("bthd,bshd->bhts", q, k) / math.sqrt(attn.head_dim)
        probabilities = scores.masked_fill(future, float("-inf")).softmax(-1)
        x = x + attn.o_proj(torch.einsum("bhts,bshd->bthd", probabilities, v).flatten(2))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return thinker.norm(x)


def slices(layout: PackedLayout) -> list[slice]:
    """The tokens of each sample among the packed ones."""
    starts = layout.cu_seqlens.tolist()[:-1]  # without the padding
    return [slice(begin, end) for begin, end in zip(starts, starts[1:], strict=False)]


def rows(batch: Batch) -> list[tuple[list[int], list[int]]]:
    """Ids and labels of each sample."""
    return [(batch.ids[part].tolist(), batch.labels[part].tolist()) for part in slices(batch.layout)]


def packed(layout: PackedLayout, padded: torch.Tensor) -> torch.Tensor:
    """(B, T, D) -> (N, D), ones in the padding."""
    parts = [row[:part.stop - part.start] for row, part in zip(padded, slices(layout), strict=True)]
    return torch.cat([*parts, padded.new_ones(len(layout.rows) - sum(map(len, parts)), padded.shape[-1])])


def unpacked(layout: PackedLayout, states: torch.Tensor) -> list[torch.Tensor]:
    """(N, ...) -> the rows of each sample."""
    return [states[part] for part in slices(layout)]
