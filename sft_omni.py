"""Stage E: multimodal supervised fine-tuning, which teaches a Thinker to use images and sound.

    python sft_omni.py --config configs/omni_sft_tiny.json

Read from top to bottom: config, parts, data, optimizer, resume, epochs; then the training loop itself.
"""

import argparse
import gc
import sys
import time
from functools import partial
from pathlib import Path

import omni  # noqa: F401  # isort: skip  it sets what PyTorch reads when it is imported
import torch

from omni.base import checkpoint, distributed
from omni.base.config import SFTConfig
from omni.base.config_file import load_config
from omni.base.console import command, open_streams, progress, say
from omni.base.device import autocast, choose_device, computes_in_bf16
from omni.base.errors import UserError
from omni.data import skipped
from omni.data.batch import Batch
from omni.data.collate import Collator
from omni.data.decoding import Decoder
from omni.data.drawn import DrawnDataset, checked_as_drawn
from omni.data.loader import Schedule, StepDataset
from omni.data.media_reader import MediaReader
from omni.data.mixture import input_fingerprints, read_mix
from omni.data.sampler import WeightedSampler
from omni.eval.best import Best
from omni.eval.evaluate import Evaluator, before_training
from omni.eval.scores import cut_counts, epoch_lines, sample_counts, summarise
from omni.model import compiled
from omni.model.load import load_for_training
from omni.report import run_report
from omni.train import alignment, graphs, optim
from omni.train.features import FeatureStore, read_media
from omni.train.interrupts import FULL_STEP, StopSignal, explain_out_of_memory, explained
from omni.train.metrics import MetricsFile
from omni.train.prefetch import prefetch
from omni.train.run import Run
from omni.train.run_dir import RunDir
from omni.train.state import EpochTotals, TrainState
from omni.train.summary import describe, dry_run, frozen_line, mix_lines, written_line
from omni.train.taken import TakenSteps


def main(arguments: list[str] | None = None) -> None:
    started, evaluation_s = time.time(), 0.0
    open_streams()
    args, stop = parse_arguments(arguments), StopSignal()
    config = load_config(args.config, SFTConfig, args.set)
    device = choose_device(config.device)
    world = distributed.start(device)  # the ranks of torchrun, or this process alone
    run_dir = RunDir(config.save_dir or f"checkpoints/{Path(args.config).stem}", world)
    resume = args.resume is not None
    if not args.dry_run:
        run_dir.claim(resume, args.overwrite)
    torch.manual_seed(config.seed)

    # Parts
    model = load_for_training(config, device)
    frozen = checkpoint.fingerprint(model.frozen_weights())
    run_dir.steps.frozen = checkpoint.fingerprint(model.frozen_weights(), torch.bfloat16)  # as on any device

    # Data
    mix = world.once_per_node(lambda: read_mix(config))
    skipped.check(mix, config.max_skipped, None if args.dry_run else run_dir.write_skipped(mix.skipped))
    best = Best(config, mix.val)
    reader = MediaReader(model.vision_encoder.arch, model.audio_encoder.arch, config.seed)
    drawn = checked_as_drawn(mix, config.check_media)  # too many media to be read before the first step
    decoder = Decoder(reader, config.decode_timeout_s, config.num_workers, keep=drawn)
    features = None if args.dry_run else FeatureStore.of_run(config, model, decoder, world)
    read_first = () if args.dry_run else ("val",) if drawn else ("train", "val")
    read_media(mix, features, decoder, config.augment_takes, world, read_first)
    collate = Collator(model.tokenizer, reader, model.image_tokens, model.audio_encoder.lengths,
                       config.max_length, features)
    skipped.drop_overlong(mix, collate, decoder.frames, read_first)
    skipped.check(mix, config.max_skipped, None if args.dry_run else run_dir.write_skipped(mix.skipped))
    alignment.align(model, mix, features, config, world, fitted=resume)
    sizes = {name: len(samples) for name, samples in mix.train.items()}
    sampler = WeightedSampler(sizes, mix.weights, config.seed)
    schedule = Schedule(config.samples_per_epoch or sum(sizes.values()), config.batch_size, config.num_epochs)
    dataset = StepDataset(mix, sampler, schedule, collate, config.augment_takes,
                          config.gradient_accumulation_steps, world)
    if drawn:
        dataset = DrawnDataset(dataset, decoder, config.max_skipped)
    evaluated = distributed.evaluation_copy(model, config.parallel, world)
    evaluator = Evaluator(evaluated, collate, config.eval_batch_size, config.max_new_tokens, config.precision,
                          world)
    describe(model, mix, schedule, config, device)
    if args.dry_run:
        return dry_run(model, mix, collate, decoder, config, device)

    # Optimizer
    compiled.of_run(model.thinker, config, device, world)
    wrapped = distributed.wrap(model, config.parallel, world, computes_in_bf16(device, config.precision))
    optimizer = optim.of_run(model, config)

    # Resume
    run_dir.open(resume, args.overwrite, config)
    fingerprints = world.once_per_node(lambda: input_fingerprints(config, mix))
    metrics = MetricsFile(run_dir.path, world, config)
    update = optim.Update(optimizer, config.grad_clip, config.max_bad_steps)
    run = Run(config, device, world, model, wrapped, update, dataset, metrics, run_dir, stop, fingerprints)
    state = TrainState()
    if resume:
        state = run_dir.steps.resume(args.resume, model, optimizer, config, fingerprints, args.allow_change)
        jump = optim.rate_jump(config, optimizer, state.step, schedule.steps, state.rate_before)
        say(f"resumed at step {state.step:,} of {schedule.steps:,}{jump}")
    epochs_before = [row for row in metrics.rewind(state.step) if row["event"] == "epoch"]
    for row in epochs_before:
        best.add(row["epoch"], row)

    # Epochs
    take = graphs.choose(run, partial(train_step, run))
    gc.freeze()  # these objects live until the end, so the garbage collector need not scan them
    if state.step == 0:
        with explain_out_of_memory("lower eval_batch_size or max_new_tokens"):
            evaluation_s += before_training(evaluator, mix.val, run_dir.path)
        if world.first:
            run_report.write(run_dir.path)
    for epoch in range(max(0, state.step - 1) // schedule.steps_per_epoch, config.num_epochs):
        if best.verdict:
            say(best.verdict)
            break
        with stop.deferred():
            train_epoch(run, state, epoch, take)
        if epoch + 1 not in [row["epoch"] for row in epochs_before]:
            begun = time.time()
            distributed.update_evaluation_copy(evaluated, model)
            evaluate_epoch(run, state, epoch, evaluator, best, begun - started)
            evaluation_s += time.time() - begun
        if world.first:
            run_report.write(run_dir.path)
        state.totals = EpochTotals()

    # The trained system
    if model.frozen_weights():
        say(frozen_line(model, frozen))
    epochs = [row for row in metrics.rows() if row["event"] == "epoch"]
    run_dir.save_system("omni_final.pt", model, config, epochs[-1] if epochs else {})
    for line in skipped.lines(mix):
        say(line)
    say(written_line(run_dir.path / "omni_final.pt", time.time() - started, evaluation_s))


def train_epoch(run: Run, state: TrainState, epoch: int, take: graphs.Taker) -> None:
    """Train from `state.step` to the end of `epoch` (counted from 0). `take` does what `train_step` does."""
    config, world, schedule = run.config, run.world, run.dataset.schedule
    begin, end = epoch * schedule.steps_per_epoch, (epoch + 1) * schedule.steps_per_epoch
    run.wrapped.train()
    taken = TakenSteps(run, state, epoch)
    bar = progress(total=schedule.steps_per_epoch, initial=state.step - begin,
                   desc=f"epoch {epoch + 1}/{config.num_epochs}", unit="step")
    save = taken.save if world.size == 1 else None  # where a GPU is full; several ranks must save together
    steps = explained(prefetch(run.dataset.steps(state.step, end, config.num_workers), run.device,
                               take.prepare), save)
    for number, step in enumerate(steps, state.step + 1):  # counted from 1
        factor = optim.lr_factor_of(config, number - 1, schedule.steps)
        optim.set_lr(run.update.optimizer, factor)
        counts = world.total(step.counts)  # (sources, 2) samples and answer tokens, over all ranks
        with explain_out_of_memory(FULL_STEP, step.batches, save):
            taken.add(step, counts, take(step.batches, int(counts[:, 1].sum())))
        bar.update()

        # Count, report, save, stop
        if run.update.waits:
            taken.read()
        if number % config.log_every_steps == 0:
            taken.show(bar, factor)
        save_due, stopping = world.any(run.run_dir.steps.due(number, config), run.stop.requested)
        if save_due or stopping or number == end:
            taken.save()
        if stopping:
            bar.close()
            say(f"stopped at step {number:,}; continue with: --resume")
            sys.exit(130)
    bar.close()


def train_step(run: Run, batches: list[Batch], answer_tokens: int | torch.Tensor) -> torch.Tensor:
    """One step over all ranks: the loss per answer token, its gradients, and the update.

    Returns the figures of `optim.Update`, on the device. A CUDA graph may repeat this, so with CUDA nothing
    here reads a tensor's value.
    """
    step_loss = torch.zeros((), device=run.device)
    for number, batch in enumerate(batches, 1):
        with distributed.gradient_sync(run.wrapped, number == len(batches)):
            with autocast(run.device, run.config.precision):
                loss, _ = run.wrapped(batch)
            (loss * run.world.size / answer_tokens).backward()  # gradients are averaged over ranks
        step_loss += loss.detach()
    return run.update(run.world.total(step_loss))


def evaluate_epoch(run: Run, state: TrainState, epoch: int, evaluator: Evaluator, best: Best,
                   seconds: float) -> None:
    """Score the held-out samples after `epoch` (counted from 0): print and record the metrics, and save the
    model if it is the best so far. `seconds` is the time from the start of the run to this evaluation.
    """
    mix, loss = run.dataset.mix, state.totals.mean_loss
    run.run_dir.write_skipped(run.dataset.all_skipped())
    with explain_out_of_memory("lower eval_batch_size or max_new_tokens"):
        scores = evaluator.score(mix.val)
        swapped = summarise(evaluator.score(mix.val, swapped=True))
    scored = summarise(scores)
    swapped.pop("val_loss", None)
    shares, cut = state.totals.mix_shares(mix, epoch), cut_counts(scores)
    for line in epoch_lines(epoch + 1, run.config.num_epochs, loss, scored, swapped, cut) + mix_lines(shares):
        say(line)
    if best.add(epoch + 1, scored):
        run.run_dir.save_system("omni_best.pt", evaluator.model, run.config, scored)
    run.metrics.add("answers", epoch=epoch + 1, step=state.step, samples={
        ", ".join(filter(None, key)): score.examples for key, score in scores.items()})
    bad = [row for row in run.metrics.rows() if row["event"] == "bad_step" and row["epoch"] == epoch + 1]
    # The "epoch" row comes last. If the run is killed before it, the whole evaluation is repeated.
    run.metrics.add("epoch", epoch=epoch + 1, step=state.step, loss=loss, **scored, swapped=swapped,
                    counts=sample_counts(scores), cut_answers=cut, mix=shares,
                    skipped=skipped.reason_counts(mix), cut=mix.cut, bad_steps=len(bad), seconds=seconds)


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="a JSON config, see configs/")
    parser.add_argument("--resume", nargs="?", const="", metavar="CKPT",
                        help="continue from a step checkpoint; without CKPT, from the newest one")
    parser.add_argument("--allow-change", action="append", default=[], metavar="KEY",
                        help="with --resume: accept a new value of KEY that changes the training run")
    parser.add_argument("--overwrite", action="store_true",
                        help="start over in a folder that already holds a run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="override a key of the config")
    parser.add_argument("--dry-run", action="store_true", help="load and check everything, train nothing")
    args = parser.parse_args(arguments)
    if args.allow_change and args.resume is None:
        raise UserError("--allow-change needs --resume; a new run accepts every value")
    return args


if __name__ == "__main__":
    command(main)
