"""What a run tells before it trains: what is trained on what, what `--dry-run` tries, what is known."""

import torch

from omni.config import SFTConfig
from omni.console import say
from omni.data.collate import Collator
from omni.data.loader import Schedule
from omni.data.mixture import Mix
from omni.device import autocast, gpu_memory_gb, peak_memory_gb
from omni.model.omni import OmniNetwork


def describe(model: OmniNetwork, mix: Mix, schedule: Schedule, config: SFTConfig,
             device: torch.device) -> None:
    """Say what is trained, on how many samples a source, for how many steps."""
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
    for line in skipped_lines(mix):
        say(line)
    say(f"{schedule.epochs} epochs of {schedule.samples_per_epoch:,} draws = {schedule.steps:,} steps of "
        f"{config.batch_size} samples, on {device.type}")


def skipped_lines(mix: Mix) -> list[str]:
    """A line a source on what was skipped and why, and one on what is cut."""
    lines = [f"source {name}: {sum(reasons.values())} samples skipped"
             + "".join(f"; {count}x {reason}" for reason, count in reasons.items())
             for name, reasons in mix.reasons().items()]
    return lines + [f"source {name}: {count} samples are longer than max_length and lose the front of their "
                    "prompt" for name, count in mix.cut.items()]


def dry_run(model: OmniNetwork, mix: Mix, collate: Collator, config: SFTConfig, device: torch.device) -> None:
    """One batch of each source through forward and backward."""
    for name, samples in mix.train.items():
        batch = collate(samples[:config.batch_size]).to(device)
        with autocast(device, config.precision):
            loss, _ = model(batch)
        (loss / batch.answer_tokens).backward()
        model.zero_grad(set_to_none=True)
        say(f"dry run of {name}: batch of {batch.shape}, "
            f"{batch.answer_tokens} of them answers, loss {loss.item() / batch.answer_tokens:.3f}")
    gpu = f", {gpu_memory_gb(device):.2f} GB on the GPU" if device.type == "cuda" else ""
    say(f"dry run: all is well; peak memory {peak_memory_gb():.2f} GB{gpu}")
