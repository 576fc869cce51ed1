"""What a run prints before it trains, and the check that `--dry-run` makes."""

from pathlib import Path

import torch

from omni.base import checkpoint
from omni.base.config import SFTConfig
from omni.base.console import say
from omni.base.device import autocast, gpu_memory_gb, peak_memory_gb
from omni.base.errors import UserError
from omni.data import skipped
from omni.data.collate import Collator
from omni.data.decoding import Decoder
from omni.data.loader import Schedule
from omni.data.mixture import Mix
from omni.data.sample import Sample
from omni.model.omni import OmniNetwork
from omni.train.features import unusable_media


def describe(model: OmniNetwork, mix: Mix, schedule: Schedule, config: SFTConfig,
             device: torch.device) -> None:
    """Print which parameters are trained, on how many samples of each source, for how many steps."""
    parts = {"thinker": [model.thinker], "projectors": [model.audio_projector, model.vision_projector],
             "encoders": model.encoders()}
    for name, modules in parts.items():
        trained = sum(p.numel() for m in modules for p in m.parameters() if p.requires_grad)
        frozen = sum(p.numel() for m in modules for p in m.parameters() if not p.requires_grad)
        say(f"{name}: {trained:,} parameters trained, {frozen:,} frozen")
    total = sum(mix.weights.values())
    for name, samples in mix.train.items():
        say(f"source {name}: {mix.weights[name] / total:.1%} of the draws, {len(samples):,} training and "
            f"{len(mix.val[name]):,} held-out samples")
    for line in skipped.lines(mix):
        say(line)
    say(f"{schedule.epochs} epochs of {schedule.samples_per_epoch:,} draws = {schedule.steps:,} steps of "
        f"{config.batch_size} samples, on {device.type}")


def mix_lines(shares: dict[str, dict[str, float]]) -> list[str]:
    """A line per source about the mix of an epoch; `shares` is that of `EpochTotals.mix_shares`."""
    lines = []
    for name, share in shares.items():
        drawn = f"{share['samples']:.1%} of samples, {share['tokens']:.1%} of answer tokens"
        if "passes" in share:
            lines.append(f"    mix {name}: wanted {share['wanted']:.1%}, drawn {drawn}; "
                         f"{share['passes']:.2f} passes so far")
        else:
            lines.append(f"    mix {name}: no longer in the mix, drawn {drawn} before it was removed")
    return lines


def frozen_line(model: OmniNetwork, before: str) -> str:
    """Whether the frozen weights are what they were; `before` is their hash at the start."""
    after = checkpoint.fingerprint(model.frozen_weights())
    return f"frozen weights: {before} before, {after} after: {'equal' if after == before else 'CHANGED'}"


def written_line(path: Path, seconds: float, evaluation: float) -> str:
    """The last line of a run, which took `seconds`: `evaluation` of them for evaluation."""
    return (f"wrote {path} after {seconds / 60:.1f} minutes, {evaluation / 60:.1f} of them for evaluation; "
            f"peak memory {peak_memory_gb():.2f} GB")


def _unusable(sample: Sample, bad: dict[str, str], collate: Collator, decoder: Decoder) -> str | None:
    """Why a sample can't be used, if it can't; `bad` is {path: reason}."""
    broken = next((path for path in sample.images + sample.audios if path in bad), None)
    if broken is not None:
        return f"{broken}: {bad[broken]}"
    return collate.overlong(sample, decoder.frames)[1]


def dry_run(model: OmniNetwork, mix: Mix, collate: Collator, decoder: Decoder, config: SFTConfig,
            device: torch.device) -> None:
    """Run one batch of each source forward and backward, and print its loss per answer token.

    Other media than those of the batches are not read. UserError if no sample of a batch can be used.
    """
    for name, samples in mix.train.items():
        first = samples[:config.batch_size]
        bad = unusable_media(first, 1, decoder, name)
        reasons = [_unusable(sample, bad, collate, decoder) for sample in first]
        good = [sample for sample, reason in zip(first, reasons, strict=True) if reason is None]
        for reason in filter(None, reasons):
            say(f"dry run of {name}: a sample can't be used: {reason}")
        if not good:
            raise UserError(f"source {name}: none of its first {len(first)} samples can be used; look at it "
                            f"with: python -m omni.inspect {mix.files[f'{name}.train']}")
        batch = collate(good).to(device)
        with autocast(device, config.precision):
            loss, _ = model(batch)
        (loss / batch.answer_tokens).backward()
        model.zero_grad(set_to_none=True)
        say(f"dry run of {name}: batch of {batch.summary}, "
            f"{batch.answer_tokens} of them answers, loss {loss.item() / batch.answer_tokens:.3f}")
    gpu = f", {gpu_memory_gb(device):.2f} GB on the GPU" if device.type == "cuda" else ""
    say("dry run: media outside these batches were not read; python -m omni.inspect reads those of a source")
    say(f"dry run: done; peak memory {peak_memory_gb():.2f} GB{gpu}")
