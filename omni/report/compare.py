"""Several runs on one page: what their configs differ in, their figures side by side, their curves."""

import json

from omni.report.html import Cell, Run, chart, document, lower_is_better, shown, table


def compare(runs: list[Run]) -> str:
    names = own_names(runs)
    kinds = dict.fromkeys(name for run in runs for name in run.figures())
    named = list(zip(names, runs, strict=True))
    curves = [chart(title, {name: run.curve(key) for name, run in named}) for title, key in (
        ("Training loss over steps", "loss"), ("Learning rate over steps", "lr"),
        ("Speed: samples a second, over steps", "samples_per_s"))]
    curves += [chart(f"{kind} over epochs", {name: run.figure(kind) for name, run in named},
                     share="loss" not in kind) for kind in kinds]
    return document("μOmni: " + " and ".join(names), "", [
        ("What the configs differ in", differences(names, runs)),
        ("Held-out figures of the last epoch", figures(names, runs, list(kinds))),
        ("Curves", f'<div class="grid">{"".join(curves)}</div>')])


def own_names(runs: list[Run]) -> list[str]:
    """The folders' names, numbered where two are called the same."""
    names = [run.name for run in runs]
    return [f"{name} ({i})" if names.count(name) > 1 else name for i, name in enumerate(names, 1)]


def flat(config: dict, prefix: str = "") -> dict[str, str]:
    """{"data_mix.text_only": "0.4", ...}: every key dotted, every value as JSON."""
    pairs = {}
    for key, value in config.items():
        if isinstance(value, dict):
            pairs.update(flat(value, f"{prefix}{key}."))
        else:
            pairs[prefix + key] = json.dumps(value, ensure_ascii=False)
    return pairs


def differences(names: list[str], runs: list[Run]) -> str:
    configs = [flat(run.config) for run in runs]
    rows = []
    for key in dict.fromkeys(key for config in configs for key in config):
        values = [config.get(key, "–") for config in configs]
        if len(set(values)) > 1:
            rows.append([key, *values])
    return table("Config differences", ["key", *names], rows) if rows else "<p>The configs are the same.</p>"


def figures(names: list[str], runs: list[Run], kinds: list[str]) -> str:
    """The last epoch of each run; the best of a row is marked."""
    lasts = [run.epochs[-1] if run.epochs else {} for run in runs]
    rows = [["epoch", *(str(last.get("epoch", 0)) for last in lasts)],
            ["minutes", *(f"{last['seconds'] / 60:.1f}" if "seconds" in last else "–" for last in lasts)]]
    for kind in kinds:
        values = [last.get(kind) for last in lasts]
        there = [value for value in values if value is not None]
        best = (min if lower_is_better(kind) else max)(there, default=None)
        rows.append([kind, *(Cell(f'<td class="right"><b>{shown(kind, v)} ★</b></td>')
                             if v == best and v is not None and len(set(there)) > 1 else shown(kind, v)
                             for v in values)])
    return table("Held-out figures", ["figure", *names], rows) + '<p class="soft">★ the best of its row</p>'
