"""The projections of a fused block: weights that are trained or frozen, biases, adapters of low rank."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from omni.model.layers import LoRALinear

PARTS = 4  # of a projection, see `parts`


def parts(projection: nn.Linear) -> tuple[torch.Tensor | None, ...]:
    """Weight (O, D), bias (O,), and an adapter's A (R, D) and B (O, R); None for what there is not."""
    adapters = (projection.lora_A, projection.lora_B) if isinstance(projection, LoRALinear) else (None, None)
    return projection.weight, projection.bias, *adapters


class Product(NamedTuple):
    """Joined projections of the same input: x (N, D) -> x weight^T + bias + (x down^T) up^T (N, O).

    Their outputs are side by side, so O is a sum over the projections, and so is the rank R. `up` holds each
    scaled B in rows and columns of its own, zeros elsewhere. All are in the dtype of x.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    down: torch.Tensor | None
    up: torch.Tensor | None

    def __call__(self, x):
        """The outputs, and x down^T (N, R)."""
        y = x @ self.weight.t() if self.bias is None else torch.addmm(self.bias, x, self.weight.t())
        if self.down is None:
            return y, None
        low = x @ self.down.t()
        return y.addmm_(low, self.up.t()), low

    def back(self, dy, onto=None):
        """The gradients of x, added to `onto` if that is given, and of x down^T."""
        dx = dy @ self.weight if onto is None else onto.addmm_(dy, self.weight)
        if self.down is None:
            return dx, None
        dlow = dy @ self.up
        return dx.addmm_(dlow, self.down), dlow


@dataclass(frozen=True)
class Join:
    """How projections are joined to a `Product`, and its gradients split again."""

    rows: tuple[int, ...]  # O of each projection
    ranks: tuple[int, ...]  # 0 without an adapter
    scales: tuple[float, ...]  # of the adapters
    dtype: torch.dtype
    order: torch.Tensor | None  # (O,): for each output its row in the joined matrices, if that is another
    order_back: torch.Tensor | None  # its inverse

    @classmethod
    def of(cls, projections: Sequence[tuple], scales: Sequence[float], dtype: torch.dtype,
           order: torch.Tensor | None = None, order_back: torch.Tensor | None = None) -> "Join":
        """`projections` are the `parts` of each."""
        return cls(tuple(len(weight) for weight, *_ in projections),
                   tuple(0 if A is None else len(A) for _, _, A, _ in projections), tuple(scales), dtype,
                   order, order_back)

    def product(self, projections: Sequence[tuple]) -> Product:
        weights, biases, As, Bs = zip(*projections, strict=True)
        down = up = None
        if any(self.ranks):
            down = torch.cat([A for A in As if A is not None]).to(self.dtype)
            ups = [torch.empty(rows, 0) if B is None else B * scale
                   for rows, B, scale in zip(self.rows, Bs, self.scales, strict=True)]
            up = self._joined([ups[0] if len(ups) == 1 else torch.block_diag(*ups)])
        return Product(self._joined(weights), None if biases[0] is None else self._joined(biases), down, up)

    def _joined(self, tensors: Sequence[torch.Tensor]) -> torch.Tensor:
        cast = [tensor.to(self.dtype) for tensor in tensors]
        whole = cast[0] if len(cast) == 1 else torch.cat(cast)
        return whole if self.order is None else whole.index_select(0, self.order)

    def _split(self, joined: torch.Tensor) -> tuple[torch.Tensor, ...]:
        return (joined if self.order is None else joined.index_select(0, self.order_back)).split(self.rows)

    def gradients(self, dy, x, low, dlow, wanted: Sequence[bool]) -> list[torch.Tensor | None]:
        """Of the parts of each projection, one after another; None for those that are not `wanted`.

        x is not read if `reads_input` says so.
        """
        found: list = [None] * len(wanted)
        if any(wanted[0::PARTS]):
            found[0::PARTS] = self._split(dy.t() @ x)
        if any(wanted[1::PARTS]):
            found[1::PARTS] = self._split(dy.sum(0))
        if any(wanted[2::PARTS]):
            found[2::PARTS] = (dlow.t() @ x).split(self.ranks)
        if any(wanted[3::PARTS]):
            blocks = zip(self._split((low.t() @ dy).t()), self.scales, strict=True)
            found[3::PARTS] = [block.split(self.ranks, dim=1)[number] * scale
                               for number, (block, scale) in enumerate(blocks)]
        return [grad if want else None for grad, want in zip(found, wanted, strict=True)]


def reads_input(wanted: Sequence[bool]) -> bool:
    """Whether `Join.gradients` reads x."""
    return any(wanted[0::PARTS]) or any(wanted[2::PARTS])
