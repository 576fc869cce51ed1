"""Several processes (ranks): `torchrun` starts them, PyTorch's DDP or FSDP2 keeps their models equal.

Every rank takes its share of each step. What all ranks must decide alike (the number of answer tokens that
the loss is divided by, when to save, when to stop) is agreed on by small collectives, so that no rank waits
for one that took another path.
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

from omni.base import machine
from omni.base.errors import UserError


@dataclass(frozen=True)
class World:
    """This process among the ranks of a run. With a size of 1 no method communicates.

    With more ranks all methods but `share` communicate, so all ranks must call them in the same order.
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0  # on its machine
    local_size: int = 1  # ranks on its machine
    node: Any = None  # process group of the ranks on this machine

    @property
    def first(self) -> bool:
        """Whether this is rank 0, the only one that prints and writes files."""
        return self.rank == 0

    def share(self, items: Sequence) -> Sequence:
        """This rank's part of `items`. Each item belongs to exactly one rank."""
        return items[self.rank::self.size]

    def share_of_node(self, items: Sequence) -> Sequence:
        """This rank's part of `items`, each of which belongs to one rank of every machine."""
        return items[self.local_rank::self.local_size]

    def total(self, values: torch.Tensor) -> torch.Tensor:
        """`values` summed over all ranks, in place."""
        if self.size > 1:
            dist.all_reduce(values)
        return values

    def any(self, *flags: bool) -> list[bool]:
        """For each flag, whether it is set on any rank."""
        return [bool(n) for n in self.total(torch.tensor(flags, dtype=torch.int64))]

    def gather(self, value: Any) -> list:
        """The values of all ranks, in order of rank."""
        if self.size == 1:
            return [value]
        values = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def from_first(self, make: Callable[[], Any]) -> Any:
        """What `make` returns on rank 0; the others don't call it. Its UserError is raised on all ranks."""
        return self._from(0, make, None)

    def once_per_node(self, make: Callable[[], Any]) -> Any:
        """As `from_first`, but `make` is called on the first rank of each machine."""
        return self._from(self.rank - self.local_rank, make, self.node)

    def _from(self, source: int, make: Callable[[], Any], group: Any) -> Any:
        if self.size == 1:
            return make()
        value = error = None
        if self.rank == source:
            try:
                value = make()
            except UserError as err:
                error = str(err)
        found = [value, error]
        dist.broadcast_object_list(found, src=source, group=group)
        if found[1] is not None:
            raise UserError(found[1])
        return found[0]


ALONE = World()


def start(device: torch.device) -> World:
    """Join the process group if `torchrun` started this process. Each local rank takes its own GPU."""
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        return World()
    rank, local_rank, local_size = (int(os.environ[name])
                                    for name in ("RANK", "LOCAL_RANK", "LOCAL_WORLD_SIZE"))
    if device.type == "cuda":
        torch.cuda.set_device(local_rank)
    # Right after a collective, Gloo's threads hold a lock of the interpreter for a moment. A child forked at
    # that moment waits for it forever (before Python 3.12: python/cpython#112275). So wait before each fork.
    machine.before_fork(lambda: time.sleep(0.05))
    dist.init_process_group("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    nodes = [list(range(begin, begin + local_size)) for begin in range(0, size, local_size)]
    node, _ = dist.new_subgroups_by_enumeration(nodes, backend="gloo")
    return World(rank, size, local_rank, local_size, node)


def stop() -> None:
    """Wait for all ranks, then end this process with exit code 0. Does nothing without `torchrun`."""
    if dist.is_initialized():
        dist.barrier()
        leave(0)


def leave(code: int) -> NoReturn:
    """End this process with exit code `code`. With `torchrun` its process groups are not destroyed.

    Gloo's destructor (PyTorch 2.11) holds the interpreter's lock while it waits for its worker thread. If the
    worker needs the lock at that moment, both wait forever.
    """
    if dist.is_initialized():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)
    sys.exit(code)


def wrap(model: nn.Module, kind: str, world: World, bf16: bool) -> nn.Module:
    """The module to train: `model` itself for one rank, else DDP ("auto", "ddp") or FSDP2 ("fsdp") around it.

    FSDP2 shards each block of the Thinker and computes in bf16 if `bf16` is set; gradients stay in fp32.
    """
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
def gradient_sync(module: nn.Module, on: bool) -> Iterator[None]:
    """Average gradients over ranks in this backward pass only if `on`: for a step's last micro-batch."""
    if isinstance(module, FSDPModule):
        module.set_requires_gradient_sync(on)
    with contextlib.nullcontext() if on or not isinstance(module, DistributedDataParallel) \
            else module.no_sync():
        yield


def evaluation_copy(model: nn.Module, kind: str, world: World) -> nn.Module:
    """The model to evaluate: `model` itself, or a whole copy of it if training will shard it.

    In evaluation ranks run different numbers of batches, which a sharded model doesn't allow.
    """
    return copy.deepcopy(model) if world.size > 1 and kind == "fsdp" else model


def update_evaluation_copy(evaluated: nn.Module, model: nn.Module) -> None:
    """Copy the trained weights to what `evaluation_copy` returned. All ranks call it together."""
    if evaluated is not model:
        evaluated.load_state_dict(gathered(model.state_dict()))


def gathered(state: Any) -> Any:
    """A state dict with whole tensors in place of shards. All ranks call it together."""
    if isinstance(state, dict):
        return {key: gathered(value) for key, value in state.items()}
    return state.full_tensor() if isinstance(state, DTensor) else state


def sharded_like(own: dict, whole_state: dict) -> dict:
    """The tensors of `whole_state`, sharded like those of `own`."""
    return {key: shard_like(own[key], value) if key in own else value for key, value in whole_state.items()}


def shard_like(own: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
    """This rank's shard of `value` if `own` is sharded, else `value`. All ranks hold the same `value`."""
    if not isinstance(own, DTensor) or value.shape != own.shape:
        return value
    return distribute_tensor(value.to(own.device), own.device_mesh, own.placements, src_data_rank=None)
