"""The output folder of a run: its lock, step checkpoints, resume, and the trained system."""

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
from omni.train.state import TrainState

# A resume may change these only with --allow-change: the order of samples or what is trained depends on them.
FIXED_KEYS = ("seed", "batch_size", "samples_per_epoch", "data_mix", "data_dir", "freeze_encoders",
              "augment_takes", "max_length")
# The keys of a step checkpoint and their types.
CHECKPOINT_KEYS = {"step": int, "sums": dict, "model": dict, "optimizer": dict, "config": dict,
                   "inputs": dict}


class RunDir:
    """The folder `save_dir`. Only one run at a time writes to it, and only its rank 0."""

    def __init__(self, path: str | Path, world: World = ALONE):
        self.path, self.world, self._lock_file = Path(path), world, None
        self._saved_at = time.monotonic()

    def steps(self) -> list[Path]:
        """The step checkpoints, oldest first."""
        found = [p for p in self.path.glob("step_*.pt") if re.fullmatch(r"step_\d{6,}\.pt", p.name)]
        return sorted(found, key=lambda p: int(p.stem[5:]))

    def claim(self, resume: bool, overwrite: bool) -> None:
        """Lock the folder if it exists. UserError if another run holds it, or if it holds an earlier run and
        neither `resume` nor `overwrite` is set. All ranks call it together.
        """
        self.world.from_first(lambda: self._claim(resume, overwrite))

    def _claim(self, resume: bool, overwrite: bool) -> None:
        if self.path.is_dir():
            self._lock()
        holds_run = self.steps() or (self.path / "omni_final.pt").exists()
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
            old += [*self.steps(), *self.path.glob("omni_*.pt"), *self.path.glob("metrics.jsonl")]
        for path in old:
            self._delete(path)
        text = json.dumps(dataclasses.asdict(config), indent=2)
        checkpoint.save_text(self.path / "config.json", text + "\n")

    def _lock(self) -> None:
        """Lock the folder until this process ends, however it ends.

        A POSIX lock: an flock would be inherited by worker processes, which may outlive a run that is killed.
        """
        if self._lock_file is not None:
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
        self._lock_file = file

    def _delete(self, path: Path) -> None:
        try:
            path.unlink()
        except OSError as err:
            raise UserError(f"{path}: can't be deleted ({err.strerror})") from None

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

    def save_due(self, step: int, config: SFTConfig) -> bool:
        """Whether `save_every_steps` or `save_every_minutes` asks for a step checkpoint now."""
        return (step % config.save_every_steps == 0
                or time.monotonic() - self._saved_at >= config.save_every_minutes * 60)

    def save_step(self, state: TrainState, model: OmniNetwork, optimizer: torch.optim.Optimizer,
                  config: SFTConfig, fingerprints: dict[str, str]) -> None:
        """Write a step checkpoint; when it is verified, delete the oldest ones beyond keep_checkpoints.

        All ranks call it together. UserError if it can't be written.
        """
        content = {**state.content(), "model": gathered(model.state_dict()), "inputs": fingerprints,
                   "optimizer": gathered(optimizer.state_dict()), "config": dataclasses.asdict(config)}
        self._saved_at = time.monotonic()
        if not self.world.first:
            return
        try:
            checkpoint.save(self.path / f"step_{content['step']:06d}.pt", "step", content)
        except UserError as err:
            kept = f"{self.steps()[-1]} is kept: --resume" if self.steps() else "no step was saved before"
            raise UserError(f"{err}; {kept}") from None
        for old in self.steps()[:-config.keep_checkpoints]:
            self._delete(old)

    def resume(self, asked: str, model: OmniNetwork, optimizer: torch.optim.Optimizer, config: SFTConfig,
               fingerprints: dict[str, str], allowed: list[str]) -> TrainState:
        """Load a step checkpoint into `model` and `optimizer`; returns its state. All ranks call it together.

        `asked` is the path of the checkpoint; "" means the newest that can be read. `allowed` are the
        FIXED_KEYS that may differ from the checkpoint. UserError if it can't be read, or if another one
        differs.
        """
        path, content = self.world.from_first(lambda: self._read(asked, config, fingerprints, allowed))
        checkpoint.load_state(model, sharded_like(model.state_dict(), content["model"]), "model", path)
        optim.restore(optimizer, content["optimizer"], path)
        for later in self.steps() if self.world.first else ():  # of an earlier continuation
            if int(later.stem[5:]) > content["step"]:
                self._delete(later)
        return TrainState.from_content(content)

    def _read(self, asked: str, config: SFTConfig, fingerprints: dict[str, str],
              allowed: list[str]) -> tuple[Path, dict]:
        path, content = self._newest_good() if not asked else (Path(asked), self._load(asked))
        self._compare(path, content, config, fingerprints, allowed)
        return path, content

    def _compare(self, path: Path, content: dict, config: SFTConfig, fingerprints: dict[str, str],
                 allowed: list[str]) -> None:
        """Print what changed since the checkpoint. UserError if a fixed key not in `allowed` changed."""
        now = dataclasses.asdict(config)
        unknown = [key for key in allowed if key not in now]
        if unknown:
            raise UserError(f'--allow-change {unknown[0]}: no such key; choose from {", ".join(FIXED_KEYS)}, '
                            "thinker_ckpt, audio_ckpt, vision_ckpt")
        refused = []
        for was, new, fixed in ((content["config"], now, FIXED_KEYS),
                                (content["inputs"], fingerprints, tuple(fingerprints))):
            for key in sorted(was.keys() | new.keys()):
                old_value, new_value = (json.dumps(v.get(key), default=str) for v in (was, new))
                if old_value != new_value:
                    change = f'"{key}" {old_value} -> {new_value}'
                    root = key.split(".")[0]
                    if key in fixed and root not in allowed:
                        refused.append((change, root))
                    else:
                        say(f"changed since {path.name}: {change}")
        if refused:
            flags = " ".join(dict.fromkeys(f"--allow-change {root}" for _, root in refused))
            raise UserError(f"{path}: this would change the training run: "
                            f"{'; '.join(change for change, _ in refused)}. Resume with the old values, "
                            f"allow the change with {flags}, or start over with --overwrite")

    def _load(self, path: str | Path) -> dict:
        remedy = "resume from another one with --resume PATH"
        content = checkpoint.load(path, "step", remedy)
        wrong = [key for key, kind in CHECKPOINT_KEYS.items() if not isinstance(content.get(key), kind)]
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
        """The newest step checkpoint that can be read. Damaged newer ones are printed."""
        found = self.steps()
        for path in reversed(found):
            try:
                return path, self._load(path)
            except UserError as err:
                if path == found[0]:
                    raise
                say(f"ignored: {err}")
        raise UserError(f"{self.path}: holds no step checkpoint to resume from; start without --resume")

    def save_system(self, name: str, model: OmniNetwork, config: SFTConfig, metrics: dict) -> None:
        """Write the whole system (tokenizer, Thinker, encoders, projectors) with its config and metrics."""
        content = gathered(model.content())
        if self.world.first:
            checkpoint.save(self.path / name, "omni", {
                **content, "config": dataclasses.asdict(config), "metrics": metrics})
