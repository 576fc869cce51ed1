"""The output folder of a run: claiming it, step checkpoints and resume, the finished system."""

import dataclasses
import fcntl
import json
import os
import re
import socket
import time
from pathlib import Path

import torch

from omni import checkpoint
from omni.config import SFTConfig
from omni.console import say
from omni.distributed import ALONE, World, gathered, sharded_like
from omni.errors import UserError
from omni.model.omni import OmniNetwork
from omni.train import optim

# What a resumed run can't change unasked: the order of its draws and what is trained depend on it.
BENDS = ("seed", "batch_size", "samples_per_epoch", "data_mix", "data_dir", "freeze_encoders",
         "augment_takes", "max_length")
# What a step checkpoint holds, besides what every checkpoint says of itself.
HOLDS = {"step": int, "sums": dict, "model": dict, "optimizer": dict, "config": dict,
         "inputs": dict}


class RunFolder:
    """`save_dir` and what is written there, by one run at a time."""

    def __init__(self, path: str | Path, world: World = ALONE):
        self.path, self.world, self.lock = Path(path), world, None  # only the first rank writes
        self.saved_at = time.monotonic()

    def steps(self) -> list[Path]:
        """The step checkpoints, oldest first."""
        found = [p for p in self.path.glob("step_*.pt") if re.fullmatch(r"step_\d{6,}\.pt", p.name)]
        return sorted(found, key=lambda p: int(p.stem[5:]))

    def claim(self, resume: bool, overwrite: bool) -> None:
        """Refuse to write beside a run that is going on, or over an earlier one unless told so."""
        if not self.world.first:
            return
        if self.path.is_dir():
            self._lock()
        holds_run = self.steps() or (self.path / "omni_final.pt").exists()
        if holds_run and not resume and not overwrite:
            raise UserError(f"{self.path} already holds a run; go on with it: --resume, or start over: "
                            "--overwrite")

    def open(self, resume: bool, overwrite: bool, config: SFTConfig) -> None:
        """Make the folder and take it, when all is ready to start; an earlier run is deleted if told so."""
        if not self.world.first:
            return
        try:
            self.path.mkdir(parents=True, exist_ok=True)
        except OSError as err:
            raise UserError(f"{self.path}: can't be made ({err.strerror}); choose another save_dir") from None
        self.claim(resume, overwrite)
        left = [*self.path.glob("*.tmp")]  # by a run that was killed while it wrote
        if overwrite and not resume:
            left += [*self.steps(), *self.path.glob("omni_*.pt"), *self.path.glob("metrics.jsonl")]
        for old in left:
            self._delete(old)
        text = json.dumps(dataclasses.asdict(config), indent=2)
        checkpoint.save_text(self.path / "config.json", text + "\n")

    def _lock(self) -> None:
        """Held until this process ends, however it ends.

        A POSIX lock: unlike one by flock, workers forked from a run that was killed don't keep it.
        """
        if self.lock is not None:
            return
        path = self.path / "run.lock"
        try:
            file = open(path, "a+", encoding="utf-8")
        except OSError as err:
            raise UserError(f"{path}: can't be written ({err.strerror}); choose another save_dir") from None
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            file.seek(0)
            holder = file.read().strip() or "another run"
            raise UserError(f"{self.path}: {holder} is writing here; wait for it, stop it, or choose another "
                            "save_dir") from None
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()} since {time.strftime('%F %T')}\n")
        file.flush()
        self.lock = file

    def _delete(self, old: Path) -> None:
        try:
            old.unlink()
        except OSError as err:
            raise UserError(f"{old}: can't be deleted ({err.strerror})") from None

    def due(self, step: int, config: SFTConfig) -> bool:
        """Whether a step checkpoint is to be written now."""
        return (step % config.save_every_steps == 0
                or time.monotonic() - self.saved_at >= config.save_every_minutes * 60)

    def save_step(self, state: dict, model: OmniNetwork, optimizer, config: SFTConfig, inputs: dict) -> None:
        """Write a step checkpoint, proven; only then delete the oldest beyond keep_checkpoints.

        Bad steps at the end were not applied: the checkpoint is the one of the step before them.
        """
        step, sums = state["step"] - state["bad"], state["held" if state["bad"] else "sums"]
        content = {"step": step, "sums": sums, "model": gathered(model.state_dict()), "inputs": inputs,
                   "optimizer": gathered(optimizer.state_dict()), "config": dataclasses.asdict(config)}
        self.saved_at = time.monotonic()
        if not self.world.first:
            return
        try:
            checkpoint.save(self.path / f"step_{step:06d}.pt", "step", content)
        except UserError as err:
            kept = f"{self.steps()[-1]} is kept: --resume" if self.steps() else "no step was saved before"
            raise UserError(f"{err}; {kept}") from None
        for old in self.steps()[:-config.keep_checkpoints]:
            self._delete(old)

    def resume(self, asked: str, model: OmniNetwork, optimizer, config: SFTConfig, inputs: dict,
               allowed: list[str]) -> dict:
        """Put model and optimizer back to the checkpoint asked for; returns the run's state.

        "" asks for the newest good one.
        """
        path, content = self.world.from_first(lambda: self._read(asked, config, inputs, allowed))
        checkpoint.load_state(model, sharded_like(model.state_dict(), content["model"]), "model", path)
        optim.restore(optimizer, content["optimizer"], path)
        for later in self.steps() if self.world.first else ():  # of the run as it went on from here before
            if int(later.stem[5:]) > content["step"]:
                self._delete(later)
        return {"step": content["step"], "sums": content["sums"], "bad": 0}

    def _read(self, asked: str, config: SFTConfig, inputs: dict, allowed: list[str]) -> tuple[Path, dict]:
        path, content = self._newest_good() if not asked else (Path(asked), self._load(asked))
        self._compare(path, content, config, inputs, allowed)
        return path, content

    def _compare(self, path: Path, content: dict, config: SFTConfig, inputs: dict,
                 allowed: list[str]) -> None:
        """Say what changed since the checkpoint; a UserError if it would bend the run and is not allowed."""
        now = dataclasses.asdict(config)
        unknown = [key for key in allowed if key not in now]
        if unknown:
            raise UserError(f'--allow-change {unknown[0]}: no such key; it is one of {", ".join(BENDS)}, '
                            "thinker_ckpt, audio_ckpt, vision_ckpt")
        bent = []
        for was, new, bends in ((content["config"], now, BENDS), (content["inputs"], inputs, tuple(inputs))):
            for key in sorted(was.keys() | new.keys()):
                old_value, new_value = (json.dumps(v.get(key), default=str) for v in (was, new))
                if old_value != new_value:
                    change = f'"{key}" {old_value} -> {new_value}'
                    root = key.split(".")[0]
                    if key in bends and root not in allowed:
                        bent.append((change, root))
                    else:
                        say(f"changed since {path.name}: {change}")
        if bent:
            flags = " ".join(dict.fromkeys(f"--allow-change {root}" for _, root in bent))
            raise UserError(f"{path}: was written with {'; '.join(change for change, _ in bent)}: that would "
                            f"bend the run; resume with what it was, or take it on: {flags}, or start over: "
                            "--overwrite")

    def _load(self, path: str | Path) -> dict:
        remedy = "resume from another one with --resume PATH"
        content = checkpoint.load(path, "step", remedy)
        wrong = [key for key, kind in HOLDS.items() if not isinstance(content.get(key), kind)]
        sums = content.get("sums")
        if not wrong and not 0 <= content["step"] < 10 ** 15:
            wrong = ["step"]
        if not wrong and not all(isinstance(key, str) for key in (*content["config"], *content["inputs"])):
            wrong = ["config"]
        if not wrong and not (isinstance(sums.get("loss"), torch.Tensor) and sums["loss"].dim() == 0
                              and isinstance(sums.get("tokens"), int) and isinstance(sums.get("mix"), dict)):
            wrong = ["sums"]
        if wrong:
            raise UserError(f'{path}: lacks a usable "{wrong[0]}"; {remedy}')
        return content

    def _newest_good(self) -> tuple[Path, dict]:
        """The newest step checkpoint that can be read; those passed over are named."""
        found = self.steps()
        for path in reversed(found):
            try:
                return path, self._load(path)
            except UserError as err:
                if path == found[0]:
                    raise
                say(f"passed over: {err}")
        raise UserError(f"{self.path}: holds no step checkpoint to resume from; start without --resume")

    def save_system(self, name: str, model: OmniNetwork, config: SFTConfig, figures: dict) -> None:
        """Write the whole system: config, tokenizer, Thinker, encoders, projectors, figures."""
        content = gathered(model.content())
        if self.world.first:
            checkpoint.save(self.path / name, "omni", {
                **content, "config": dataclasses.asdict(config), "metrics": figures})
