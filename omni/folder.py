"""The output folder of a run: claiming it, step checkpoints and resume, the finished system."""

import dataclasses
import json
import re
from pathlib import Path

from omni import checkpoint
from omni.config import SFTConfig, UserError
from omni.model import OmniModel


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
        if overwrite and not resume:
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

    def resume(self, asked: str, model: OmniModel, optimizer) -> dict:
        """Put model and optimizer back to the checkpoint asked for ("" is the newest); returns the run's
        state."""
        found = [Path(asked)] if asked else self.steps()
        if not found:
            raise UserError(f"{self.path}: holds no step checkpoint to resume from; start without --resume")
        content = checkpoint.load(found[-1], "step", "resume from another one with --resume PATH")
        checkpoint.load_state(model, content["model"], "model", found[-1])
        optimizer.load_state_dict(content["optimizer"])
        return {key: content[key] for key in ("step", "sums", "best")}

    def save_system(self, name: str, model: OmniModel, config: SFTConfig, figures: dict) -> None:
        """Write the whole system: config, tokenizer, Thinker, encoders, projectors, figures."""
        checkpoint.save(self.path / name, "omni", {
            **model.content(), "config": dataclasses.asdict(config), "metrics": figures})
