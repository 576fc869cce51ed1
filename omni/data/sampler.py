"""The weighted multimodal sampler: draw `k` of the run is a pure function of `(seed, k)`.

What a weight weighs: samples drawn, not passes over a source. An epoch is `samples_per_epoch` draws. Within a
source every sample is drawn once before any is drawn twice, each pass in a new order; a small source with a
large weight is therefore passed over more often. Nothing is ever remembered, so a resume needs one integer,
costs nothing and is exact.
"""

from dataclasses import dataclass
from fractions import Fraction
from functools import lru_cache

import numpy as np


@dataclass(frozen=True)
class Draw:
    """One draw: the source's name, the number of the sample in it, and how often it was drawn before."""

    source: str
    index: int
    passes: int


class _Split:
    """A node of the tree that deals the draws out: its `share` goes left, the rest right, evenly.

    Of its first n draws floor(n * share + 1/2) go left: never more than half a draw off, and any window of n
    draws is less than one draw off. Exact integer arithmetic: no drift, however long the run.
    """

    def __init__(self, left, right, left_weight: Fraction, right_weight: Fraction):
        self.left, self.right = left, right
        share = left_weight / (left_weight + right_weight)
        self.a, self.b = share.numerator, share.denominator

    def lefts(self, n: int) -> int:
        return (2 * n * self.a + self.b) // (2 * self.b)


class WeightedSampler:
    """Deals draws out to sources by weight, and within a source by a seeded permutation a pass.

    `sizes` and `weights` map a source's name to its number of samples and its weight (relative; 0 leaves it
    out).
    """

    def __init__(self, sizes: dict[str, int], weights: dict[str, float], seed: int):
        self.sizes, self.seed = sizes, seed
        self.number = {name: i for i, name in enumerate(sorted(sizes))}  # of the source in its random streams
        used = [(Fraction(str(weights[name])), name) for name in sorted(sizes) if weights[name] > 0]
        if not used:
            raise ValueError("no source has a weight above 0")
        # Huffman's tree over the weights: few splits a draw, and the small weights deepest.
        nodes = sorted(used, key=lambda node: node[0])
        while len(nodes) > 1:
            (a, left), (b, right), *rest = nodes
            nodes = sorted([*rest, (a + b, _Split(left, right, a, b))], key=lambda node: node[0])
        self.root = nodes[0][1]

    def __getitem__(self, k: int) -> Draw:
        """Draw `k` (0, 1, 2, ...)."""
        node, n = self.root, k
        while isinstance(node, _Split):
            before = node.lefts(n)
            if node.lefts(n + 1) > before:
                node, n = node.left, before
            else:
                node, n = node.right, n - before
        passes, position = divmod(n, self.sizes[node])
        return Draw(node, int(self._order(node, passes)[position]), passes)

    @lru_cache(maxsize=16)  # noqa: B019 - one sampler lives as long as its run
    def _order(self, source: str, passes: int) -> np.ndarray:
        return np.random.default_rng([self.seed, self.number[source], passes]).permutation(self.sizes[source])
