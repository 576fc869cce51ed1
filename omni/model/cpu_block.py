"""A fused block for a CPU: what `layers.Block` computes for packed tokens, in fewer operations.

On a CPU the matrix products of a small model take less time than the rest: element-wise passes, casts, and
the calls themselves. So here a block is one autograd function with large products and a gradient written by
hand. The residual stream and the norms stay in fp32 (or fp64); everything else is in the plan's `dtype`.
"""

from collections.abc import Sequence
from functools import partial
from itertools import chain, islice

import torch
from torch import nn
from torch.autograd import Function
from torch.nn import functional as F

from omni.data.layout import PackedLayout
from omni.model.cpu_plan import BinnedHeads, Plan, products_dtype
from omni.model.cpu_projection import PARTS, Join, Product, parts, reads_input
from omni.model.layers import Attention, Block, LayerCache, LoRALinear, RMSNorm, Rope, SwiGLU

MODULES = {"": Block, "input_layernorm": RMSNorm, "self_attn": Attention, "post_attention_layernorm": RMSNorm,
           "mlp": SwiGLU, **{f"self_attn.{name}_proj": nn.Linear for name in "qkvo"},
           **{f"mlp.{name}_proj": nn.Linear for name in ("gate", "up", "down")}}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
LONGEST = 1024  # slots of a bin; memory for the gradient grows with the square


def fused(layers: Sequence[nn.Module], x: torch.Tensor, rope: Rope, layout: PackedLayout) -> list | None:
    """For each block in `layers` a function with the same arguments and result; None if one can't be fused.

    x (N, D) is the input of the first block. Any weight may be frozen, any projection may have an adapter.
    Blocks with other biases than those of Qwen2, other wrapped or replaced modules, hooks or sharded weights
    can't be fused.
    """
    if not (x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
            and max(group.length for group in layout.bins.groups) <= LONGEST
            and all(_is_plain(layer, x.dtype) for layer in layers)
            and _alike(layers)):
        return None
    plan = Plan.of(layout, layers[0].self_attn, layers[0].input_layernorm.eps, rope, x.dtype)
    return [partial(_run, layer, plan) for layer in layers]


def _is_plain(layer: nn.Module, dtype: torch.dtype) -> bool:
    """Whether a block consists of just what `_FusedBlock` computes. `dtype` is that of the residual stream.

    Frozen matrices may be stored in the dtype of autocast.
    """
    modules, weights = dict(layer.named_modules()), list(layer.parameters())
    norm = RMSNorm if type(layer) is Block and layer.self_attn.qk_norm else nn.Identity
    if {name: nn.Linear if type(module) is LoRALinear else type(module) for name, module in modules.items()} \
            != MODULES | {"self_attn.q_norm": norm, "self_attn.k_norm": norm}:
        return False
    linear = {name for name, module in modules.items() if isinstance(module, nn.Linear)}
    biased = {name for name in linear if modules[name].bias is not None}
    stored = products_dtype(dtype)
    return biased in (set(), {f"self_attn.{name}_proj" for name in "qkv"}) \
        and not any(getattr(module, hooks) for module in modules.values() for hooks in HOOKS) \
        and all(type(w) is nn.Parameter for w in weights) \
        and all(w.dtype == dtype or (w.dtype == stored and not w.requires_grad and w.dim() == 2)
                for w in weights)


def _alike(layers: Sequence[Block]) -> bool:
    """Whether all blocks can share one plan."""
    heads = {(layer.self_attn.heads, layer.self_attn.kv_heads, layer.self_attn.head_dim) for layer in layers}
    eps = {norm.eps for layer in layers for norm in layer.modules() if isinstance(norm, RMSNorm)}
    return len(heads) == len(eps) == 1


def _run(layer: Block, plan: Plan, x: torch.Tensor, rope: Rope, layout: PackedLayout,
         cache: LayerCache | None = None, keep: torch.Tensor | None = None) -> torch.Tensor:
    """As `Block.forward`. `rope` and `layout` are ignored: the plan was made of them."""
    attn, mlp = layer.self_attn, layer.mlp
    qk_norms = (attn.q_norm.weight, attn.k_norm.weight) if attn.qk_norm else (None, None)
    projections = (attn.q_proj, attn.k_proj, attn.v_proj, attn.o_proj, mlp.gate_proj, mlp.up_proj,
                   mlp.down_proj)
    with torch.autocast("cpu", enabled=False):
        return _FusedBlock.apply(
            x, plan, keep, cache, [getattr(one, "scale", 1.0) for one in projections],
            layer.input_layernorm.weight, *qk_norms, layer.post_attention_layernorm.weight,
            *chain(*map(parts, projections)))


def normalise(x, weight, eps: float):
    """x / rms(x) * weight over the last dimension, and what `normalise_back` needs."""
    scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    unit = x * scale
    return unit * weight, (unit, scale, weight)


def normalise_back(dy, kept, wanted: bool):
    """The gradients of x, still to be multiplied by `scale`, and of the weight if `wanted`.

    `dy` is overwritten.
    """
    unit, scale, weight = kept
    dweight = (dy * unit).sum(0) if wanted else None
    dy.mul_(weight)
    mean = (dy * unit).mean(-1, keepdim=True)
    return dy.addcmul_(unit, mean, value=-1), dweight


def interleave(x):
    """(heads, d, ...) -> the same with each head's halves interleaved: the pairs that `rotate` rotates."""
    return x.unflatten(1, (2, -1)).transpose(1, 2).flatten(1, 2)


def deinterleave(x):
    """The inverse of `interleave`."""
    return x.unflatten(1, (-1, 2)).transpose(1, 2).flatten(1, 2)


def rotate(x, rotations):
    """Rotary positions of interleaved heads (N, heads, d): each pair a complex number, times a rotation."""
    return torch.view_as_real(torch.view_as_complex(x.unflatten(-1, (-1, 2))) * rotations).flatten(-2)


def attend_bins(x, heads: BinnedHeads):
    """Queries, keys and values (rows, d) -> attention outputs (rows of queries, d), and the probabilities.

    Queries are already divided by sqrt(d). Products over all bins at once are about three times as fast as
    flash attention, which on CPUs goes through the bins one by one.
    """
    q, k, v = heads.split(x)
    scores = torch.bmm(q, k.transpose(1, 2))
    heads.grid(scores).add_(heads.mask)
    probabilities = scores.softmax(-1)
    return torch.bmm(probabilities, v).flatten(0, 1), probabilities


def attend_bins_back(dy, x, probabilities, heads: BinnedHeads, dx) -> None:
    """Writes the gradient of x to `dx`."""
    q, k, v = heads.split(x)
    dq, dk, dv = heads.split(dx)
    dy = dy.view_as(q)
    torch.bmm(probabilities.transpose(1, 2), dy, out=dv)
    dprobabilities = torch.bmm(dy, v.transpose(1, 2))
    dscores = torch._softmax_backward_data(dprobabilities, probabilities, -1, probabilities.dtype)
    torch.bmm(dscores, k, out=dq)
    torch.bmm(dscores.transpose(1, 2), q, out=dk)


def joins(plan: Plan, projections: Sequence[tuple], scales: Sequence[float]) -> list[Join]:
    """For queries, keys and values together, and for each of the other four projections."""
    return [Join.of(projections[:3], scales[:3], plan.dtype, plan.order, plan.order_back),
            *(Join.of([one], [scale], plan.dtype)
              for one, scale in zip(projections[3:], scales[3:], strict=True))]


def by_join(values: Sequence) -> list[Sequence]:
    """Values of the seven projections -> those of each of `joins`."""
    first = 3 * PARTS
    return [values[:first], *(values[begin:begin + PARTS] for begin in range(first, 7 * PARTS, PARTS))]


class _FusedBlock(Function):
    """`layers.Block` on x (N, D) -> (N, D), or only the rows `keep` (A,) of the result -> (A, D).

    `tensors` are the `parts` of q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj and down_proj, one after
    another, and `scales` those of their adapters. Gradients are computed only of what is trained.
    """

    @staticmethod
    def forward(ctx, x, plan: Plan, keep, cache, scales, norm_in, q_norm, k_norm, norm_mid, *tensors):
        N, H, K, d, full, dtype = len(x), plan.heads, plan.kv_heads, plan.head_dim, x.dtype, plan.dtype
        projections = [tensors[first:first + PARTS] for first in range(0, len(tensors), PARTS)]
        ctx.joins = joins(plan, projections, scales)
        grouped = [projections[:3], *([one] for one in projections[3:])]
        products = [join.product(group) for join, group in zip(ctx.joins, grouped, strict=True)]
        to_qkv, to_o, to_gate, to_up, to_down = products

        y, kept_in = normalise(x, norm_in, plan.eps)
        y = y.to(dtype)
        qkv, low_qkv = to_qkv(y)
        qkv = qkv.view(N, -1, d)
        heads, kept_qk = qkv[:, :H + K].to(full), (None, None, None)
        if q_norm is None:
            heads = heads * plan.scales
        else:
            weight = interleave(torch.cat((q_norm.expand(H, d), k_norm.expand(K, d))))
            heads, kept_qk = normalise(heads, weight * plan.scales, plan.eps)
        qkv[:, :H + K] = rotate(heads, plan.rotations)
        if cache is not None:
            keys = deinterleave(qkv[:, H:H + K].flatten(0, 1)).view(-1, K, d)
            cache.update(keys, qkv[:, H + K:], plan.layout)
        qkv = qkv.view(-1, d).index_select(0, plan.head_of_row)
        mixed, attended = zip(*(attend_bins(part, group) for part, group in plan.by_group(qkv)), strict=True)
        mixed = (mixed[0] if len(mixed) == 1 else torch.cat(mixed)).index_select(0, plan.row_of_query)
        mixed = mixed.view(N, -1)
        if keep is not None:
            x, mixed = x.index_select(0, keep), mixed.index_select(0, keep)
        added, low_o = to_o(mixed)
        x = added.to(full).add_(x)

        z, kept_mid = normalise(x, norm_mid, plan.eps)
        z = z.to(dtype)
        (gate, low_gate), (up, low_up) = to_gate(z), to_up(z)
        activated = F.silu(gate)
        gated = activated * up
        added, low_down = to_down(gated)

        ctx.plan, ctx.keep, ctx.N = plan, keep, N
        inputs = [read if reads_input(wanted) else None for read, wanted in
                  zip((y, mixed, z, z, gated), by_join(ctx.needs_input_grad[-7 * PARTS:]), strict=True)]
        ctx.save_for_backward(*kept_in, *kept_qk, *kept_mid, *chain(*products), *inputs, low_qkv, low_o,
                              low_gate, low_up, low_down, qkv, gate, up, activated, *attended)
        return added.to(full).add_(x)

    @staticmethod
    def backward(ctx, dout):
        saved = iter(ctx.saved_tensors)
        kept_in, kept_qk, kept_mid = (tuple(islice(saved, 3)) for _ in range(3))
        to_qkv, to_o, to_gate, to_up, to_down = (Product(*islice(saved, PARTS)) for _ in range(5))
        inputs, lows = tuple(islice(saved, 5)), tuple(islice(saved, 5))
        qkv, gate, up, activated, *attended = saved
        plan, full, dtype = ctx.plan, dout.dtype, ctx.plan.dtype
        H, K, d = plan.heads, plan.kv_heads, plan.head_dim
        wants_x, *_, wants_in, wants_q, wants_k, wants_mid = ctx.needs_input_grad[:9]

        dadded = dout.to(dtype)
        dgated, dlow_down = to_down.back(dadded)
        dup = dgated * activated
        dgate = torch.ops.aten.silu_backward(dgated.mul_(up), gate)
        dz, dlow_gate = to_gate.back(dgate)
        dz, dlow_up = to_up.back(dup, onto=dz)
        dz, dnorm_mid = normalise_back(dz.to(full), kept_mid, wants_mid)
        dx = torch.addcmul(dout, dz, kept_mid[1])

        dmid = dx.to(dtype)
        dmixed, dlow_o = to_o.back(dmid)
        if ctx.keep is not None:  # a token that is kept more than once is padding, with gradients of 0
            dx, dmixed = (g.new_zeros(ctx.N, g.shape[1]).index_add_(0, ctx.keep, g) for g in (dx, dmixed))
        dmixed = dmixed.view(-1, d).index_select(0, plan.query_of_row)
        dqkv, begin = torch.empty_like(qkv), 0
        for (part, group), (dpart, _), probabilities in zip(plan.by_group(qkv), plan.by_group(dqkv), attended,
                                                            strict=True):
            end = begin + group.sizes[0]
            attend_bins_back(dmixed[begin:end], part, probabilities, group, dpart)
            begin = end
        dqkv = dqkv.index_select(0, plan.row_of_head).view(ctx.N, -1, d)
        dheads, dq_norm, dk_norm = rotate(dqkv[:, :H + K].to(full), plan.rotations_back), None, None
        if kept_qk[0] is None:
            dheads.mul_(plan.scales)
        else:
            dheads, dweight = normalise_back(dheads, kept_qk, wants_q or wants_k)
            dheads.mul_(kept_qk[1])
            if dweight is not None:
                dq_norm, dk_norm = (part.sum(0) for part in deinterleave(dweight * plan.scales).split((H, K)))
        dqkv[:, :H + K] = dheads
        dqkv = dqkv.view(ctx.N, -1)
        dy, dlow_qkv = to_qkv.back(dqkv)
        dz, dnorm_in = normalise_back(dy.to(full), kept_in, wants_in)
        dx = torch.addcmul(dx, dz, kept_in[1]) if wants_x else None

        parts_of = zip(ctx.joins, (dqkv, dmid, dgate, dup, dadded), inputs, lows,
                       (dlow_qkv, dlow_o, dlow_gate, dlow_up, dlow_down),
                       by_join(ctx.needs_input_grad[-7 * PARTS:]), strict=True)
        dtensors = chain(*(join.gradients(*of_join) for join, *of_join in parts_of))
        dweights = (dnorm_in, dq_norm, dk_norm, dnorm_mid, *dtensors)
        return dx, None, None, None, None, *(None if g is None else g.to(full) for g in dweights)
