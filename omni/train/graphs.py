"""A training step as one CUDA graph: a small model spends most of a step on launching kernels one by one.

A graph repeats the same kernels on the same memory. So batches are padded to a few sizes (`StaticSizes`), and
a graph is captured for each size. A step copies its batch to the graph's memory, then replays the graph.
"""

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from omni.base.console import say
from omni.base.device import autocast
from omni.base.errors import UserError
from omni.data.batch import Batch, mapped, tensors_of
from omni.data.drawn import DrawnDataset
from omni.data.loader import StepDataset
from omni.data.static_batch import StaticSizes, has_media_to_encode
from omni.model.attention import has_packed_kernel
from omni.train import optim
from omni.train.run import Run

TakeStep = Callable[[list[Batch], int | torch.Tensor], torch.Tensor]
WARM_UP = 3  # plain steps before the first capture: they allocate what stays, such as AdamW's moments
SEEN = 32  # steps whose batches decide the sizes
MAX_WEIGHTS = 200_000_000  # of the Thinker: a larger one keeps a GPU busy without graphs
LOSS_TOLERANCE, NORM_TOLERANCE = 0.01, 0.05  # in bf16 the same step differs by less, if kernels differ


def choose(run: Run, take: TakeStep) -> "Taker":
    """By CUDA graphs where that works and pays, else plainly. Prints which, and why."""
    reason = _obstacle(run)
    if reason is None:
        first = _first_batches(run.dataset)
        if first is None:
            reason = "some media are encoded in the steps"
        else:
            graphed = GraphedStep(run, take, StaticSizes(first))
            sizes = ", ".join(f"{size.tokens:,}" for size in graphed.sizes.sizes)
            say(f"steps: CUDA graphs for batches of up to {sizes} tokens")
            return graphed
    if run.device.type == "cuda":
        say(f"steps: kernel by kernel, without CUDA graphs, since {reason}")
    return PlainStep(take)


def _first_batches(dataset: StepDataset) -> list[Batch] | None:
    """The batches of the steps from 0 on, also after a resume; None if some hold media to be encoded."""
    batches = []
    if isinstance(dataset, DrawnDataset):
        return None
    for number in range(min(SEEN, len(dataset))):
        step = dataset[number]
        if isinstance(step, UserError):
            raise step
        if has_media_to_encode(step.batches[0]):
            return None
        batches.append(step.batches[0])
    return batches


def _obstacle(run: Run) -> str | None:
    """Why graphs can't be used, or don't pay; None if they are used."""
    thinker, config = run.model.thinker, run.config
    small = sum(p.numel() for p in thinker.parameters()) <= MAX_WEIGHTS
    checks = ((run.device.type == "cuda", "there is no CUDA"),
              (config.cuda_graphs, '"cuda_graphs" is false'),
              (run.world.size == 1, "there are several ranks"),
              (config.gradient_accumulation_steps == 1, "gradients are accumulated"),
              (config.frozen >= {"audio", "vision"}, "encoders are trained"),
              (not config.activation_checkpointing, "activations are recomputed"),
              (small or config.cuda_graphs is True, "a Thinker of this size doesn't need them"))
    for holds, reason in checks:
        if not holds:
            return reason
    with autocast(run.device, config.precision):
        heads = torch.empty(0, thinker.arch.head_dim, device=run.device)
        return None if has_packed_kernel(heads) else "attention needs bf16 for that"


class PlainStep:
    """Steps as `take` is written."""

    def __init__(self, take: TakeStep):
        self.take = take

    def prepare(self, batch: Batch) -> Batch:
        return batch

    def __call__(self, batches: list[Batch], answer_tokens: int) -> torch.Tensor:
        return self.take(batches, answer_tokens)


@dataclass
class _Graph:
    """A captured step with its own batch, which the next one is copied into."""

    batch: Batch
    answer_tokens: torch.Tensor
    replay: Callable[[Batch], torch.Tensor]

    def __call__(self, batch: Batch, answer_tokens: torch.Tensor) -> torch.Tensor:
        by_dtype: dict[torch.dtype, tuple[list, list]] = {}  # a copy of many tensors takes one dtype
        for own, new in zip(tensors_of(self.batch), tensors_of(batch), strict=True):
            pair = by_dtype.setdefault(own.dtype, ([], []))
            pair[0].append(own)
            pair[1].append(new)
        for own, new in by_dtype.values():
            torch._foreach_copy_(own, new)
        self.answer_tokens.copy_(answer_tokens)
        return self.replay(batch).clone()  # the next replay overwrites it


class GraphedStep:
    """Steps as graphs, one for each size. A batch that fits in no size is taken plainly.

    All steps run on a stream of their own: gradients remember the stream of their first backward pass, and a
    graph can't be captured on another one. Each graph is compared with the plain step on the same batch. The
    graphs share their memory, since only one is replayed at a time.
    """

    def __init__(self, run: Run, take: TakeStep, sizes: StaticSizes):
        self.run, self.take, self.sizes = run, take, sizes
        self.graphs: dict[int, _Graph] = {}  # by the number of tokens
        self.taken, self.works = 0, True
        self.stream = torch.cuda.Stream() if run.device.type == "cuda" else None
        self.pool = torch.cuda.graph_pool_handle() if self.stream else None
        optim.make_capturable(run.update.optimizer)

    def prepare(self, batch: Batch) -> Batch:
        return self.sizes.fit(batch) or batch

    def __call__(self, batches: list[Batch], answer_tokens: int) -> torch.Tensor:
        batch, = batches
        tokens, static = len(batch.ids), self.sizes.holds(batch)
        self.taken += 1
        with self._on_own_stream():
            # A tensor also for plain steps: a GPU divides by a number with other bits.
            count = torch.full((), answer_tokens, dtype=torch.float32, device=batch.ids.device)
            if not static or not self.works or self.taken <= WARM_UP:
                return self.take(batches, count)
            if tokens not in self.graphs:
                return self._first(batch, count)
            return self.graphs[tokens](batch, count)

    @contextlib.contextmanager
    def _on_own_stream(self) -> Iterator[None]:
        if self.stream is None:
            yield
            return
        outer = torch.cuda.current_stream()
        self.stream.wait_stream(outer)
        try:
            with torch.cuda.stream(self.stream):
                yield
        finally:
            outer.wait_stream(self.stream)

    def _first(self, batch: Batch, answer_tokens: torch.Tensor) -> torch.Tensor:
        """Capture the graph of a size, and take a step by it. If that fails, all steps are plain from now on.
        """
        changing = self._changing()
        before = [tensor.clone() for tensor in changing]
        wanted = self.take([batch], answer_tokens)  # also a warm-up: it allocates what this size needs
        torch._foreach_copy_(changing, before)
        try:
            graph = _captured(self.take, batch, answer_tokens, self.stream, self.pool)
            found = graph(batch, answer_tokens)
            problem = _difference(found, wanted)
            if problem is None and bool(found[2]) and all(map(torch.equal, changing, before)):
                problem = "it changes no weight"
        except RuntimeError as err:  # too little memory is one too
            found, problem = None, str(err).splitlines()[0]
        if problem is None:
            self.graphs[len(batch.ids)] = graph
            return found
        say(f"CUDA graphs are not used: {problem}; steps are taken kernel by kernel, as with "
            '"cuda_graphs": false')
        self.works = False
        self.graphs.clear()
        self.run.update.optimizer.zero_grad(set_to_none=True)
        torch._foreach_copy_(changing, before)
        return self.take([batch], answer_tokens)

    def _changing(self) -> list[torch.Tensor]:
        """Every tensor that a step changes: weights, moments, and the count of bad steps."""
        update, state = self.run.update, self.run.update.optimizer.state
        return [*(p.data for p in update.params), *(x for p in update.params for x in state[p].values()),
                update.bad]


def _captured(take: TakeStep, batch: Batch, answer_tokens: torch.Tensor, stream, pool) -> _Graph:
    """Capture a step. On a CPU, which has no graphs, the replay is the step itself."""
    batch = mapped(batch, torch.clone)
    tokens = answer_tokens.clone()
    if stream is None:
        return _Graph(batch, tokens, lambda new: take([_with_lengths(batch, new)], tokens))
    graph = torch.cuda.CUDAGraph()
    torch.cuda.synchronize()
    # The thread that copies batches ahead may use the GPU meanwhile.
    with torch.cuda.graph(graph, pool, stream, capture_error_mode="thread_local"):
        figures = take([batch], tokens)

    def replay(_) -> torch.Tensor:
        graph.replay()
        return figures
    return _Graph(batch, tokens, replay)


def _with_lengths(batch: Batch, new: Batch) -> Batch:
    """The batch with the lengths of `new`, which a CPU makes bins from. All else is in the tensors."""
    return replace(batch, layout=replace(batch.layout, lengths=new.layout.lengths))


def _difference(found: torch.Tensor, wanted: torch.Tensor) -> str | None:
    """What is wrong with the figures of a graph, compared with those of the plain step."""
    if not (found.isfinite().all() or wanted.isfinite().all()):
        return None
    for name, ours, plain, tolerance in zip(("loss", "gradient norm"), found.tolist(), wanted.tolist(),
                                            (LOSS_TOLERANCE, NORM_TOLERANCE), strict=False):
        if not abs(ours - plain) <= tolerance * abs(plain):
            return f"their {name} is {ours:.5g}, that of the plain step {plain:.5g}"
    return None


Taker = PlainStep | GraphedStep
