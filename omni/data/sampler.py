"""The weighted sampler: draw `k` of a run is a pure function of `(seed, k)`.

A source's weight is its share of all draws. An epoch is `samples_per_epoch` draws. Within a source every
sample is drawn once before any is drawn twice, and each pass has a new order. So a small source with a large
weight is repeated more often. The sampler has no state: a resumed run needs only the number of the next draw.
"""

from dataclasses import dataclass
from fractions import Fraction

import numpy as np


@dataclass(frozen=True)
class Draw:
    """One draw: the source's name, the sample's index in it, and the number of full passes before it."""

    source: str
    index: int
    passes: int


class _Split:
    """An inner node of the tree: a fixed share of its draws goes left, the rest right, evenly spaced.

    floor(n * share + 1/2) of the first n draws go left. So a prefix is never more than half a draw off, and
    a window of draws less than one. The arithmetic is in exact integers, so nothing drifts in a long run.
    """

    def __init__(self, left, right, left_weight: Fraction, right_weight: Fraction):
        self.left, self.right = left, right
        share = left_weight / (left_weight + right_weight)
        self.numerator, self.denominator = share.numerator, share.denominator

    def left_count(self, n: int) -> int:
        """How many of the first n draws go left."""
        return (2 * n * self.numerator + self.denominator) // (2 * self.denominator)


class WeightedSampler:
    """Distributes draws over sources by weight; within a source each pass is a seeded permutation.

    `sizes` and `weights` map a source's name to its number of samples and its relative weight. A source with
    weight 0 is not drawn; ValueError if no weight is above 0.
    """

    def __init__(self, sizes: dict[str, int], weights: dict[str, float], seed: int):
        self.sizes, self.seed = sizes, seed
        self.source_ids = {name: i for i, name in enumerate(sorted(sizes))}  # part of a permutation's seed
        self._permutations: dict[str, dict[int, np.ndarray]] = {name: {} for name in sizes}
        used = [(Fraction(str(weights[name])), name) for name in sorted(sizes) if weights[name] > 0]
        if not used:
            raise ValueError("no source has a weight above 0")
        # A Huffman tree over the weights: few splits per draw, and the small weights deepest.
        nodes = sorted(used, key=lambda node: node[0])
        while len(nodes) > 1:
            (a, left), (b, right), *rest = nodes
            nodes = sorted([*rest, (a + b, _Split(left, right, a, b))], key=lambda node: node[0])
        self.root = nodes[0][1]

    def __getitem__(self, k: int) -> Draw:
        """Draw `k` (0, 1, 2, ...)."""
        node, n = self.root, k
        while isinstance(node, _Split):
            before = node.left_count(n)
            if node.left_count(n + 1) > before:
                node, n = node.left, before
            else:
                node, n = node.right, n - before
        passes, position = divmod(n, self.sizes[node])
        return Draw(node, int(self._permutation(node, passes)[position]), passes)

    def _permutation(self, source: str, passes: int) -> np.ndarray:
        """The order of one pass: (size of the source,) int64.

        Each source keeps its own newest two: making one takes time in proportion to the source's size, and
        draws near the end of a pass need the next pass too.
        """
        newest = self._permutations[source]
        if passes not in newest:
            rng = np.random.default_rng([self.seed, self.source_ids[source], passes])
            while len(newest) > 1:
                del newest[next(iter(newest))]
            newest[passes] = rng.permutation(self.sizes[source])
        return newest[passes]

    def __getstate__(self) -> dict:
        """Without the permutations: a worker makes those that it needs."""
        return {**self.__dict__, "_permutations": {name: {} for name in self.sizes}}
