"""The progress of a run: what changes with every step, which a step checkpoint stores."""

from dataclasses import dataclass, field

import torch

from omni.data.mixture import Mix


@dataclass
class EpochTotals:
    """Sums over the applied (not skipped) steps of an epoch, over all ranks."""

    loss: torch.Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    answer_tokens: int = 0
    by_source: dict[str, list[int]] = field(default_factory=dict)  # source -> [samples, answer tokens]

    def add(self, loss: float, by_source: dict[str, list[int]]) -> None:
        """Add a step: its loss summed over answer tokens, and [samples, answer tokens] of each source."""
        self.loss = self.loss + loss
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

        "wanted" is the share of samples that the weights ask for, "samples" and "tokens" are the shares of
        samples and answer tokens that were drawn. "passes" estimates the passes over the source since the run
        began, as if every epoch had drawn as many samples. A source that was drawn and then left the mix (on
        a resume) has "wanted" 0 and no "passes".
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
    """How far a run has come. Weights and optimizer state are stored separately."""

    step: int = 0  # steps done, including skipped ones
    totals: EpochTotals = field(default_factory=EpochTotals)  # of the current epoch
    bad_steps_in_a_row: int = 0
    rate_before: float = 0.0  # learning rate of the last step before a resume
    totals_before_bad: EpochTotals = field(default_factory=EpochTotals)  # at the first bad step in a row

    def add_step(self, loss: float, by_source: dict[str, list[int]]) -> None:
        """Count a step that was applied; arguments as for `EpochTotals.add`."""
        self.step += 1
        self.bad_steps_in_a_row = 0
        self.totals.add(loss, by_source)

    def add_bad_step(self) -> None:
        """Count a step that was skipped because its loss or gradients are not finite."""
        if not self.bad_steps_in_a_row:
            self.totals_before_bad = self.totals  # of this epoch, which may end before a good step
        self.step += 1
        self.bad_steps_in_a_row += 1

    def content(self) -> dict:
        """For a step checkpoint: the state before the latest bad steps, so that a resume repeats them."""
        totals = self.totals_before_bad if self.bad_steps_in_a_row else self.totals
        return {"step": self.step - self.bad_steps_in_a_row, "sums": totals.content()}

    @classmethod
    def from_content(cls, content: dict) -> "TrainState":
        """The state in a step checkpoint. The best figure is not part of it: metrics.jsonl has it."""
        return cls(content["step"], EpochTotals.from_content(content["sums"]))
