"""Stage E: multimodal supervised fine-tuning. Teach a Thinker to see and to hear.

    python sft_omni.py --config configs/omni_sft_tiny.json

Read top to bottom: config, parts, data, optimizer, resume, epochs. Nothing happens anywhere else.
"""

import argparse
import gc
import sys
import time
from functools import partial
from pathlib import Path

import torch
from tqdm import tqdm

from omni import checkpoint, distributed
from omni.config import SFTConfig
from omni.config_file import load_config
from omni.console import QUIET, command, open_streams, say
from omni.data.collate import Collator
from omni.data.decoding import Decoder
from omni.data.loader import Schedule, StepDataset, loader
from omni.data.media_reader import MediaReader
from omni.data.mixture import Mix, inputs, read_mix
from omni.data.sampler import WeightedSampler
from omni.device import autocast, choose_device, computes_in_bf16, gpu_memory_gb, peak_memory_gb
from omni.errors import UserError
from omni.eval.evaluate import Evaluator, before_training
from omni.eval.scores import epoch_lines, sample_counts, summarise
from omni.model.load import load_parts
from omni.report import run_report
from omni.train import optim
from omni.train.features import FeatureStore, unusable_media
from omni.train.interrupts import StopSignal, leave_out, memory_told
from omni.train.metrics import MetricsFile
from omni.train.run_dir import RunFolder
from omni.train.state import add_step, new_sums, realised
from omni.train.summary import describe, dry_run, skipped_lines


def main(arguments: list[str] | None = None) -> None:
    started, evaluating = time.time(), 0.0
    open_streams()
    args, stop = parse_arguments(arguments), StopSignal()
    config = load_config(args.config, SFTConfig, args.set)
    device = choose_device(config.device)
    world = distributed.start(device)  # of torchrun's processes, or alone
    folder = RunFolder(config.save_dir or f"checkpoints/{Path(args.config).stem}", world)
    resume, listed = args.resume is not None, None if args.dry_run else folder.path / "skipped.jsonl"
    if not args.dry_run:
        folder.claim(resume, args.overwrite)
    torch.manual_seed(config.seed)

    # Parts
    model = load_parts(config).to(device)  # a line a part
    frozen_hash = checkpoint.fingerprint(*model.encoders())

    # Data
    mix = world.once_a_node(lambda: read_mix(config))
    mix.check(config.max_skipped, listed)
    reader = MediaReader(model.vision_encoder.arch.image_size, config.seed, model.audio_encoder.arch.level)
    decoder = Decoder(reader, config.decode_timeout_s)
    keep = config.freeze_encoders and config.feature_cache_gb > 0
    features = FeatureStore(model, decoder, config.feature_cache_gb, config.precision, world) \
        if keep else None
    for name in mix.train:
        for samples, takes, what in ((mix.train[name], config.augment_takes, f"{name}, training"),
                                     (mix.val[name], 1, f"{name}, held out")):
            mix.drop_unreadable(features.add(samples, takes, what) if keep
                                else unusable_media(samples, decoder, what, world))
    collate = Collator(model.tokenizer, reader, model.image_tokens, model.audio_encoder.lengths,
                       config.max_length, features)
    mix.drop_overlong(collate, decoder.frames)
    mix.check(config.max_skipped, listed)
    sizes = {name: len(samples) for name, samples in mix.train.items()}
    sampler = WeightedSampler(sizes, mix.weights, config.seed)
    schedule = Schedule(config.samples_per_epoch or sum(sizes.values()), config.batch_size, config.num_epochs)
    dataset = StepDataset(mix, sampler, schedule, collate, config.augment_takes,
                          config.gradient_accumulation_steps, world)
    evaluated = distributed.twin(model, config.parallel, world)
    evaluator = Evaluator(evaluated, collate, config.eval_batch_size, config.max_new_tokens, config.precision,
                          world)

    # Optimizer
    groups = [(model.thinker, config.learning_rate), (model.audio_projector, config.projector_learning_rate),
              (model.vision_projector, config.projector_learning_rate)]
    if not config.freeze_encoders:
        groups += [(encoder, config.encoder_learning_rate) for encoder in model.encoders()]
    describe(model, mix, schedule, config, device)
    if args.dry_run:
        dry_run(model, mix, collate, config, device)
        return
    bf16 = computes_in_bf16(device, config.precision)
    wrapped = distributed.wrap(model, config.parallel, world, bf16)  # itself, DDP or FSDP2
    optimizer = optim.adamw(groups, config.weight_decay, model)

    # Resume
    folder.open(resume, args.overwrite, config)
    metrics, made_from = MetricsFile(folder.path), world.once_a_node(lambda: inputs(config, mix))
    state = {"step": 0, "sums": new_sums(), "bad": 0}
    if resume:
        state = folder.resume(args.resume, model, optimizer, config, made_from, args.allow_change)
        say(f"resumed at step {state['step']:,} of {schedule.steps:,}")
    kept = world.from_first(lambda: metrics.rewind(state["step"]))
    scored = {row["epoch"] for row in kept if row["event"] == "epoch"}
    state["best"] = min((row["val_loss"] for row in kept if "val_loss" in row), default=float("inf"))

    # Epochs
    gc.freeze()  # what is loaded stays: nothing is gained by looking through it again and again
    if state["step"] == 0:
        with memory_told((), "lower eval_batch_size or max_new_tokens"):
            evaluating += before_training(evaluator, mix.val, folder.path)
        if world.first:
            run_report.write(folder.path)
    for epoch in range(max(0, state["step"] - 1) // schedule.steps_per_epoch, config.num_epochs):
        save = partial(folder.save_step, state, model, optimizer, config, made_from)
        train_epoch(epoch, state, wrapped, optimizer, dataset, config, device, metrics, folder, save, stop)
        if epoch + 1 not in scored:
            begun = time.time()
            distributed.refresh(evaluated, model)
            evaluate_epoch(epoch, state, evaluator, mix, config, metrics, folder, begun - started)
            evaluating += time.time() - begun
        if world.first:
            run_report.write(folder.path)
        state["sums"] = new_sums()

    # The whole system
    if config.freeze_encoders:
        same = checkpoint.fingerprint(*model.encoders())
        verdict = "equal" if same == frozen_hash else "CHANGED"
        say(f"frozen encoders: {frozen_hash} before, {same} after: {verdict}")
    figures = [row for row in metrics.rows() if row["event"] == "epoch"]
    folder.save_system("omni_final.pt", model, config, figures[-1] if figures else {})
    for line in skipped_lines(mix):
        say(line)
    minutes = (time.time() - started) / 60
    say(f"wrote {folder.path / 'omni_final.pt'} after {minutes:.1f} minutes, {evaluating / 60:.1f} of them "
        f"evaluation; peak memory {peak_memory_gb():.2f} GB")
    distributed.stop()


def train_epoch(epoch, state, model, optimizer, dataset, config, device, metrics, folder, save, stop) -> None:
    """The loop: from wherever the run stands to the end of this epoch. `state` is what a resume needs."""
    schedule, end = dataset.schedule, (epoch + 1) * dataset.schedule.steps_per_epoch
    world = dataset.world
    trained = [p for p in model.parameters() if p.requires_grad]
    model.train()
    stop.training = True
    window_start, window_samples, window_tokens = time.time(), 0, 0
    bar = tqdm(total=schedule.steps_per_epoch, initial=state["step"] - end + schedule.steps_per_epoch,
               desc=f"epoch {epoch + 1}/{config.num_epochs}", unit="step", mininterval=1,
               disable=QUIET or None, leave=False)
    for step in loader(dataset, state["step"], end, config.num_workers):
        factor = optim.lr_factor(state["step"], schedule.steps, config.warmup_steps,
                                 config.min_learning_rate_ratio)
        optim.set_lr(optimizer, factor)

        # One global step: the sum of the loss over all its answer tokens, divided by their number.
        counts = world.total(step.counts)
        answer_tokens, step_loss = int(counts[:, 1].sum()), torch.zeros((), device=device)
        with memory_told(step.batches, "raise gradient_accumulation_steps or lower max_length",
                         save if world.size == 1 else None):  # ranks save together, and this one can't
            for number, batch in enumerate(step.batches, 1):
                with distributed.reducing(model, number == len(step.batches)):
                    with autocast(device, config.precision):
                        loss, _ = model(batch.to(device))
                    (loss * world.size / answer_tokens).backward()  # ranks' gradients are averaged
                step_loss += loss.detach()
            grad_norm = optim.clip(trained, config.grad_clip)
            world.total(step_loss)
            applied = bool(torch.isfinite(step_loss + grad_norm))  # waits for a GPU, as the next step would
            if applied:
                optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        # Bookkeeping
        state["step"] += 1
        if applied:
            state["bad"] = 0
            add_step(state["sums"], step_loss, dict(zip(dataset.mix.train, counts.tolist(), strict=True)))
        else:
            leave_out(state, [dataset.mix.name(draw) for draw in step.draws], epoch, metrics, save, config)
        sums = state["sums"]
        window_samples, window_tokens = window_samples + len(step.draws), window_tokens + answer_tokens
        bar.update()
        if applied and state["step"] % config.log_every_steps == 0:
            seconds = time.time() - window_start
            row = {"step": state["step"], "epoch": epoch + 1, "loss": float(step_loss) / answer_tokens,
                   "lr": config.learning_rate * factor, "grad_norm": float(grad_norm),
                   "samples_per_s": window_samples / seconds, "tokens_per_s": window_tokens / seconds,
                   "gpu_mem_gb": gpu_memory_gb(device), "main_mem_gb": peak_memory_gb()}
            metrics.add("step", **row)
            bar.set_postfix(loss=f"{float(sums['loss']) / sums['tokens']:.3f}", lr=f"{row['lr']:.1e}",
                            samples_s=f"{row['samples_per_s']:.0f}", refresh=False)
            window_start, window_samples, window_tokens = time.time(), 0, 0
        due, stopping = world.any(folder.due(state["step"], config), stop.asked)
        if due or stopping or state["step"] == end:
            save()
        if stopping:
            bar.close()
            say(f"stopped at step {state['step']:,}; go on with: --resume")
            sys.exit(130)
    stop.training = False
    bar.close()


def evaluate_epoch(epoch, state, evaluator, mix: Mix, config, metrics, folder, seconds: float) -> None:
    """Held-out figures of the epoch: printed, saved with the model if the best so far, put to the metrics."""
    sums = state["sums"]
    loss = float(sums["loss"]) / max(1, sums["tokens"])
    with memory_told((), "lower eval_batch_size or max_new_tokens"):
        scores = evaluator.score(mix.val)
        swapped = summarise(evaluator.score(mix.val, swapped=True))
    figures = summarise(scores)
    swapped.pop("val_loss", None)
    for line in epoch_lines(epoch + 1, config.num_epochs, loss, figures, swapped):
        say(line)
    shares = realised(mix, sums["mix"], epoch)
    for name, share in shares.items():
        say(f"    mix {name}: wanted {share['wanted']:.1%}, got {share['samples']:.1%} of samples, "
            f"{share['tokens']:.1%} of answer tokens; {share['passes']:.2f} passes so far")
    # The row of the epoch comes last: a run that is killed before it evaluates again, to the same figures.
    if figures.get("val_loss", 0.0) < state["best"]:
        state["best"] = figures.get("val_loss", 0.0)
        folder.save_system("omni_best.pt", evaluator.model, config, figures)
    metrics.add("answers", epoch=epoch + 1, step=state["step"], samples={
        ", ".join(filter(None, key)): score.examples for key, score in scores.items()})
    bad = [row for row in metrics.rows() if row["event"] == "bad_step" and row["epoch"] == epoch + 1]
    metrics.add("epoch", epoch=epoch + 1, step=state["step"], loss=loss, **figures, swapped=swapped,
                counts=sample_counts(scores), mix=shares, skipped=mix.reasons(), cut=mix.cut,
                bad_steps=len(bad), seconds=seconds)


def parse_arguments(arguments: list[str] | None):
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--config", required=True, help="a JSON config, see configs/")
    parser.add_argument("--resume", nargs="?", const="", metavar="CKPT",
                        help="go on from a step checkpoint; alone: from the newest of the output folder")
    parser.add_argument("--allow-change", action="append", default=[], metavar="KEY",
                        help="with --resume: take a changed key on although it bends the run")
    parser.add_argument("--overwrite", action="store_true",
                        help="start over in a folder that already holds a run")
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE",
                        help="override a key of the config")
    parser.add_argument("--dry-run", action="store_true", help="load and check everything, train nothing")
    args = parser.parse_args(arguments)
    if args.allow_change and args.resume is None:
        raise UserError("--allow-change goes with --resume; a new run takes every key as it is")
    return args


if __name__ == "__main__":
    command(main)
