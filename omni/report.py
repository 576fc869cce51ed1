"""metrics.jsonl -> report.html: curves, the table of figures, and held-out samples to look at and listen to.

    python -m omni.report checkpoints/omni_sft_tiny

One file that opens anywhere: no network, no script, pictures and sound inside. Everything shown is escaped.
"""

import argparse
import base64
import mimetypes
import sys
from html import escape
from pathlib import Path

from omni import checkpoint
from omni.config import UserError
from omni.log import MetricsFile

STYLE = """
:root { color-scheme: light dark; --ink: light-dark(#1c1e24, #e8e8ea); --paper: light-dark(#fafaf8, #16181d);
  --line: light-dark(#d8d8d4, #34373f); --right: light-dark(#14783c, #5fd08a);
  --wrong: light-dark(#b42828, #ff8f8f); }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper);
  margin: 0 auto; max-width: 72rem; padding: 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid var(--line); padding: .25rem .75rem; text-align: right;
  white-space: nowrap; }
th:first-child, td:first-child { text-align: left; }
.charts, .samples { display: grid; gap: 1rem; }
.charts { grid-template-columns: repeat(auto-fill, minmax(min(100%, 20rem), 1fr)); }
.samples { grid-template-columns: repeat(auto-fill, minmax(min(100%, 13rem), 1fr)); }
figure, article { margin: 0; border: 1px solid var(--line); border-radius: .5rem; padding: .75rem; }
svg { width: 100%; height: auto; } img { width: 128px; } audio { width: 100%; }
.right { color: var(--right); } .wrong { color: var(--wrong); } p { margin: .25rem 0; }
"""
COLORS = ("#2a6fdb", "#d2691e", "#2e9e5b", "#a044c0", "#c0392b", "#7f8c8d")
WIDTH, HEIGHT, EDGE = 360, 180, 34  # of a chart, in its own units


def chart(title: str, curves: dict[str, list[tuple[float, float]]]) -> str:
    """A line chart as inline SVG: {name: [(x, y), ...]}."""
    points = [point for curve in curves.values() for point in curve]
    if not points:
        return ""
    (x0, y0), (x1, y1) = (tuple(f(p[i] for p in points) for i in (0, 1)) for f in (min, max))
    x1, y1 = x1 if x1 > x0 else x0 + 1, y1 if y1 > y0 else y0 + 1e-9

    def place(x, y):
        return (f"{EDGE + (x - x0) / (x1 - x0) * (WIDTH - EDGE - 8):.1f},"
                f"{HEIGHT - 20 - (y - y0) / (y1 - y0) * (HEIGHT - 32):.1f}")

    lines, names = [], []
    for color, (name, curve) in zip(COLORS * 9, curves.items(), strict=False):
        lines.append(f'<polyline fill="none" stroke="{color}" stroke-width="2" '
                     f'points="{" ".join(place(*p) for p in curve)}"/>')
        if len(curve) <= 20:
            spots = [place(*p).split(",") for p in curve]
            lines += [f'<circle r="2.5" fill="{color}" cx="{x}" cy="{y}"/>' for x, y in spots]
        names.append(f'<span style="color:{color}">{escape(name)}</span>')
    axis = "".join(
        f'<text x="{x}" y="{y}" font-size="10" fill="currentColor" text-anchor="{anchor}">{text}</text>'
        for x, y, anchor, text in (
            (EDGE - 4, 16, "end", f"{y1:.3g}"), (EDGE - 4, HEIGHT - 18, "end", f"{y0:.3g}"),
            (EDGE, HEIGHT - 5, "start", f"{x0:g}"), (WIDTH - 8, HEIGHT - 5, "end", f"{x1:g}")))
    return (f"<figure><figcaption><b>{escape(title)}</b> {' · '.join(names)}</figcaption>"
            f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{escape(title, quote=True)}">'
            f"{axis}{''.join(lines)}</svg></figure>")


def figures_table(epochs: list[dict]) -> str:
    """Every figure of every epoch; in brackets the same with media swapped."""
    names = [k for k, v in epochs[-1].items() if isinstance(v, float) and k != "seconds"]
    rows = []
    for name in names:
        cells = []
        for row in epochs:
            value, swapped = row.get(name), row.get("swapped", {}).get(name)
            shown = "" if value is None else f"{value:.3f}" if "loss" in name else f"{value:.1%}"
            cells.append(f"<td>{shown}{f' ({swapped:.1%})' if swapped is not None else ''}</td>")
        rows.append(f"<tr><td>{escape(name)}</td>{''.join(cells)}</tr>")
    head = "".join(f"<th>epoch {row['epoch']}</th>" for row in epochs)
    return f"<table><tr><th>held out</th>{head}</tr>{''.join(rows)}</table>"


def mix_table(epoch: dict) -> str:
    rows = "".join(f"<tr><td>{escape(name)}</td><td>{m['wanted']:.1%}</td><td>{m['samples']:.1%}</td>"
                   f"<td>{m['tokens']:.1%}</td><td>{m['passes']:.2f}</td></tr>"
                   for name, m in epoch.get("mix", {}).items())
    head = "".join(f"<th>{name}</th>" for name in ("source", "wanted", "samples", "answer tokens", "passes"))
    return f"<table><tr>{head}</tr>{rows}</table>"


def data_url(path: str) -> str:
    kind = mimetypes.guess_type(path)[0] or "application/octet-stream"
    return f"data:{kind};base64,{base64.b64encode(Path(path).read_bytes()).decode()}"


def sample_card(sample: dict) -> str:
    """A held-out sample: its media, what was asked, the answer, and the reference where they differ."""
    media = "".join(f'<img alt="the picture asked about" src="{data_url(p)}">'
                    for p in sample["images"] if Path(p).is_file())
    media += "".join(f'<audio controls preload="none" src="{data_url(p)}"></audio>'
                     for p in sample["audios"] if Path(p).is_file())
    verdict = "right" if sample["right"] else "wrong"
    reference = "" if sample["right"] else f"<p>was: {escape(sample['reference'])}</p>"
    return (f"<article>{media}<p>{escape(sample['question'])}</p>"
            f'<p class="{verdict}">→ {escape(sample["answer"])} ({verdict})</p>{reference}</article>')


def build(rows: list[dict], title: str) -> str:
    """The page of a run's metrics."""
    steps = [row for row in rows if row["event"] == "step"]
    epochs = [row for row in rows if row["event"] == "epoch"]
    answers = [row for row in rows if row["event"] == "answers"]
    parts = [f"<h1>{escape(title)}</h1>", '<div class="charts">',
             chart("training loss over steps", {"loss": [(r["step"], r["loss"]) for r in steps]}),
             chart("learning rate over steps", {"lr": [(r["step"], r["lr"]) for r in steps]}),
             chart("samples a second", {"samples/s": [(r["step"], r["samples_per_s"]) for r in steps]}),
             chart("held-out figures over epochs", {
                 name: [(r["epoch"], r[name]) for r in epochs if name in r]
                 for name in ("text_acc", "image_qa", "audio_wer") if name in epochs[-1]} if epochs else {}),
             "</div>"]
    if epochs:
        parts += ["<h2>Figures (in brackets: with media swapped)</h2>", figures_table(epochs),
                  "<h2>Mix of the last epoch</h2>", mix_table(epochs[-1])]
    for name, samples in (answers[-1]["samples"] if answers else {}).items():
        parts += [f"<h2>{escape(name)}</h2>", '<div class="samples">', *map(sample_card, samples), "</div>"]
    return ('<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{''.join(parts)}</body></html>")


def write(folder: str | Path) -> Path:
    """Write the report of a run's folder; returns its path."""
    metrics = MetricsFile(folder)
    if not metrics.path.is_file():
        raise UserError(f"{metrics.path}: no such file; give the output folder of a run")
    path = Path(folder) / "report.html"
    checkpoint.save_text(path, build(metrics.rows(), Path(folder).name))
    return path


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m omni.report",
                                     description="Make a run's report.html again.")
    parser.add_argument("folder", help="the output folder of a run")
    print(f"wrote {write(parser.parse_args(arguments).folder)}")


if __name__ == "__main__":
    try:
        main()
    except UserError as err:
        print(f"error: {err}", file=sys.stderr)
        sys.exit(2)
