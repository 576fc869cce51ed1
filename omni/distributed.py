"""Several processes: `torchrun` starts them; PyTorch's own DDP or FSDP2 keeps their models alike.

Every process (rank) takes its share of each global step. What must be the same on all of them (the tokens
that the loss is divided by, when to save, when to stop) is agreed on by small sums, so no rank ever waits for
another that went a different way.
"""

import contextlib
import copy
import os
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import FSDPModule, MixedPrecisionPolicy, fully_shard
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class World:
    """This process among all of them. One alone needs no `torchrun`, and pays nothing for any of this."""

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on its machine
    node: Any = None  # the group of the processes on this machine

    @property
    def first(self) -> bool:
        """Whether this process is the one that prints and writes."""
        return self.rank == 0

    def share(self, items: Sequence) -> Sequence:
        """This rank's part of `items`; every item is some rank's."""
        return items[self.rank::self.size]

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """The sum over all ranks."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is up on some rank."""
        return [bool(n) for n in self.total(torch.tensor(flags, dtype=torch.int64))]

    def gather(self, value: Any) -> list:
        """The values of all ranks, in order of rank."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What `make` returns on rank 0, which alone calls it."""
        found = [make() if self.first else None]
        if self.size > 1:
            dist.broadcast_object_list(found, src=0)
        return found[0]

    def once_a_node(self, make: Callable[[], Any]) -> Any:
        """What `make` returns on the first rank of each machine, which alone calls it there."""
        found = [make() if self.local_rank == 0 else None]
        if self.size > 1:
            dist.broadcast_object_list(found, src=self.rank - self.local_rank, group=self.node)
        return found[0]


ALONE = World()


def start(device: torch.device) -> World:
    """Join the processes that `torchrun` started, if it did; each takes a GPU of its own."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    rank, local_rank, local_size = (int(os.environ[name])
                                    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    if device.type == "cuda":
        torch.cuda.set_device(local_rank)
    # Just after a collective Gloo's threads take a lock of CPython's to put things away. A child forked at
    # that moment never gets it (before Python 3.12: python/cpython#112275). Let them finish first.
    os.register_at_fork(before=lambda: time.sleep(0.05))
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    nodes = [list(range(begin, begin + local_size)) for begin in range(0, size, local_size)]
    node, _ = dist.new_subgroups_by_enumeration(nodes, backend="gloo")
    return World(rank, size, local_rank, node)


def stop() -> None:
    """The end of a run: all ranks have arrived, and leave."""
    if dist.is_initialized():
        dist.barrier()
        leave(0)


def leave(code: int) -> NoReturn:
    """End this process. One of several ends at once, before its process groups are taken apart.

    Gloo's destructor (PyTorch 2.11) waits for its worker while it holds the interpreter's lock; if the worker
    needs that lock just then, neither ever ends.
    """
    if dist.is_initialized():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def wrap(model: nn.Module, kind: str, world: World, bf16: bool) -> nn.Module:
    """The module to train: `model` itself, in DDP, or sharded by block (FSDP2); "auto" is DDP."""
    if world.size == 1:
        return model
    if kind != "fsdp":
        return DistributedDataParallel(model, broadcast_buffers=False, gradient_as_bucket_view=True)
    policy = MixedPrecisionPolicy(param_dtype=torch.bfloat16, reduce_dtype=torch.float32) if bf16 \
        else MixedPrecisionPolicy()
    frozen = {p for p in model.parameters() if not p.requires_grad}
    for layer in model.thinker.layers:
        fully_shard(layer, mp_policy=policy)
    return fully_shard(model, mp_policy=policy, ignored_params=frozen)


@contextlib.contextmanager
def reducing(module: nn.Module, now: bool) -> Iterator[None]:
    """Gradients are added up over ranks with the last micro-batch of a step, and not before."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(now)
    with contextlib.nullcontext() if now or not isinstance(module, DistributedDataParallel) \
            else module.no_sync():
        yield


def twin(model: nn.Module, kind: str, world: World) -> nn.Module:
    """What evaluation runs: the model itself, or a whole copy of one that is going to be sharded.

    In evaluation ranks go their own ways (a rank may have no sample of a set), which shards don't allow.
    """
    return copy.deepcopy(model) if world.size > 1 and kind == "fsdp" else model


def refresh(twin: nn.Module, model: nn.Module) -> None:
    """Give the whole copy the weights that the sharded model has now. All ranks call it together."""
    if twin is not model:
        twin.load_state_dict(gathered(model.state_dict()))


def gathered(state: Any) -> Any:
    """A state dict with whole tensors in place of shards. All ranks call it together."""
    if isinstance(state, dict):
        return {key: gathered(value) for key, value in state.items()}
    return state.full_tensor() if isinstance(state, DTensor) else state


def sharded_like(own: dict, whole_state: dict) -> dict:
    """The tensors of `whole_state` cut as those of `own` are."""
    return {key: cut_like(own[key], value) if key in own else value for key, value in whole_state.items()}


def cut_like(own: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """This rank's shard of `value`, if `own` is one; all ranks hold the same `value`."""
    if not isinstance(own, DTensor) or value.shape != own.shape:
        return value
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
