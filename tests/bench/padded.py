"""The usual form of a batch: rows right-padded to the longest, with computation on every token."""

from dataclasses import dataclass, replace

import torch
from torch.nn.utils.rnn import pad_sequence

from omni.data.batch import Batch
from omni.model.attention import attend_rectangle
from omni.model.layers import apply_rope, rope_table
from omni.model.omni import OmniNetwork
from omni.model.thinker import Thinker


@dataclass(frozen=True)
class PaddedBatch:
    """The samples of a packed batch with raw media, as rows of T tokens."""

    batch: Batch  # its ids are those of all rows (B * T,), and its media tokens are indices into them
    labels: torch.Tensor  # (B, T)
    lengths: torch.Tensor  # (B,)


def pad(packed: Batch, pad_id: int, ignore: int, length: int | None = None) -> PaddedBatch:
    """Rows as long as the longest, or of `length` tokens."""
    lengths = packed.layout.cu_seqlens.diff()[:-1].long()
    T = length or int(lengths.max())

    def rows(x: torch.Tensor, fill: int) -> torch.Tensor:
        parts = [*x[:int(lengths.sum())].split(lengths.tolist()), x.new_full((T,), fill)]
        return pad_sequence(parts, batch_first=True, padding_value=fill)[:-1]

    place = packed.layout.rows * T + packed.layout.positions  # of each packed token in the padded rows
    return PaddedBatch(replace(packed, ids=rows(packed.ids, pad_id).flatten(),
                               image_tokens=place[packed.image_tokens],
                               audio_tokens=place[packed.audio_tokens]), rows(packed.labels, ignore), lengths)


def embed(model: OmniNetwork, padded: PaddedBatch) -> torch.Tensor:
    """(B, T, D)."""
    return model.embed(padded.batch).view(*padded.labels.shape, -1)


def hidden(thinker: Thinker, embeds: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """(B, T, D) -> (B, T, D) by the Thinker's own modules, causal or under a dense mask (B, 1, T, T)."""
    rope = rope_table(torch.arange(embeds.shape[1], device=embeds.device), thinker.arch.head_dim,
                      thinker.arch.rope_theta)
    x = embeds
    for layer in thinker.layers:
        attn, y = layer.self_attn, layer.input_layernorm(x)
        q, k, v = (projection(y).unflatten(-1, (-1, attn.head_dim))
                   for projection in (attn.q_proj, attn.k_proj, attn.v_proj))
        q, k = apply_rope(attn.q_norm(q), rope), apply_rope(attn.k_norm(k), rope)
        x = x + attn.o_proj(attend_rectangle(q, k, v, mask, causal=mask is None).to(x.dtype))
        x = x + layer.mlp(layer.post_attention_layernorm(x))
    return thinker.norm(x)
