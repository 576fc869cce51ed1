"""Reads and checks the output folder of a run: its config, metrics and examples.

The files may be damaged or edited. Everything that the report uses is checked here, so the report itself
needs no checks. A wrong value is a UserError that names the file, the line and the key.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omni.base.errors import UserError
from omni.eval.scores import POOLED_METRICS

Curve = list[tuple[float, float]]  # (x, y) of each point

# The schema of what the report uses. float means any number, "*" any key, and "?" a key that may be missing
# (earlier versions did not write it). [schema] is a list of any length, (schema, schema) one of two items.
_STEP = dict.fromkeys(("step", "loss", "lr", "grad_norm", "samples_per_s", "tokens_per_s", "gpu_mem_gb"),
                      float) | {"main_mem_gb?": float}
_BEFORE = {"counts?": {"*": float}}
_EPOCH = _BEFORE | {
    "epoch": float, "seconds?": float, "swapped?": {"*": float}, "skipped?": {"*": {"*": float}},
    "mix?": {"*": {"wanted": float, "samples": float, "tokens": float, "passes?": float}}}
_EXAMPLE = {"question": str, "answer": str, "reference": str, "right": bool, "images": [str],
            "audios": [str], "before?": [(str, str)], "why?": str}
_SCHEMAS = {"step": _STEP, "epoch": _EPOCH, "answers": {"samples": {"*": [_EXAMPLE]}}}
_DEPTH = 50  # levels of nesting in a file, far more than any run writes


@dataclass(frozen=True)
class Run:
    """The config and the results of a run, finished or not."""

    name: str
    config: dict  # all keys with their values; empty where the folder has none
    before: dict  # metrics before training; empty where they were not measured
    steps: list[dict]
    epochs: list[dict]
    examples: dict[str, list[dict]]  # held-out set -> samples with their answers, from the last epoch

    @classmethod
    def read(cls, folder: str | Path) -> "Run":
        """The run in `folder`. UserError if there is none, or if one of its files is damaged."""
        folder = Path(folder)
        rows = _read_metrics(folder / "metrics.jsonl")
        config, before = (_read_object(folder / name) for name in ("config.json", "before.json"))
        _check(before, _BEFORE, str(folder / "before.json"), _DELETE_FILE)
        examples = [row["samples"] for row in rows if row["event"] == "answers"]
        return cls(folder.resolve().name, config, before, [row for row in rows if row["event"] == "step"],
                   [row for row in rows if row["event"] == "epoch"], examples[-1] if examples else {})

    def step_curve(self, key: str) -> Curve:
        """The values of `key` in the logged steps."""
        return [(row["step"], row[key]) for row in self.steps if key in row]

    def metric_curve(self, name: str, swapped: bool = False) -> Curve:
        """A held-out metric over epochs; epoch 0 is before training."""
        rows = ([{**self.before, "epoch": 0}] if self.before and not swapped else []) + self.epochs
        values = [(row["epoch"], (row.get("swapped", {}) if swapped else row).get(name)) for row in rows]
        return [(epoch, value) for epoch, value in values if value is not None]

    def metric_names(self) -> list[str]:
        """The names of all held-out metrics, those pooled over sources first."""
        row = self.epochs[-1] if self.epochs else self.before
        return sorted(filter(is_metric, row), key=lambda name: "/" in name)


def is_metric(name: str) -> bool:
    """Whether a key of an epoch's row names a held-out metric."""
    return "/" in name or name == "val_loss" or name in POOLED_METRICS


_DELETE_FILE = "restore it, or delete it: the report can be made without it"
_DELETE_LINE = "correct or delete that line"


def _read_object(path: Path) -> dict:
    """The JSON object in a file; {} where there is no such file."""
    if not path.is_file():
        return {}
    value = _parse(_read_bytes(path), f"{path}", _DELETE_FILE)
    if not isinstance(value, dict):
        raise UserError(f"{path}: not a JSON object; {_DELETE_FILE}")
    return value


def _read_metrics(path: Path) -> list[dict]:
    """The rows of metrics.jsonl. The last line may be cut short: the run is writing it, or was killed."""
    if not path.is_file():
        raise UserError(f"{path}: no such file; give the output folder of a run")
    rows, lines = [], _read_bytes(path).split(b"\n")
    for number, line in enumerate(lines, 1):
        where = f"{path}, line {number}"
        if not line.strip():
            continue
        unfinished = number == len(lines) and line.startswith(b"{")
        row = _parse(line, where, _DELETE_LINE, unfinished)
        if row is None and unfinished:
            break
        event = row.get("event") if isinstance(row, dict) else None
        if not isinstance(event, str):
            raise UserError(f'{where}: not an object with a text "event"; {_DELETE_LINE}')
        _check(row, _SCHEMAS.get(event, {}), where, _DELETE_LINE)
        rows.append(row)
    return rows


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as err:
        raise UserError(f"{path}: can't be read ({err.strerror}); make it readable") from None


def _parse(content: bytes, where: str, remedy: str, unfinished: bool = False) -> Any:
    """The JSON value in `content`. None if it is not JSON but may be `unfinished`."""
    try:
        value = json.loads(content.decode("utf-8"))
        if not _nested_deeper(value, _DEPTH):
            return value
        problem = "nested too deeply"
    except UnicodeDecodeError:
        problem = "not UTF-8 text"
    except ValueError as err:
        if unfinished:
            return None
        problem = f"not JSON ({getattr(err, 'msg', err)})"
    except RecursionError:
        problem = "nested too deeply"
    raise UserError(f"{where}: {problem}; {remedy}")


def _nested_deeper(value: Any, levels: int) -> bool:
    """Whether lists and objects are nested more than `levels` deep."""
    inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
    return inner is not None and (levels == 0 or any(_nested_deeper(item, levels - 1) for item in inner))


def _check(row: dict, schema: dict, where: str, remedy: str) -> None:
    """UserError unless `row` matches the schema and all held-out metrics in it are numbers."""
    metrics = {name: value for name, value in row.items() if is_metric(name)}
    fault = _fault(row, schema, "the row") or _fault(metrics, {"*": float}, "the row")
    if fault:
        raise UserError(f"{where}: {fault}; {remedy}")


def _fault(value: Any, schema: Any, name: str) -> str | None:
    """The first mismatch between `value` and the schema, as a message; None if there is none."""
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return f"{name} must be an object"
        parts = []
        for key, inner in schema.items():
            plain = key.removesuffix("?")
            if key == "*":
                parts += [(item, inner, f'"{one}"') for one, item in value.items()]
            elif plain in value:
                parts.append((value[plain], inner, f'"{plain}"'))
            elif plain == key:
                return f'{name} has no "{key}"'
    elif isinstance(schema, list | tuple):
        fixed = isinstance(schema, tuple)
        if not isinstance(value, list) or fixed and len(value) != len(schema):
            return f"{name} must be a list" + (f" of {len(schema)}" if fixed else "")
        parts = [(item, schema[i if fixed else 0], f"an item of {name}") for i, item in enumerate(value)]
    elif schema is float:
        number = isinstance(value, float) or type(value) is int and abs(value) < 2 ** 63
        return None if number else f"{name} must be a number"
    else:
        kinds = {str: "a text", bool: "true or false"}
        return None if isinstance(value, schema) else f"{name} must be {kinds[schema]}"
    return next(filter(None, (_fault(*part) for part in parts)), None)
