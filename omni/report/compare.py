"""Several runs on one page: how their configs differ, their metrics side by side, their curves."""

import json

from omni.eval.scores import lower_is_better
from omni.report.html import HtmlCell, chart, document, format_metric, table
from omni.report.run_data import Run


def compare(runs: list[Run]) -> str:
    """The page that compares the runs."""
    names = unique_names(runs)
    metrics = dict.fromkeys(name for run in runs for name in run.metric_names())
    named = list(zip(names, runs, strict=True))
    curves = [chart(title, {name: run.step_curve(key) for name, run in named}) for title, key in (
        ("Training loss over steps", "loss"), ("Learning rate over steps", "lr"),
        ("Speed: samples a second, over steps", "samples_per_s"))]
    curves += [chart(f"{metric} over epochs", {name: run.metric_curve(metric) for name, run in named},
                     percent="loss" not in metric) for metric in metrics]
    return document("μOmni: " + " and ".join(names), "", [
        ("How the configs differ", differences(names, runs)),
        ("Held-out metrics of the last epoch", last_metrics(names, runs, list(metrics))),
        ("Curves", f'<div class="grid">{"".join(curves)}</div>')])


def unique_names(runs: list[Run]) -> list[str]:
    """The names of the folders, numbered where two are the same."""
    names = [run.name for run in runs]
    return [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names, 1)]


def flat(config: dict, prefix: str = "") -> dict[str, str]:
    """Nested keys as dotted ones, values as JSON: {"data_mix.text_only": "0.4", ...}."""
    pairs = {}
    for key, value in config.items():
        if isinstance(value, dict):
            pairs.update(flat(value, f"{prefix}{key}."))
        else:
            pairs[prefix + key] = json.dumps(value, ensure_ascii=False)
    return pairs


def differences(names: list[str], runs: list[Run]) -> str:
    """A table of the config keys whose values are not the same in all runs."""
    configs = [flat(run.config) for run in runs]
    rows = []
    for key in dict.fromkeys(key for config in configs for key in config):
        values = [config.get(key, "–") for config in configs]
        if len(set(values)) > 1:
            rows.append([key, *values])
    return table("Config differences", ["key", *names], rows) if rows else "<p>The configs are the same.</p>"


def last_metrics(names: list[str], runs: list[Run], metrics: list[str]) -> str:
    """A table of the metrics of each run's last epoch; the best of each row is marked."""
    lasts = [run.epochs[-1] if run.epochs else {} for run in runs]
    rows = [["epoch", *(str(last.get("epoch", 0)) for last in lasts)],
            ["minutes", *(f"{last['seconds'] / 60:.1f}" if "seconds" in last else "–" for last in lasts)]]
    for name in metrics:
        values = [last.get(name) for last in lasts]
        known = [value for value in values if value is not None]
        best = (min if lower_is_better(name) else max)(known, default=None)
        rows.append([name, *(HtmlCell(f'<td class="right"><b>{format_metric(name, v)} ★</b></td>')
                             if v == best and v is not None and len(set(known)) > 1
                             else format_metric(name, v) for v in values)])
    return table("Held-out metrics", ["metric", *names], rows) + '<p class="soft">★ the best of its row</p>'
