"""The report of one run: its curves, held-out metrics, data mix, skipped samples, and examples of answers.

It is written as report.html after each epoch, so that a run can be watched.
"""

import json
import time
from html import escape
from pathlib import Path

from omni.base import checkpoint
from omni.eval.scores import lower_is_better
from omni.report.html import HtmlCell, chart, definitions, document, format_metric, table
from omni.report.run_data import Run
from omni.report.sample_cards import sample_cards


def build(run: Run) -> str:
    """The page of a run."""
    sections = [("Training", training_charts(run)),
                ("Held-out metrics", metric_table(run) + metric_charts(run)),
                ("Mix of the sources", mix_table(run)),
                ("Skipped samples", skipped_table(run))]
    sections += [(f"Samples of {name}", sample_cards(samples)) for name, samples in run.examples.items()]
    config = escape(json.dumps(run.config, indent=2, ensure_ascii=False))
    block = ('<details><summary>all keys with their values</summary>'
             f'<pre class="wide" tabindex="0">{config}</pre></details>')
    sections.append(("Config", block if run.config else ""))
    return document(f"μOmni: {run.name}", summary(run), sections)


def summary(run: Run) -> str:
    """Progress, speed, memory and time."""
    done, last = run.epochs[-1] if run.epochs else {}, run.steps[-1] if run.steps else {}
    pairs = [("epochs done", f"{done.get('epoch', 0)} of {run.config.get('num_epochs', '?')}"),
             ("step", f"{last.get('step', 0):,}")]
    if last:
        pairs += [("speed", f"{last['samples_per_s']:.1f} samples/s"),
                  ("answer tokens", f"{last['tokens_per_s']:.0f} a second")]
        if last["gpu_mem_gb"]:
            pairs.append(("memory on the GPU", f"{last['gpu_mem_gb']:.1f} GB"))
        if "main_mem_gb" in last:
            pairs.append(("main memory", f"{last['main_mem_gb']:.1f} GB"))
    if "seconds" in done:
        pairs.append(("time", f"{done['seconds'] / 60:.1f} minutes"))
    written = f"Written {time.strftime('%Y-%m-%d %H:%M')}, after each epoch."
    return f'{definitions(pairs)}<p class="soft">{written}</p>'


def training_charts(run: Run) -> str:
    charts = [chart("Training loss over steps", {"loss": run.step_curve("loss")}),
              chart("Learning rate over steps", {"learning rate": run.step_curve("lr")}),
              chart("Speed over steps", {"samples a second": run.step_curve("samples_per_s")}),
              chart("Gradient norm over steps", {"gradient norm": run.step_curve("grad_norm")})]
    return f'<div class="grid">{"".join(charts)}</div>' if any(charts) else "<p>No step is logged yet.</p>"


def metric_charts(run: Run) -> str:
    """One chart for each kind of metric, with a curve for each source, dashed where media are swapped.

    Epoch 0 is before training.
    """
    kinds = {"loss": "Loss on held-out samples", "acc": "Text: next-token accuracy",
             "exact": "Text: exact answers", "qa": "Questions: right answers",
             "wer": "Speech: word error rate", "cer": "Speech: character error rate"}
    charts = []
    for kind, title in kinds.items():
        names = [name for name in run.metric_names() if name.endswith(kind)]
        charts.append(chart(f"{title}, over epochs", {name: run.metric_curve(name) for name in names},
                            {name: run.metric_curve(name, swapped=True) for name in names}, kind != "loss"))
    return f'<div class="grid">{"".join(charts)}</div>'


def metric_table(run: Run) -> str:
    """Each metric with its number of samples: before training, after each epoch, with media swapped."""
    last = run.epochs[-1] if run.epochs else {}
    rows = []
    for name in run.metric_names():
        before, now, swapped = run.before.get(name), last.get(name), last.get("swapped", {}).get(name)
        count, count_before = (f"{row['counts'][name]:,}" if name in row.get("counts", {}) else ""
                               for row in (last, run.before))
        rows.append([name, count,
                     f"{format_metric(name, before)}{f' of {count_before}' if count_before else ''}",
                     *(format_metric(name, epoch.get(name)) for epoch in run.epochs),
                     change_cell(name, before, now), format_metric(name, swapped)])
    if not rows:
        return "<p>Nothing is evaluated yet.</p>"
    head = ["metric", "samples", "before training", *(f"epoch {row['epoch']}" for row in run.epochs),
            "change", "media swapped"]
    note = ('<p class="soft">Before training, only a part of the samples is scored. Media swapped: each '
            "sample gets another's picture or clip. If a metric stays the same then, the answers do not "
            "depend on the media.</p>")
    return table("Held-out metrics", head, rows) + note


def change_cell(name: str, before: float | None, now: float | None) -> str:
    """The change of a metric by training, as a table cell coloured by whether it got better."""
    if before is None or now is None:
        return "–"
    better = (before - now) if lower_is_better(name) else (now - before)
    text = f"{now - before:+.3f}" if "loss" in name else f"{100 * (now - before):+.1f} points"
    verdict = ("right", "") if better > 0 else ("wrong", " (worse)") if better < 0 else ("", "")
    return HtmlCell(f'<td class="{verdict[0]}">{text}{verdict[1]}</td>')


def mix_table(run: Run) -> str:
    mix = run.epochs[-1].get("mix", {}) if run.epochs else {}
    rows = [[name, f"{m['wanted']:.1%}", f"{m['samples']:.1%}", f"{m['tokens']:.1%}",
             f"{m['passes']:.2f}" if "passes" in m else "no longer in the mix"] for name, m in mix.items()]
    head = ["source", "wanted", "samples drawn", "answer tokens", "passes so far"]
    return table("Mix of the last epoch", head, rows) if rows else ""


def skipped_table(run: Run) -> str:
    skipped = run.epochs[-1].get("skipped", {}) if run.epochs else {}
    rows = [[name, f"{count:,}", HtmlCell(f'<td class="text">{escape(reason)}</td>')]
            for name, reasons in skipped.items() for reason, count in reasons.items()]
    return table("Skipped samples", ["source", "samples", "reason"], rows) if rows else ""


def write(folder: str | Path) -> Path:
    """Write the report of the run in `folder`; returns its path. UserError if the run can't be read."""
    path = Path(folder) / "report.html"
    checkpoint.save_text(path, build(Run.read(folder)))
    return path
