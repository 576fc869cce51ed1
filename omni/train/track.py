"""A run's config, metrics and held-out samples for wandb or trackio, where the config says "track"."""

import contextlib
import importlib
import math
from pathlib import Path

import torch

from omni.base.console import say
from omni.base.errors import MediaError, UserError
from omni.data import audio, image

PROJECT = "micro-omni"
SAMPLES = 8  # of each held-out set and epoch
COLUMNS = ["set", "question", "reference", "answer", "right", "image", "audio"]


class Tracker:
    """Passes the events of metrics.jsonl on to wandb or trackio, which have the same API.

    If the package fails after its start, that is printed once and nothing more is sent. The run goes on.
    """

    def __init__(self, package: str, folder: Path, config: dict, resumed_at: int):
        """Start a run named as `folder`, or go on with the one tracked there. UserError if that fails."""
        self.name, self.working = package, True
        try:
            self.package = importlib.import_module(package)
            options = {"project": PROJECT, "name": folder.resolve().name, "config": config}
            if package == "wandb":
                options["dir"] = str(folder)
                if resumed_at and (number := _wandb_run(folder)):
                    options |= {"id": number, "resume": "allow"}
            elif resumed_at:
                options["resume"] = "allow"
            self.run = self.package.init(**options)
            if package == "wandb":  # its own step only grows, but a resumed run repeats some
                self.run.define_metric("step")
                self.run.define_metric("*", step_metric="step")
        except Exception as err:  # packages raise what they like: no key, no network, another version
            reason = " ".join(str(err).split())[:120] or type(err).__name__
            remedy = "log in with: wandb login, or set WANDB_MODE=offline" if package == "wandb" else \
                'see its documentation, or set "track" to null'
            raise UserError(f'"track": {package} did not start ({reason}); {remedy}') from None

    def add(self, event: str, values: dict) -> None:
        """Pass on an event: its numbers, and the samples of an "answers" event as a table."""
        if not self.working:
            return
        try:
            row = dict(_numbers(event, values))
            if event == "answers":
                row["samples"] = self._table(values["samples"])
            if row and self.name == "wandb":
                self.run.log({**row, "step": values["step"]})
            elif row:
                self.run.log(row, step=values["step"])
        except Exception as err:
            self.working = False
            reason = " ".join(str(err).split())[:120]
            say(f"{self.name} failed ({type(err).__name__}: {reason}); nothing more is sent to it, "
                "metrics.jsonl has everything")

    def _table(self, samples: dict[str, list[dict]]):
        rows = [[name, example["question"], example["reference"], example["answer"], example["right"],
                 self._picture(example["images"]), self._clip(example["audios"])]
                for name, examples in samples.items() for example in examples[:SAMPLES]]
        return self.package.Table(columns=COLUMNS, data=rows)

    def _picture(self, paths):
        with contextlib.suppress(MediaError):
            if paths:
                return self.package.Image(image.load_rgb(paths[0]))

    def _clip(self, paths):
        with contextlib.suppress(MediaError):
            if paths:
                wave = (audio.load(paths[0]).clamp(-1, 1) * 32767).to(torch.int16).numpy()
                return self.package.Audio(wave, sample_rate=audio.SAMPLE_RATE)


def _numbers(event: str, values: dict):
    """("event/name", number) for each number of an event, ("event/name/key", number) inside its objects."""
    for name, value in values.items():
        inner = value.items() if isinstance(value, dict) and event != "answers" else ()
        for path, number in ((f"{event}/{name}", value), *((f"{event}/{name}/{key}", v) for key, v in inner)):
            if type(number) in (int, float) and name != "step" and math.isfinite(number):
                yield path, number


def _wandb_run(folder: Path) -> str | None:
    """The id of the run that wandb last kept in `folder`, from the name of its own folder there."""
    runs = sorted(folder.glob("wandb/*run-*-*"), key=lambda path: path.name.rpartition("run-")[2])
    return runs[-1].name.rpartition("-")[2] if runs else None
