"""Stage E: multimodal supervised fine-tuning. Teach a Thinker to see and to hear.

    python sft_omni.py --config configs/omni_sft_tiny.json

Read top to bottom: config, parts, data, optimizer, resume, epochs. Nothing happens anywhere else.
"""

import argparse
import signal
import sys
import time
from pathlib import Path

import torch
from tqdm import tqdm

from omni import checkpoint, optim, report
from omni.collate import Collator, MediaReader
from omni.config import SFTConfig, UserError, load_config
from omni.dataset import Mix, Schedule, StepDataset, loader, read_mix
from omni.device import autocast, choose_device, gpu_memory_gb, peak_memory_gb
from omni.evaluate import Evaluator, counted, summarise
from omni.features import FeatureStore, unusable_media
from omni.folder import RunFolder
from omni.log import MetricsFile, epoch_lines, say
from omni.model import load_parts
from omni.preview import before_training, describe, dry_run, skipped_lines
from omni.sampler import WeightedSampler


def main(arguments: list[str] | None = None) -> None:
    started, evaluating = time.time(), 0.0
    args, stop = parse_arguments(arguments), StopSignal()
    config = load_config(args.config, SFTConfig, args.set)
    folder = RunFolder(config.save_dir or f"checkpoints/{Path(args.config).stem}")
    if not args.dry_run:
        folder.claim(args.resume is not None, args.overwrite)
    torch.manual_seed(config.seed)
    device = choose_device(config.device)

    # Parts
    model = load_parts(config).to(device)  # a line a part
    frozen_hash = checkpoint.fingerprint(*model.encoders())

    # Data
    mix = read_mix(config)
    reader = MediaReader(model.vision_encoder.arch.image_size, config.seed)
    keep = config.freeze_encoders and config.feature_cache_gb > 0
    features = FeatureStore(model, reader, config.feature_cache_gb) if keep else None
    for name in mix.train:
        for samples, takes, what in ((mix.train[name], config.augment_takes, f"{name}, training"),
                                     (mix.val[name], 1, f"{name}, held out")):
            mix.drop(features.add(samples, takes, what) if keep else unusable_media(samples, reader, what))
    mix.check(config.max_skipped)
    collate = Collator(model.tokenizer, reader, model.image_tokens, model.audio_encoder.lengths,
                       config.max_length, features)
    sizes = {name: len(samples) for name, samples in mix.train.items()}
    sampler = WeightedSampler(sizes, mix.weights, config.seed)
    schedule = Schedule(config.samples_per_epoch or sum(sizes.values()), config.batch_size, config.num_epochs)
    dataset = StepDataset(mix, sampler, schedule, collate, config.augment_takes,
                          config.gradient_accumulation_steps)
    evaluator = Evaluator(model, collate, config.eval_batch_size, config.max_new_tokens, config.precision)

    # Optimizer
    groups = [(model.thinker, config.learning_rate), (model.audio_projector, config.projector_learning_rate),
              (model.vision_projector, config.projector_learning_rate)]
    if not config.freeze_encoders:
        groups += [(encoder, config.encoder_learning_rate) for encoder in model.encoders()]
    optimizer = optim.adamw(groups, config.weight_decay, model)
    describe(model, mix, schedule, config, device)
    if args.dry_run:
        dry_run(model, mix, collate, config, device)
        return

    # Resume
    if args.overwrite and args.resume is None:
        folder.clear()
    folder.write_config(config)
    metrics = MetricsFile(folder.path)
    state = {"step": 0, "sums": new_sums(), "best": float("inf")}
    if args.resume is not None:
        state = folder.resume(args.resume, model, optimizer, config)
        say(f"resumed at step {state['step']:,} of {schedule.steps:,}")
    kept = metrics.rewind(state["step"])
    state["best"] = min((row["val_loss"] for row in kept if "val_loss" in row), default=state["best"])

    # Epochs
    if state["step"] == 0:
        evaluating += before_training(evaluator, mix, folder.path)
    for epoch in range(max(0, state["step"] - 1) // schedule.steps_per_epoch, config.num_epochs):
        train_epoch(epoch, state, model, optimizer, dataset, config, device, metrics, folder, stop)
        evaluated = any(row["event"] == "epoch" and row["epoch"] == epoch + 1 for row in metrics.rows())
        if not evaluated:
            begun = time.time()
            figures = evaluate_epoch(epoch, state, evaluator, mix, config, metrics, begun - started)
            evaluating += time.time() - begun
            if figures.get("val_loss", 0.0) < state["best"]:
                state["best"] = figures.get("val_loss", 0.0)
                folder.save_system("omni_best.pt", model, config, figures)
        state["sums"] = new_sums()

    # The whole system
    if config.freeze_encoders:
        same = checkpoint.fingerprint(*model.encoders())
        verdict = "equal" if same == frozen_hash else "CHANGED"
        say(f"frozen encoders: {frozen_hash} before, {same} after: {verdict}")
    last = [row for row in metrics.rows() if row["event"] == "epoch"][-1]
    folder.save_system("omni_final.pt", model, config, last)
    for line in skipped_lines(mix):
        say(line)
    minutes = (time.time() - started) / 60
    say(f"wrote {folder.path / 'omni_final.pt'} after {minutes:.1f} minutes, {evaluating / 60:.1f} of them "
        f"evaluation; peak memory {peak_memory_gb():.2f} GB")


def train_epoch(epoch, state, model, optimizer, dataset, config, device, metrics, folder, stop) -> None:
    """The loop: from wherever the run stands to the end of this epoch. `state` is what a resume needs."""
    schedule, end = dataset.schedule, (epoch + 1) * dataset.schedule.steps_per_epoch
    trained = [p for p in model.parameters() if p.requires_grad]
    model.train()
    stop.training = True
    window_start, window_samples, window_tokens = time.time(), 0, 0
    bar = tqdm(total=schedule.steps_per_epoch, initial=state["step"] - end + schedule.steps_per_epoch,
               desc=f"epoch {epoch + 1}/{config.num_epochs}", unit="step", mininterval=1, disable=None,
               leave=False)
    for step in loader(dataset, state["step"], end, config.num_workers):
        factor = optim.lr_factor(state["step"], schedule.steps, config.warmup_steps,
                                 config.min_learning_rate_ratio)
        optim.set_lr(optimizer, factor)

        # One global step: the sum of the loss over all its answer tokens, divided by their number.
        answer_tokens = sum(tokens for _, tokens in step.sources.values())
        step_loss = 0.0
        for batch in step.batches:
            with autocast(device, config.precision):
                loss, _, _ = model(batch.to(device))
            (loss / answer_tokens).backward()
            step_loss += loss.detach()
        grad_norm = torch.nn.utils.clip_grad_norm_(trained, config.grad_clip)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

        # Bookkeeping
        state["step"] += 1
        sums = state["sums"]
        sums["loss"], sums["tokens"] = sums["loss"] + step_loss.double(), sums["tokens"] + answer_tokens
        for name, counts in step.sources.items():
            sums["mix"][name] = [a + b for a, b in zip(sums["mix"].get(name, [0, 0]), counts, strict=True)]
        window_samples, window_tokens = window_samples + step.samples, window_tokens + answer_tokens
        bar.update()
        if state["step"] % config.log_every_steps == 0:  # the only place where the loop waits for a GPU
            seconds = time.time() - window_start
            row = {"step": state["step"], "epoch": epoch + 1, "loss": float(step_loss) / answer_tokens,
                   "lr": config.learning_rate * factor, "grad_norm": float(grad_norm),
                   "samples_per_s": window_samples / seconds, "tokens_per_s": window_tokens / seconds,
                   "gpu_mem_gb": gpu_memory_gb(device), "main_mem_gb": peak_memory_gb()}
            metrics.add("step", **row)
            bar.set_postfix(loss=f"{float(sums['loss']) / sums['tokens']:.3f}", lr=f"{row['lr']:.1e}",
                            samples_s=f"{row['samples_per_s']:.0f}", refresh=False)
            window_start, window_samples, window_tokens = time.time(), 0, 0
        if state["step"] % config.save_every_steps == 0 or state["step"] == end or stop.asked:
            folder.save_step(state, model, optimizer, config)
        if stop.asked:
            bar.close()
            say(f"stopped at step {state['step']:,}; go on with: --resume")
            sys.exit(130)
    stop.training = False
    bar.close()


def evaluate_epoch(epoch, state, evaluator, mix: Mix, config, metrics, seconds: float) -> dict:
    """Held-out figures of the epoch: printed, and added to the metrics."""
    sums = state["sums"]
    loss = float(sums["loss"]) / max(1, sums["tokens"])
    scores = evaluator.score(mix.val)
    figures = summarise(scores)
    swapped = summarise(evaluator.score(mix.val, swapped=True))
    swapped.pop("val_loss", None)
    for line in epoch_lines(epoch + 1, config.num_epochs, loss, figures, swapped):
        say(line)
    samples, tokens = (sum(counts[i] for counts in sums["mix"].values()) for i in (0, 1))
    total = sum(mix.weights.values())
    realised = {}
    for name, (count, answer) in sorted(sums["mix"].items()):
        passes = (state["step"] and count * (epoch + 1)) / len(mix.train[name])
        realised[name] = {"wanted": mix.weights[name] / total, "samples": count / samples,
                          "tokens": answer / tokens, "passes": passes}
        say(f"    mix {name}: wanted {mix.weights[name] / total:.1%}, got {count / samples:.1%} of samples, "
            f"{answer / tokens:.1%} of answer tokens; {passes:.2f} passes so far")
    metrics.add("epoch", epoch=epoch + 1, step=state["step"], loss=loss, **figures, swapped=swapped,
                counts=counted(scores), mix=realised, skipped=mix.skipped, seconds=seconds)
    metrics.add("answers", epoch=epoch + 1, step=state["step"], samples={
        ", ".join(filter(None, key)): score.shown for key, score in scores.items()})
    report.write(metrics.path.parent)
    return figures


def new_sums() -> dict:
    """What an epoch adds up: the loss over its answer tokens, and samples and answer tokens a source."""
    return {"loss": torch.zeros((), dtype=torch.float64), "tokens": 0, "mix": {}}


class StopSignal:
    """SIGINT and SIGTERM let the step finish and be saved. Outside the loop, or asked twice, it ends at once.

    All that it writes is written whole or not at all, so leaving at once harms nothing.
    """

    def __init__(self):
        self.asked = self.training = False
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, self.ask)

    def ask(self, number, frame) -> None:
        if self.asked or not self.training:
            say("stopped; go on with: --resume")
            sys.exit(130)
        self.asked = True


def parse_arguments(arguments: list[str] | None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="a JSON config, see configs/")
    parser.add_argument("--resume", nargs="?", const="", metavar="CKPT",
                        help="go on from a step checkpoint; alone: from the newest of the output folder")
    parser.add_argument("--overwrite", action="store_true",
                        help="start over in a folder that already holds a run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="override a key of the config")
    parser.add_argument("--dry-run", action="store_true", help="load and check everything, train nothing")
    return parser.parse_args(arguments)


if __name__ == "__main__":
    try:
        main()
    except UserError as err:
        print(f"error: {err}", file=sys.stderr)
        sys.exit(2)
