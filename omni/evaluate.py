"""Scores a trained system on any source, with the figures of an epoch and every answer beside its reference.

    python -m omni.evaluate --ckpt checkpoints/omni_sft_tiny/omni_final.pt --data my/test.jsonl

The exit code is 0 if it was scored, 2 if it can't be: a file is missing, or too many samples are unusable.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

from omni.base import checkpoint
from omni.base.console import command
from omni.base.errors import UserError
from omni.chat import OmniModel, system_evaluator
from omni.data import manifest, skipped
from omni.data.decoding import Decoder
from omni.data.mixture import Mix
from omni.eval.scores import cut_counts, metric_lines, sample_counts, summarise
from omni.inspect import add_reading_options, columns_of
from omni.train.features import unusable_media


def usable(source: manifest.Source, system: OmniModel) -> tuple[Mix, int]:
    """(a mix that holds out the usable samples of a source, the number of all its samples).

    Usable as in a run with the system's config. The others are in `Mix.skipped`.
    """
    name, collate = source.name, system.collator()
    mix = Mix(train={name: []}, val={name: source.samples}, files={f"{name}.val": source.files})
    mix.skipped = [{"source": name, "split": "val", "line": line, "reason": reason}
                   for line, reason in source.skipped]
    total = len(source.samples) + len(source.skipped)
    decoder = Decoder(collate.reader, system.config.decode_timeout_s)
    skipped.drop_unreadable(mix, unusable_media(source.samples, 1, decoder, name))
    skipped.drop_overlong(mix, collate, decoder.frames)
    return mix, total


def check(mix: Mix, total: int, source: manifest.Source, max_skipped: float) -> None:
    """UserError if no sample is left to score, or more than the share `max_skipped` was skipped."""
    if not mix.val[source.name] or len(mix.skipped) > max_skipped * total:
        reasons = skipped.reason_counts(mix)[source.name].items()
        what = "; ".join(f"{count}x {reason}" for reason, count in reasons) or "it is empty"
        raise UserError(f"{source.path} ({source.kind}): {len(mix.skipped)} of {total} samples can't be used"
                        f": {what}. Repair them or raise --max-skipped (now {max_skipped:g})")


def evaluate(system: OmniModel, mix: Mix, swapped: bool,
             max_new_tokens: int | None) -> tuple[dict, list[dict]]:
    """The figures of the held-out samples of `mix`, and every sample with its answer."""
    evaluator, answers = system_evaluator(system), []
    evaluator.max_new_tokens = max_new_tokens or evaluator.max_new_tokens
    scores = evaluator.score(mix.val, answers=answers)
    figures = {**summarise(scores), "counts": sample_counts(scores), "cut_answers": cut_counts(scores)}
    if swapped:
        figures["swapped"] = summarise(evaluator.score(mix.val, swapped=True))
        figures["swapped"].pop("val_loss", None)
    return figures, answers


def writable(out: str | None, *inputs: str) -> Path | None:
    """The file to write, checked before minutes are spent. UserError if it can't be, or is an input."""
    if out is None:
        return None
    path = Path(out)
    if path.exists() and any(Path(given).exists() and path.samefile(given) for given in inputs):
        raise UserError(f"--out {out}: is an input; choose another file")
    if path.is_dir() or not path.parent.is_dir() or not os.access(path.parent, os.W_OK):
        raise UserError(f"--out {out}: can't be written; give a file in a folder that exists")
    return path


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m omni.evaluate", description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", required=True,
                        help="omni_final.pt or omni_best.pt of a run, or an exported folder")
    parser.add_argument("--data", required=True, metavar="PATH",
                        help="a file or a folder, in any of the formats that a source may have")
    parser.add_argument("--out", metavar="JSONL", help="write every answer beside its reference to this file")
    parser.add_argument("--swapped", action="store_true",
                        help="score once more with the media of other samples, as a run does")
    parser.add_argument("--json", action="store_true", help="print the figures as one line of JSON")
    parser.add_argument("--max-new-tokens", type=int, help="longest answer (default: as in the run's config)")
    parser.add_argument("--max-skipped", type=float,
                        help="largest share of unusable samples (default: as in the run's config)")
    parser.add_argument("--allow-outside-paths", action="store_true",
                        help="allow media outside the folder of the file")
    add_reading_options(parser)
    args = parser.parse_args(arguments)
    if args.max_new_tokens is not None and args.max_new_tokens < 1:
        raise UserError(f"--max-new-tokens must be at least 1, not {args.max_new_tokens}")
    out, begun = writable(args.out, args.ckpt, args.data), time.time()

    def note(line: str) -> None:
        print(line, file=sys.stderr if args.json else sys.stdout, flush=True)

    system = OmniModel.load(args.ckpt)
    config = system.config
    source = manifest.read(args.data, "", args.allow_outside_paths or config.allow_outside_paths,
                           args.question, columns_of(args.columns), args.task,
                           args.media_dir)
    note(f"source {source.name}: {manifest.summary_line([source])}")
    for line in source.lines():
        note(f"source {source.name}: {line}")
    mix, total = usable(source, system)
    check(mix, total, source, config.max_skipped if args.max_skipped is None else args.max_skipped)
    for line in skipped.lines(mix):
        note(line)
    figures, answers = evaluate(system, mix, args.swapped, args.max_new_tokens)
    if args.json:
        print(json.dumps({"ckpt": args.ckpt, "data": args.data, **figures,
                          "skipped": skipped.reason_counts(mix)[source.name],
                          "seconds": round(time.time() - begun, 3)}))
    else:
        metrics = {name: value for name, value in figures.items() if isinstance(value, float)}
        first, *lines = metric_lines(metrics, figures.get("swapped"), figures["cut_answers"])
        first = f", {first}" if "text_acc" in metrics else ""
        for line in [f"{len(answers):,} samples: val_loss={figures['val_loss']:.3f}{first}", *lines]:
            print(line)
    if out is not None:
        checkpoint.save_text(out, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in answers))
        note(f"wrote {out}")


if __name__ == "__main__":
    command(main)
