"""What an epoch adds up, and the mix that came of it."""

import torch

from omni.data.mixture import Mix


def new_sums() -> dict:
    """What an epoch adds up: the loss over its answer tokens, and samples and answer tokens a source."""
    return {"loss": torch.zeros((), dtype=torch.float64), "tokens": 0, "mix": {}}


def add_step(sums: dict, loss: torch.Tensor, sources: dict[str, list[int]]) -> None:
    sums["loss"] = sums["loss"] + loss.double()
    sums["tokens"] += sum(tokens for _, tokens in sources.values())
    for name, counts in sources.items():
        sums["mix"][name] = [a + b for a, b in zip(sums["mix"].get(name, [0, 0]), counts, strict=True)]


def realised(mix: Mix, counts: dict[str, list[int]], epoch: int) -> dict[str, dict[str, float]]:
    """What an epoch drew: {source: share wanted, shares of samples and of answer tokens, passes so far}."""
    samples, tokens = (sum(count[i] for count in counts.values()) for i in (0, 1))
    total = sum(mix.weights.values())
    return {name: {"wanted": mix.weights[name] / total, "samples": count / samples,
                   "tokens": answer / tokens, "passes": count * (epoch + 1) / len(mix.train[name])}
            for name, (count, answer) in sorted(counts.items())}
