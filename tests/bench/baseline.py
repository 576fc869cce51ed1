"""The baselines: `transformers.Trainer` with the same modules and the same samples in each step.

It trains in the usual way: encoders under `no_grad` in every step, logits at all positions, and batches
padded to their longest sample. With `dense`, every row is padded to 512 tokens, with a dense (B, T, T) mask.
"""

import statistics
import tempfile
import time
from dataclasses import replace
from itertools import pairwise

import torch
from torch import nn
from torch.nn import functional as F
from transformers import Trainer, TrainerCallback, TrainingArguments

from omni.base.device import autocast
from omni.data.batch import IGNORE
from tests.bench.padded import embed, hidden, pad
from tests.bench.workload import Workload

DENSE_LENGTH = 512


class TrainerModel(nn.Module):
    """Adapts an OmniNetwork to the Trainer's interface."""

    def __init__(self, workload: Workload):
        super().__init__()
        self.omni = workload.model

    def forward(self, padded, labels, dense_mask=None, num_items_in_batch=None):
        moved = replace(padded, batch=padded.batch.to(labels.device))
        states = hidden(self.omni.thinker, embed(self.omni, moved), dense_mask)
        logits = self.omni.thinker.logits(states).float()
        loss = F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=IGNORE)
        return {"loss": loss, "logits": logits}


class StepTimes(TrainerCallback):
    def __init__(self):
        self.ends: list[float] = []

    def on_step_end(self, *args, **kwargs):
        self.ends.append(time.perf_counter())


class InOrder(Trainer):
    """A Trainer that takes our steps in their order."""

    def _get_train_sampler(self, *args, **kwargs):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def collator(workload: Workload, dense: bool):
    """[step] -> the step's batch, padded, as keyword arguments."""
    def collate(steps: list[int]) -> dict:
        packed = workload.dataset[steps[0]].batches[0]
        padded = pad(packed, workload.model.tokenizer.pad, IGNORE, DENSE_LENGTH if dense else None)
        found = {"padded": padded, "labels": padded.labels}
        if dense:
            places = torch.arange(DENSE_LENGTH)
            valid = places < padded.lengths[:, None]
            found["dense_mask"] = ((places[:, None] >= places) & valid[:, None, :])[:, None]  # (B, 1, T, T)
        return found
    return collate


def seconds_a_step(workload: Workload, device: torch.device, steps: int, dense: bool = False,
                   warm: int = 2) -> float:
    """Median seconds of a training step, after `warm` warm-up steps."""
    config, times = workload.config, StepTimes()
    bf16 = not isinstance(autocast(device, config.precision), type(autocast(device, "fp32")))
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(
            output_dir=folder, max_steps=steps + warm, per_device_train_batch_size=1, bf16=bf16,
            learning_rate=config.learning_rate, lr_scheduler_type="cosine", warmup_steps=config.warmup_steps,
            weight_decay=config.weight_decay, max_grad_norm=config.grad_clip, optim="adamw_torch_fused",
            use_cpu=device.type == "cpu", report_to=[], save_strategy="no", logging_steps=20,
            remove_unused_columns=False, disable_tqdm=True, dataloader_pin_memory=device.type == "cuda")
        InOrder(TrainerModel(workload), args, data_collator=collator(workload, dense),
                train_dataset=list(range(steps + warm)), callbacks=[times]).train()
    return statistics.median(b - a for a, b in pairwise(times.ends[warm - 1:]))
