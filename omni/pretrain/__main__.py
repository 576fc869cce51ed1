"""Stages A, B and C: make the three part checkpoints that `sft_omni.py` starts from.

    python -m omni.pretrain --config configs/thinker_text.json      A: next-token prediction
    python -m omni.pretrain --config configs/thinker_tiny.json      A: more about pictures
    python -m omni.pretrain --config configs/audio_shipped.json     B: CTC
    python -m omni.pretrain --config configs/audio_enc_tiny.json    B: more voices
    python -m omni.pretrain --config configs/thinker_heard.json     A: what the audio encoder hears
    python -m omni.pretrain --config configs/audio_projector.json   B: the Thinker's words of what is heard
    python -m omni.pretrain --config configs/vision_captions.json   C: captions and answers
    python -m omni.pretrain --config configs/vision_tiny.json       C: what is where
    python -m omni.pretrain --config configs/vision_projector.json  C: the Thinker's words of what is seen

Each works on any manifest and can be stopped and continued (--resume). The loop is here; the loss and metrics
of a stage are in the module of its part.
"""

import argparse
import sys

import torch
from tqdm import tqdm

from omni.base import checkpoint
from omni.base.config import PretrainConfig
from omni.base.config_file import load_config
from omni.base.console import command, say
from omni.base.device import autocast, choose_device
from omni.base.errors import UserError
from omni.pretrain.audio_encoder import AudioStage
from omni.pretrain.progress import Progress
from omni.pretrain.projector import AudioProjectorStage, VisionProjectorStage
from omni.pretrain.stage import Stage
from omni.pretrain.thinker import ThinkerStage
from omni.pretrain.vision_boxes import BoxStage
from omni.pretrain.vision_encoder import VisionStage
from omni.train import optim
from omni.train.interrupts import StopSignal
from omni.train.prefetch import ahead

SHOWN = 20  # steps after which a GPU's loss is shown
STAGES = {"thinker": ThinkerStage, "audio": AudioStage, "vision": VisionStage, "vision_boxes": BoxStage,
          "audio_projector": AudioProjectorStage, "vision_projector": VisionProjectorStage}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m omni.pretrain", description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="a JSON config with a \"stage\", see configs/")
    parser.add_argument("--resume", action="store_true", help="continue a stage that was stopped")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="override a key of the config")
    args = parser.parse_args(arguments)
    config = load_config(args.config, PretrainConfig, args.set)
    for key in ("train", "val", "output"):
        if not getattr(config, key):
            raise UserError(f'{args.config}: "{key}" is missing')
    run(config, args.resume)


def run(config: PretrainConfig, resume: bool = False) -> dict:
    """Train one stage and write its checkpoint; returns the held-out metrics."""
    torch.manual_seed(config.seed)
    device, stop = choose_device(config.device), StopSignal()
    stage = STAGES[config.stage](config)
    model = stage.model.to(device).train()
    print(f"stage {config.stage}: {sum(p.numel() for p in model.parameters()):,} parameters, "
          f"{len(stage.train):,} training samples, on {device.type}", flush=True)
    optimizers = optim.of_stage(model, config)
    epochs = [stage.batches(epoch) for epoch in range(config.num_epochs)]  # lists of sample numbers
    progress, metrics = Progress.of(config, sum(len(batches) for batches in epochs)), {}
    if resume:
        progress.load(model, optimizers)
        print(f"resumed at step {progress.step:,} of {progress.total:,}", flush=True)
    first = 0
    for epoch, batches in enumerate(epochs):
        if progress.step < first + len(batches):
            progress.start_epoch(first)
            with stop.deferred():
                train(stage, optimizers, progress, batches[progress.step - first:], epoch, stop)
            metrics = evaluated(stage, device)
            shown = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
            say(f"epoch {epoch + 1}/{config.num_epochs}: loss {progress.loss:.3f}, held out: {shown}, "
                f"{progress.all_minutes:.1f} min")
            checkpoint.save(config.output, stage.kind, {**stage.content(), "metrics": metrics})
        first += len(batches)
    progress.path.unlink(missing_ok=True)
    print(f"wrote {config.output}")
    return metrics


def train(stage: Stage, optimizers: list[torch.optim.Optimizer], progress: Progress, batches, epoch: int,
          stop: StopSignal) -> None:
    """Train on the batches of one epoch that are left. Exits, after saving, if it is to stop."""
    config, model = stage.config, stage.model
    device = next(model.parameters()).device
    bar = tqdm(total=progress.total, initial=progress.step, desc=f"stage {config.stage}", unit="step",
               mininterval=2, disable=None)
    for batch in ahead((stage.batch(numbers, epoch) for numbers in batches), device):
        factor = optim.lr_factor(progress.step, progress.total, config.warmup_steps,
                                 config.min_learning_rate_ratio)
        with autocast(device, config.precision):
            loss, count = stage.loss(batch, device)
        (loss / count).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
        for optimizer in optimizers:
            optim.set_lr(optimizer, factor)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        progress.add(loss.detach(), count)
        bar.update()
        if device.type != "cuda" or progress.step % SHOWN == 0:  # reading the loss waits for a GPU
            bar.set_postfix(loss=f"{progress.loss:.3f}", refresh=False)
        if stop.requested or progress.due():
            progress.save(model, optimizers)
            say(f"step {progress.step:,} of {progress.total:,}: loss {progress.loss:.3f}, "
                f"{progress.all_minutes:.1f} min")
        if stop.requested:
            bar.close()
            say("stopped; continue with: --resume")
            sys.exit(130)
    bar.close()


def evaluated(stage: Stage, device: torch.device) -> dict:
    """The stage's held-out metrics."""
    stage.model.eval()
    with torch.inference_mode():
        metrics = stage.evaluate(device)
    stage.model.train()
    return metrics


if __name__ == "__main__":
    command(main)
