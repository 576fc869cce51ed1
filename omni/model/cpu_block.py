"""A fused block for a CPU: what `layers.Block` computes for packed tokens, in fewer operations.

On a CPU the matrix products of a small model take less time than the rest: element-wise passes, casts, and
the calls themselves. So here a block is one autograd function with large products and a gradient written by
hand. The residual stream and the norms stay in fp32 (or fp64); everything else is in the plan's `dtype`.
"""

from collections.abc import Sequence
from functools import partial

import torch
from torch import nn
from torch.autograd import Function
from torch.nn import functional as F

from omni.data.layout import PackedLayout
from omni.model.cpu_plan import BinnedHeads, Plan
from omni.model.layers import Attention, Block, LayerCache, RMSNorm, Rope, SwiGLU

MODULES = {"": Block, "input_layernorm": RMSNorm, "self_attn": Attention, "post_attention_layernorm": RMSNorm,
           "mlp": SwiGLU, **{f"self_attn.{name}_proj": nn.Linear for name in "qkvo"},
           **{f"mlp.{name}_proj": nn.Linear for name in ("gate", "up", "down")}}
HOOKS = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks")
LONGEST = 1024  # slots of a bin; memory for the gradient grows with the square


def fused(layers: Sequence[nn.Module], x: torch.Tensor, rope: Rope, layout: PackedLayout) -> list | None:
    """For each block in `layers` a function with the same arguments and result; None if one can't be fused.

    x (N, D) is the input of the first block. Blocks with biases, wrapped or replaced modules, hooks, sharded
    weights or frozen weights (while gradients are on) can't be fused.
    """
    if not (x.device.type == "cpu" and x.dtype in (torch.float32, torch.float64)
            and max(group.length for group in layout.bins.groups) <= LONGEST
            and all(_is_plain(layer, x.dtype) for layer in layers)
            and _alike(layers)):
        return None
    plan = Plan.of(layout, layers[0].self_attn, layers[0].input_layernorm.eps, rope, x.dtype)
    return [partial(_run, layer, plan) for layer in layers]


def _is_plain(layer: nn.Module, dtype: torch.dtype) -> bool:
    """Whether a block consists of just what `_FusedBlock` computes, and all of its gradients are needed."""
    modules, weights = dict(layer.named_modules()), list(layer.parameters())
    norm = RMSNorm if type(layer) is Block and layer.self_attn.qk_norm else nn.Identity
    return {name: type(module) for name, module in modules.items()} == MODULES | {
        "self_attn.q_norm": norm, "self_attn.k_norm": norm} \
        and all(module.bias is None for module in modules.values() if isinstance(module, nn.Linear)) \
        and not any(getattr(module, hooks) for module in modules.values() for hooks in HOOKS) \
        and all(type(w) is nn.Parameter and w.dtype == dtype for w in weights) \
        and (not torch.is_grad_enabled() or all(w.requires_grad for w in weights))


def _alike(layers: Sequence[Block]) -> bool:
    """Whether all blocks can share one plan."""
    heads = {(layer.self_attn.heads, layer.self_attn.kv_heads, layer.self_attn.head_dim) for layer in layers}
    eps = {norm.eps for layer in layers for norm in layer.modules() if isinstance(norm, RMSNorm)}
    return len(heads) == len(eps) == 1


def _run(layer: Block, plan: Plan, x: torch.Tensor, rope: Rope, layout: PackedLayout,
         cache: LayerCache | None = None, keep: torch.Tensor | None = None) -> torch.Tensor:
    """As `Block.forward`. `rope` and `layout` are ignored: the plan was made of them."""
    attn, mlp = layer.self_attn, layer.mlp
    norms = (attn.q_norm.weight, attn.k_norm.weight) if attn.qk_norm else (None, None)
    with torch.autocast("cpu", enabled=False):
        return _FusedBlock.apply(
            x, plan, keep, cache, layer.input_layernorm.weight, attn.q_proj.weight, attn.k_proj.weight,
            attn.v_proj.weight, *norms, attn.o_proj.weight, layer.post_attention_layernorm.weight,
            mlp.gate_proj.weight, mlp.up_proj.weight, mlp.down_proj.weight)


def normalise(x, weight, eps: float):
    """x / rms(x) * weight over the last dimension, and what `normalise_back` needs."""
    scale = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    unit = x * scale
    return unit * weight, (unit, scale, weight)


def normalise_back(dy, kept):
    """The gradients of x, still to be multiplied by `scale`, and of the weight; `dy` is overwritten."""
    unit, scale, weight = kept
    product = dy * unit
    dweight = product.sum(0)
    mean = product.mul_(weight).mean(-1, keepdim=True)
    return dy.mul_(weight).addcmul_(unit, mean, value=-1), dweight


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


def qkv_weight(q_proj, k_proj, v_proj, d: int, dtype: torch.dtype):
    """The three matrices (heads * d, D) as one ((H + 2 K) * d, D), cast. Queries and keys are interleaved."""
    qk = interleave(torch.cat((q_proj, k_proj)).unflatten(0, (-1, d))).flatten(0, 1)
    return torch.cat((qk.to(dtype), v_proj.to(dtype)))


class _FusedBlock(Function):
    """`layers.Block` on x (N, D) -> (N, D), or only the rows `keep` (A,) of the result -> (A, D)."""

    @staticmethod
    def forward(ctx, x, plan: Plan, keep, cache, norm_in, q_proj, k_proj, v_proj, q_norm, k_norm, o_proj,
                norm_mid, gate_proj, up_proj, down_proj):
        N, H, K, d, full, dtype = len(x), plan.heads, plan.kv_heads, plan.head_dim, x.dtype, plan.dtype
        y, kept_in = normalise(x, norm_in, plan.eps)
        y = y.to(dtype)
        w_qkv = qkv_weight(q_proj, k_proj, v_proj, d, dtype)
        qkv = (y @ w_qkv.t()).view(N, -1, d)
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
        w_o, w_gate, w_up, w_down = (w.to(dtype) for w in (o_proj, gate_proj, up_proj, down_proj))
        x = (mixed @ w_o.t()).to(full).add_(x)

        z, kept_mid = normalise(x, norm_mid, plan.eps)
        z = z.to(dtype)
        gate, up = z @ w_gate.t(), z @ w_up.t()
        activated = F.silu(gate)
        gated = activated * up
        ctx.plan, ctx.keep, ctx.N = plan, keep, N
        ctx.save_for_backward(*kept_in, *kept_qk, *kept_mid, y, qkv, mixed, z, gate, up, activated, gated,
                              w_qkv, w_o, w_gate, w_up, w_down, *attended)
        return (gated @ w_down.t()).to(full).add_(x)

    @staticmethod
    def backward(ctx, dout):
        saved = ctx.saved_tensors
        kept_in, kept_qk, kept_mid = saved[:3], saved[3:6], saved[6:9]
        y, qkv, mixed, z, gate, up, activated, gated, w_qkv, w_o, w_gate, w_up, w_down, *attended = saved[9:]
        plan, full, dtype = ctx.plan, dout.dtype, ctx.plan.dtype
        H, K, d = plan.heads, plan.kv_heads, plan.head_dim

        dy = dout.to(dtype)
        ddown_proj, dgated = dy.t() @ gated, dy @ w_down
        dup = dgated * activated
        dgate = torch.ops.aten.silu_backward(dgated.mul_(up), gate)
        dgate_proj, dup_proj = dgate.t() @ z, dup.t() @ z
        dz, dnorm_mid = normalise_back(torch.addmm(dgate @ w_gate, dup, w_up).to(full), kept_mid)
        dx = torch.addcmul(dout, dz, kept_mid[1])

        dy = dx.to(dtype)
        do_proj, dmixed = dy.t() @ mixed, dy @ w_o
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
            dheads, dweight = normalise_back(dheads, kept_qk)
            dheads.mul_(kept_qk[1])
            dq_norm, dk_norm = (dpart.sum(0) for dpart in deinterleave(dweight * plan.scales).split((H, K)))
        dqkv[:, :H + K] = dheads
        dqkv = dqkv.view(ctx.N, -1)
        dqk_proj, dv_proj = (dqkv.t() @ y).split(((H + K) * d, K * d))
        dq_proj, dk_proj = deinterleave(dqk_proj.view(H + K, d, -1)).flatten(0, 1).split((H * d, K * d))
        dz, dnorm_in = normalise_back((dqkv @ w_qkv).to(full), kept_in)
        dx = torch.addcmul(dx, dz, kept_in[1])
        dweights = (dnorm_in, dq_proj, dk_proj, dv_proj, dq_norm, dk_norm, do_proj, dnorm_mid, dgate_proj,
                    dup_proj, ddown_proj)
        return dx, None, None, None, *(None if g is None else g.to(full) for g in dweights)
