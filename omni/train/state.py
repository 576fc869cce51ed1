"""Where a run stands: the part of it that changes with every step, and that a step checkpoint stores."""

import math
from dataclasses import dataclass, field

import torch

from omni.data.mixture import Mix


@dataclass
class EpochTotals:
    """Sums over the steps of an epoch that were applied, over all ranks."""

    loss: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    answer_tokens: int = 0
    by_source: dict[str, list[int]] = field(default_factory=dict)  # source -> [samples, answer tokens]

    def add(self, loss: torch.Tensor, by_source: dict[str, list[int]]) -> None:
        """Add a step: its loss summed over answer tokens, and [samples, answer tokens] of each source."""
        self.loss = self.loss + loss.double()
        self.answer_tokens += sum(tokens for _, tokens in by_source.values())
        for name, counts in by_source.items():
            before = self.by_source.get(name, [0, 0])
            self.by_source[name] = [a + b for a, b in zip(before, counts, strict=True)]

    @property
    def mean_loss(self) -> float:
        """Loss per answer token; 0 before the first step."""
        return float(self.loss) / max(1, self.answer_tokens)

    def mix_shares(self, mix: Mix, epoch: int) -> dict[str, dict[str, float]]:
        """The mix that was drawn in `epoch` (from 0): a row for each source.

        A row has the share of samples that was wanted, the shares of samples and of answer tokens that were
        drawn, and the passes over the source since the run began. A source that was drawn but has since left
        the mix (a resume can change it) has a wanted share of 0 and no "passes".
        """
        samples, tokens = (max(1, sum(count[i] for count in self.by_source.values())) for i in (0, 1))
        weights = sum(mix.weights.values())
        shares = {}
        for name, (drawn, answers) in sorted(self.by_source.items()):
            shares[name] = {"wanted": mix.weights.get(name, 0.0) / weights, "samples": drawn / samples,
                            "tokens": answers / tokens}
            if name in mix.train:
                shares[name]["passes"] = drawn * (epoch + 1) / len(mix.train[name])
        return shares

    def content(self) -> dict:
        """For a step checkpoint."""
        return {"loss": self.loss, "tokens": self.answer_tokens, "mix": self.by_source}

    @classmethod
    def from_content(cls, content: dict) -> "EpochTotals":
        return cls(content["loss"], content["tokens"], content["mix"])


@dataclass
class TrainState:
    """How far a run has come. Weights and optimizer state are apart from it."""

    step: int = 0  # steps done, skipped ones among them
    totals: EpochTotals = field(default_factory=EpochTotals)  # of the current epoch
    bad_steps_in_a_row: int = 0
    totals_before_bad: EpochTotals = field(default_factory=EpochTotals)  # before the first bad one in a row
    best_val_loss: float = math.inf

    def add_step(self, loss: torch.Tensor, by_source: dict[str, list[int]]) -> None:
        """Count a step that was applied; arguments as for `EpochTotals.add`."""
        self.step += 1
        self.bad_steps_in_a_row = 0
        self.totals.add(loss, by_source)

    def add_bad_step(self) -> None:
        """Count a step that was skipped because its loss or gradients are not finite."""
        if not self.bad_steps_in_a_row:
            self.totals_before_bad = self.totals  # of this epoch, even if the next bad step is in the next
        self.step += 1
        self.bad_steps_in_a_row += 1

    def content(self) -> dict:
        """For a step checkpoint: the state before the bad steps at the end, so that a resume repeats them."""
        totals = self.totals_before_bad if self.bad_steps_in_a_row else self.totals
        return {"step": self.step - self.bad_steps_in_a_row, "sums": totals.content()}

    @classmethod
    def from_content(cls, content: dict) -> "TrainState":
        """The state in a step checkpoint. The best loss is not part of it: metrics.jsonl has it."""
        return cls(content["step"], EpochTotals.from_content(content["sums"]))
