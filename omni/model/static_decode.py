"""Decoding over static shapes: on a GPU the step of one token per row is captured as a CUDA graph.

For a small model, launching the kernels of a token one by one takes several times as long as computing it.
"""

import torch

from omni.base.console import say
from omni.data.layout import bucket
from omni.model.attention import DecodeLayout, compute_dtype
from omni.model.layers import LayerCache
from omni.model.thinker import Thinker

ROW_BUCKETS, LENGTH_BUCKETS = 8, 4  # sizes per octave
MAX_KEPT = 2 ** 29  # bytes of caches that are kept for the next prompts: training needs the memory too


def worth_it(device: torch.device) -> bool:
    """Whether tokens are decoded over static shapes on this device."""
    return device.type == "cuda" and torch.cuda.is_available()


class StaticDecoder:
    """Decodes `rows` rows of up to `length` tokens: always the same kernels on the same memory.

    The first token is computed plainly, as a warm-up. From the second on a graph is replayed.
    """

    def __init__(self, thinker: Thinker, rows: int, length: int, like: torch.Tensor):
        self.thinker, self.length, self.device = thinker, length, like.device
        dtype = compute_dtype(like)
        self.cache: list[LayerCache] = thinker.new_cache(rows, length, like.new_empty(0, dtype=dtype))
        self.token, self.positions = (torch.zeros(rows, dtype=torch.int64, device=like.device)
                                      for _ in range(2))
        self.logits = torch.empty(0)
        self.graph: torch.cuda.CUDAGraph | None = None
        self.warm, self.captures = False, self.device.type == "cuda"

    @property
    def nbytes(self) -> int:
        return sum(layer.keys.nbytes + layer.values.nbytes for layer in self.cache)

    def begin(self, lengths: torch.Tensor) -> None:
        """Forget earlier prompts. `lengths` (B,) are those of the new ones, at most as many as rows."""
        for layer in self.cache:
            layer.keys.zero_()
            layer.values.zero_()
        self.positions.zero_()
        self.positions[:len(lengths)] = lengths

    def __call__(self, token: torch.Tensor) -> torch.Tensor:
        """Add the next token of each prompt (B,) to the cache -> logits (B, V), valid until the next call."""
        self.token[:len(token)] = token
        if self.graph is None and self.warm and self.captures:
            self._capture()
        if self.graph is not None:
            self.graph.replay()
        else:
            self._step()
            self.warm = True
        return self.logits[:len(token)]

    def _step(self) -> None:
        # A cast that autocast remembers would be outside of the graph.
        kind = self.device.type
        with torch.autocast(kind, torch.get_autocast_dtype(kind), cache_enabled=False,
                            enabled=torch.is_autocast_enabled(kind)):
            layout = DecodeLayout(self.positions, reach=self.length)
            hidden = self.thinker.decode(self.thinker.embed(self.token), self.cache, layout)
            self.logits = self.thinker.logits(hidden)
        self.positions += 1

    def _capture(self) -> None:
        graph, before = torch.cuda.CUDAGraph(), self.logits
        try:
            torch.cuda.synchronize()
            # The outer block restores the stream where the capture fails.
            with torch.cuda.stream(torch.cuda.current_stream()), \
                    torch.cuda.graph(graph, capture_error_mode="thread_local"):
                self._step()
            self.graph = graph
        except RuntimeError as err:  # out of memory is one too
            self.captures, self.logits = False, before
            say(f"answers are generated without CUDA graphs: {str(err).splitlines()[0]}")


def decoder_for(thinker: Thinker, rows: int, length: int, like: torch.Tensor) -> StaticDecoder:
    """A decoder for at least `rows` rows of `length` tokens, with the device and precision of `like`.

    It is kept with the Thinker, until its weights are moved or others need the memory.
    """
    rows, length = bucket(rows, ROW_BUCKETS, least=2), bucket(length, LENGTH_BUCKETS, least=64)
    places = hash(tuple(p.data_ptr() for p in thinker.parameters()))
    key = rows, length, compute_dtype(like), places
    kept: dict[tuple, StaticDecoder] = thinker.__dict__.setdefault("static_decoders", {})
    for other in [other for other in kept if other[-1] != places]:
        del kept[other]
    if key not in kept:
        decoder = StaticDecoder(thinker, rows, length, like)
        if decoder.nbytes > MAX_KEPT:
            return decoder
        while sum(other.nbytes for other in kept.values()) + decoder.nbytes > MAX_KEPT:
            del kept[next(iter(kept))]  # the oldest
        kept[key] = decoder
    return kept[key]
