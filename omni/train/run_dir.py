"""The output folder of a run: its lock, what an earlier run left in it, and the trained system."""

import dataclasses
import json
import os
import socket
import time
from pathlib import Path

from omni.base import checkpoint, machine
from omni.base.config import SFTConfig
from omni.base.distributed import ALONE, World, gathered
from omni.base.errors import UserError
from omni.model.omni import OmniNetwork
from omni.train.step_checkpoints import StepCheckpoints


class RunDir:
    """The folder `save_dir`. Only one run at a time writes to it, and only its rank 0."""

    def __init__(self, path: str | Path, world: World = ALONE):
        self.path, self.world, self._lock_file = Path(path), world, None
        self.steps = StepCheckpoints(self.path, world)

    def claim(self, resume: bool, overwrite: bool) -> None:
        """Lock the folder if it exists. UserError if another run holds it, or if it holds an earlier run and
        neither `resume` nor `overwrite` is set. All ranks call it together.
        """
        self.world.from_first(lambda: self._claim(resume, overwrite))

    def _claim(self, resume: bool, overwrite: bool) -> None:
        if self.path.is_dir():
            self._lock()
        holds_run = self.steps.paths() or (self.path / "omni_final.pt").exists()
        if holds_run and not resume and not overwrite:
            raise UserError(f"{self.path} already holds a run: continue it with --resume, or start over with "
                            "--overwrite")

    def open(self, resume: bool, overwrite: bool, config: SFTConfig) -> None:
        """Create and lock the folder and write config.json; with `overwrite`, delete the earlier run.

        Called last, so a run that can't start deletes nothing. All ranks call it together.
        """
        self.world.from_first(lambda: self._open(resume, overwrite, config))

    def _open(self, resume: bool, overwrite: bool, config: SFTConfig) -> None:
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise UserError(f"{self.path}: can't be created ({err.strerror}); choose another save_dir") \
                from None
        self._claim(resume, overwrite)
        old = [*self.path.glob("*.tmp")]  # from a run that was killed while it wrote
        if overwrite and not resume:
            old += [*self.steps.paths(), *self.path.glob("omni_*.pt"), *self.path.glob("metrics.jsonl")]
        for path in old:
            checkpoint.delete(path)
        text = json.dumps(dataclasses.asdict(config), indent=2)
        checkpoint.save_text(self.path / "config.json", text + "\n")

    def _lock(self) -> None:
        """Lock the folder until this process ends, however it ends."""
        if self._lock_file is not None:
            return
        path = self.path / "run.lock"
        try:
            file = open(path, "a+", encoding="utf-8")
        except OSError as err:
            raise UserError(f"{path}: can't be written ({err.strerror}); choose another save_dir") from None
        try:
            machine.lock(file)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another run"
            raise UserError(f"{self.path}: {holder} is writing here; wait for it, stop it, or choose another "
                            "save_dir") from None
        file.truncate(0)
        since = time.strftime("%Y-%m-%d %H:%M:%S")
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {since}\n")
        file.flush()
        self._lock_file = file

    def write_skipped(self, rows: list[dict]) -> Path:
        """Write skipped.jsonl, one line per skipped sample; returns its path.

        Nothing is written if no sample was skipped and there is no older file.

        All ranks call it together and wait. Otherwise one could end the run before the file is written.
        """
        path = self.path / "skipped.jsonl"
        text = "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
        if rows or self.world.from_first(path.exists):
            self.world.from_first(lambda: checkpoint.save_text(path, text))
        return path

    def save_system(self, name: str, model: OmniNetwork, config: SFTConfig, metrics: dict) -> None:
        """Write the whole system (tokenizer, Thinker, encoders, projectors) with its config and metrics."""
        content = gathered(model.content())
        if self.world.first:
            checkpoint.save(self.path / name, "omni", {
                **content, "config": dataclasses.asdict(config), "metrics": metrics})
