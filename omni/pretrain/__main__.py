"""Stages A, B and C: make the three part checkpoints that `sft_omni.py` starts from.

    python -m omni.pretrain --config configs/thinker_tiny.json      A: next-token prediction
    python -m omni.pretrain --config configs/audio_enc_tiny.json    B: CTC
    python -m omni.pretrain --config configs/vision_captions.json   C: captions and answers
    python -m omni.pretrain --config configs/vision_tiny.json       C: what is where

Each works on any manifest. The loop is here; the loss and metrics of a stage are in the module of its part.
"""

import argparse
import sys
import time

import torch
from tqdm import tqdm

from omni.base import checkpoint
from omni.base.config import PretrainConfig
from omni.base.config_file import load_config
from omni.base.console import command
from omni.base.device import autocast, choose_device
from omni.base.errors import UserError
from omni.pretrain.audio_encoder import AudioStage
from omni.pretrain.thinker import ThinkerStage
from omni.pretrain.vision_boxes import BoxStage
from omni.pretrain.vision_encoder import VisionStage
from omni.train import optim

STAGES = {"thinker": ThinkerStage, "audio": AudioStage, "vision": VisionStage, "vision_boxes": BoxStage}


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m omni.pretrain", description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="a JSON config with a \"stage\", see configs/")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="override a key of the config")
    args = parser.parse_args(arguments)
    config = load_config(args.config, PretrainConfig, args.set)
    for key in ("train", "val", "output"):
        if not getattr(config, key):
            raise UserError(f'{args.config}: "{key}" is missing')
    run(config)


def run(config: PretrainConfig) -> dict:
    """Train one stage and write its checkpoint; returns the held-out metrics."""
    torch.manual_seed(config.seed)
    device = choose_device(config.device)
    stage = STAGES[config.stage](config)
    model = stage.model.to(device).train()
    print(f"stage {config.stage}: {sum(p.numel() for p in model.parameters()):,} parameters, "
          f"{len(stage.train):,} training samples, on {device.type}", flush=True)
    optimizer = optim.adamw([(model, config.learning_rate)], config.weight_decay, model)
    epochs = [stage.batches(epoch) for epoch in range(config.num_epochs)]  # lists of sample numbers
    total = sum(len(batches) for batches in epochs)
    step, start, metrics = 0, time.time(), {}
    with tqdm(total=total, desc=f"stage {config.stage}", unit="step", mininterval=2, disable=None) as bar:
        for epoch, batches in enumerate(epochs):
            loss_sum = count_sum = 0.0
            for numbers in batches:
                optim.set_lr(optimizer, optim.lr_factor(
                    step, total, config.warmup_steps, config.min_learning_rate_ratio))
                with autocast(device, config.precision):
                    loss, count = stage.loss(stage.batch(numbers, epoch), device)
                (loss / count).backward()
                torch.nn.utils.clip_grad_norm_(model.parameters(), config.grad_clip)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                loss_sum, count_sum = loss_sum + float(loss.detach()), count_sum + count
                step += 1
                bar.update()
                bar.set_postfix(loss=f"{loss_sum / count_sum:.3f}", refresh=False)
            model.eval()
            with torch.inference_mode():
                metrics = stage.evaluate(device)
            model.train()
            shown = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
            tqdm.write(f"epoch {epoch + 1}/{config.num_epochs}: loss {loss_sum / count_sum:.3f}, "
                       f"held out: {shown}, {(time.time() - start) / 60:.1f} min", file=sys.stdout)
            sys.stdout.flush()
            checkpoint.save(config.output, stage.kind, {**stage.content(), "metrics": metrics})
    print(f"wrote {config.output}")
    return metrics


if __name__ == "__main__":
    command(main)
