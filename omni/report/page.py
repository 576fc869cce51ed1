"""A run's metrics -> report.html: curves, figures before and after, the mix, samples to see and hear.

    python -m omni.report checkpoints/omni_sft_tiny
    python -m omni.report checkpoints/first checkpoints/second     compares them, in comparison.html

It can be opened while the run goes on: what is there so far is shown.
"""

import contextlib
import json
import time
from collections.abc import Iterator
from html import escape
from pathlib import Path

from omni import checkpoint
from omni.errors import UserError
from omni.report.html import Cell, Run, chart, document, facts, lower_is_better, shown, table
from omni.report.sample_cards import cards


def build(run: Run) -> str:
    """The page of a run."""
    sections = [("Training", training(run)),
                ("Held-out figures", figure_table(run) + figure_charts(run)),
                ("Mix of the sources", mix_table(run)),
                ("Skipped samples", skipped_table(run))]
    sections += [(f"Samples of {name}", cards(samples)) for name, samples in run.answers.items()]
    config = escape(json.dumps(run.config, indent=2, ensure_ascii=False))
    block = f'<details><summary>as resolved</summary><pre class="wide" tabindex="0">{config}</pre></details>'
    sections.append(("Config", block if run.config else ""))
    return document(f"μOmni: {run.name}", summary(run), sections)


def summary(run: Run) -> str:
    """How far the run is, how fast, and in how much memory and time."""
    done, last = run.epochs[-1] if run.epochs else {}, run.steps[-1] if run.steps else {}
    epochs = run.config["num_epochs"] if run.config else "?"
    pairs = [("epochs done", f"{done.get('epoch', 0)} of {epochs}"), ("step", f"{last.get('step', 0):,}")]
    if last:
        pairs += [("speed", f"{last['samples_per_s']:.1f} samples/s"),
                  ("answer tokens", f"{last['tokens_per_s']:.0f} a second")]
        if last["gpu_mem_gb"]:
            pairs.append(("memory on the GPU", f"{last['gpu_mem_gb']:.1f} GB"))
        if "main_mem_gb" in last:
            pairs.append(("main memory", f"{last['main_mem_gb']:.1f} GB"))
    if "seconds" in done:
        pairs.append(("time", f"{done['seconds'] / 60:.1f} minutes"))
    return facts(pairs) + f'<p class="soft">Written {time.strftime("%Y-%m-%d %H:%M")}, after each epoch.</p>'


def training(run: Run) -> str:
    charts = [chart("Training loss over steps", {"loss": run.curve("loss")}),
              chart("Learning rate over steps", {"learning rate": run.curve("lr")}),
              chart("Speed over steps", {"samples a second": run.curve("samples_per_s")}),
              chart("Gradient norm over steps", {"gradient norm": run.curve("grad_norm")})]
    return f'<div class="grid">{"".join(charts)}</div>' if any(charts) else "<p>No step is logged yet.</p>"


def figure_charts(run: Run) -> str:
    """A chart a kind of figure, a curve a source, dashed with the media swapped; epoch 0: before training."""
    kinds = {"loss": "Loss on held-out samples", "acc": "Text: next-token accuracy",
             "exact": "Text: exact answers", "qa": "Questions: right answers",
             "wer": "Speech: word error rate"}
    charts = []
    for kind, title in kinds.items():
        names = [name for name in run.figures() if name.endswith(kind)]
        charts.append(chart(f"{title}, over epochs", {name: run.figure(name) for name in names},
                            {name: run.figure(name, swapped=True) for name in names}, kind != "loss"))
    return f'<div class="grid">{"".join(charts)}</div>'


def figure_table(run: Run) -> str:
    """Every figure with its count: before training, after each epoch, the change, and with media swapped."""
    last = run.epochs[-1] if run.epochs else {}
    rows = []
    for name in run.figures():
        before, now, swapped = run.before.get(name), last.get(name), last.get("swapped", {}).get(name)
        count, count_before = (f"{row['counts'][name]:,}" if name in row.get("counts", {}) else ""
                               for row in (last, run.before))
        rows.append([name, count, f"{shown(name, before)}{f' of {count_before}' if count_before else ''}",
                     *(shown(name, epoch.get(name)) for epoch in run.epochs), gain(name, before, now),
                     shown(name, swapped)])
    if not rows:
        return "<p>Nothing is evaluated yet.</p>"
    head = ["figure", "samples", "before training", *(f"epoch {row['epoch']}" for row in run.epochs),
            "change", "media swapped"]
    note = ('<p class="soft">Before training, a part of the samples is scored. Media swapped: each gets '
            "the picture or clip of another; a figure that stays was not earned by looking or listening.</p>")
    return table("Held-out figures", head, rows) + note


def gain(name: str, before: float | None, now: float | None) -> str:
    """A table cell: what training changed, coloured by whether that is for the better."""
    if before is None or now is None:
        return "–"
    better = (before - now) if lower_is_better(name) else (now - before)
    text = f"{now - before:+.3f}" if "loss" in name else f"{100 * (now - before):+.1f} points"
    verdict = ("right", "") if better > 0 else ("wrong", " (worse)") if better < 0 else ("", "")
    return Cell(f'<td class="{verdict[0]}">{text}{verdict[1]}</td>')


def mix_table(run: Run) -> str:
    mix = run.epochs[-1].get("mix", {}) if run.epochs else {}
    rows = [[name, f"{m['wanted']:.1%}", f"{m['samples']:.1%}", f"{m['tokens']:.1%}",
             "-" if m["passes"] is None else f"{m['passes']:.2f}"]  # None: no longer in the mix
            for name, m in mix.items()]
    head = ["source", "wanted", "samples drawn", "answer tokens", "passes so far"]
    return table("Mix of the last epoch", head, rows) if rows else ""


def skipped_table(run: Run) -> str:
    skipped = run.epochs[-1].get("skipped", {}) if run.epochs else {}
    rows = [[name, f"{count:,}", Cell(f'<td class="text">{escape(reason)}</td>')]
            for name, reasons in skipped.items() for reason, count in reasons.items()]
    return table("Skipped samples", ["source", "samples", "reason"], rows) if rows else ""


def write(folder: str | Path) -> Path:
    """Write the report of a run's folder; returns its path."""
    path, run = Path(folder) / "report.html", Run.read(folder)
    with told(run):
        checkpoint.save_text(path, build(run))
    return path


@contextlib.contextmanager
def told(*runs: Run) -> Iterator[None]:
    """A row of metrics that no run writes (someone edited the file) is one line, not a traceback."""
    try:
        yield
    except (KeyError, TypeError, ValueError, AttributeError) as err:
        names = ", ".join(run.name for run in runs)
        raise UserError(f"{names}: a row of metrics.jsonl or before.json is not as a run writes it "
                        f"({type(err).__name__}: {err}); mend or remove it") from None
