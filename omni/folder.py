"""The output folder of a run: claiming it, step checkpoints and resume, the finished system."""

import dataclasses
import json
import re
from pathlib import Path

from omni import checkpoint
from omni.config import SFTConfig, UserError
from omni.log import say
from omni.model import OmniModel

# What a resumed run can't change: the order of its draws and what is trained depend on it.
BENDS = ("seed", "batch_size", "samples_per_epoch", "data_mix", "data_dir", "freeze_encoders",
         "augment_takes")


class RunFolder:
    """`save_dir` and what is written there."""

    def __init__(self, path: str | Path):
        self.path = Path(path)

    def steps(self) -> list[Path]:
        """The step checkpoints, oldest first."""
        found = [p for p in self.path.glob("step_*.pt") if re.fullmatch(r"step_\d{6,}\.pt", p.name)]
        return sorted(found, key=lambda p: int(p.stem[5:]))

    def claim(self, resume: bool, overwrite: bool) -> None:
        """Refuse to write over an earlier run unless told so."""
        holds_run = self.steps() or (self.path / "omni_final.pt").exists()
        if holds_run and not resume and not overwrite:
            raise UserError(f"{self.path} already holds a run; go on with it: --resume, or start over: "
                            "--overwrite")

    def clear(self) -> None:
        """Delete an earlier run: called when the new one is ready to start."""
        for old in [*self.steps(), *self.path.glob("omni_*.pt"), *self.path.glob("metrics.jsonl")]:
            old.unlink()

    def write_config(self, config: SFTConfig) -> None:
        text = json.dumps(dataclasses.asdict(config), indent=2)
        checkpoint.save_text(self.path / "config.json", text + "\n")

    def save_step(self, state: dict, model: OmniModel, optimizer, config: SFTConfig) -> None:
        """Write a step checkpoint, then delete the oldest beyond keep_checkpoints."""
        checkpoint.save(self.path / f"step_{state['step']:06d}.pt", "step", {
            **state, "model": model.state_dict(), "optimizer": optimizer.state_dict(),
            "config": dataclasses.asdict(config)})
        for old in self.steps()[:-config.keep_checkpoints]:
            old.unlink()

    def resume(self, asked: str, model: OmniModel, optimizer, config: SFTConfig) -> dict:
        """Put model and optimizer back to the checkpoint asked for; returns the run's state.

        "" asks for the newest good one. Learning rates and weight decay are the config's, not the file's.
        """
        path, content = self._newest_good() if not asked else (Path(asked), self._load(asked))
        for key in BENDS:
            was, now = content["config"][key], getattr(config, key)
            if was != now:
                raise UserError(f'{path}: was written with "{key}" {json.dumps(was)}, and now it is '
                                f"{json.dumps(now)}: that would bend the run; resume with what it was, "
                                "or start over: --overwrite")
        checkpoint.load_state(model, content["model"], "model", path)
        own = [(group["peak_lr"], group["weight_decay"]) for group in optimizer.param_groups]
        optimizer.load_state_dict(content["optimizer"])
        for group, (rate, decay) in zip(optimizer.param_groups, own, strict=True):
            group["peak_lr"], group["weight_decay"] = rate, decay
        for later in self.steps():  # of the run as it went on from here before: now it goes on anew
            if int(later.stem[5:]) > content["step"]:
                later.unlink()
        return {key: content[key] for key in ("step", "sums", "best")}

    def _load(self, path: str | Path) -> dict:
        return checkpoint.load(path, "step", "resume from another one with --resume PATH")

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

    def save_system(self, name: str, model: OmniModel, config: SFTConfig, figures: dict) -> None:
        """Write the whole system: config, tokenizer, Thinker, encoders, projectors, figures."""
        checkpoint.save(self.path / name, "omni", {
            **model.content(), "config": dataclasses.asdict(config), "metrics": figures})
