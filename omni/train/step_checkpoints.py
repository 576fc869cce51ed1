"""Step checkpoints: what they hold, when they are written, and how --resume chooses and loads one."""

import dataclasses
import json
import re
import time
from pathlib import Path

import torch

from omni.base import checkpoint
from omni.base.config import SFTConfig
from omni.base.config_file import ALIGNED
from omni.base.console import say
from omni.base.distributed import World, gathered, sharded_like
from omni.base.errors import UserError
from omni.data.mixture import MEDIA, PARTS, VAL_MEDIA
from omni.model.omni import OmniNetwork
from omni.train import optim
from omni.train.state import TrainState

# A resume may change these only with --allow-change: the order of samples or what is trained depends on them.
FIXED_KEYS = ("seed", "batch_size", "samples_per_epoch", "data_mix", "data_dir", "freeze_encoders",
              "freeze_thinker", "lora_rank", "lora_alpha", "lora_targets", "audio_window", "audio_stack",
              "audio_words_first", "image_merge", *ALIGNED, "augment_takes", "max_length", "check_media")
# The keys of a step checkpoint and their types.
CHECKPOINT_KEYS = {"step": int, "sums": dict, "model": dict, "optimizer": dict, "config": dict,
                   "inputs": dict}


def trained_state(model: OmniNetwork) -> dict[str, torch.Tensor]:
    """The weights that are trained, by name."""
    trained = {name for name, weight in model.named_parameters() if weight.requires_grad}
    return {name: tensor for name, tensor in model.state_dict().items() if name in trained}


class StepCheckpoints:
    """The step checkpoints in the output folder of a run. Only rank 0 writes."""

    def __init__(self, path: Path, world: World):
        self.path, self.world = path, world
        self.frozen = ""  # hash of the weights that are not trained, kept in each step checkpoint
        self._saved_at = time.monotonic()

    def paths(self) -> list[Path]:
        """The step checkpoints, oldest first."""
        found = [p for p in self.path.glob("step_*.pt") if re.fullmatch(r"step_\d{6,}\.pt", p.name)]
        return sorted(found, key=lambda p: int(p.stem[5:]))

    def due(self, step: int, config: SFTConfig) -> bool:
        """Whether `save_every_steps` or `save_every_minutes` asks for a step checkpoint now."""
        return (step % config.save_every_steps == 0
                or time.monotonic() - self._saved_at >= config.save_every_minutes * 60)

    def save(self, state: TrainState, model: OmniNetwork, optimizer: torch.optim.Optimizer,
             config: SFTConfig, fingerprints: dict[str, str]) -> None:
        """Write a step checkpoint; when it is verified, delete the oldest ones beyond keep_checkpoints.

        All ranks call it together. UserError if it can't be written.
        """
        content = {**state.content(), "model": gathered(trained_state(model)), "frozen": self.frozen,
                   "inputs": fingerprints, "optimizer": gathered(optim.content(optimizer)),
                   "config": dataclasses.asdict(config)}
        self._saved_at = time.monotonic()
        if not self.world.first:
            return
        try:
            checkpoint.save(self.path / f"step_{content['step']:06d}.pt", "step", content)
        except UserError as err:
            kept = f"{self.paths()[-1]} is kept: --resume" if self.paths() else "no step was saved before"
            raise UserError(f"{err}; {kept}") from None
        for old in self.paths()[:-config.keep_checkpoints]:
            checkpoint.delete(old)

    def resume(self, asked: str, model: OmniNetwork, optimizer: torch.optim.Optimizer, config: SFTConfig,
               fingerprints: dict[str, str], allowed: list[str]) -> TrainState:
        """Load a step checkpoint into `model` and `optimizer`; returns its state. All ranks call it together.

        `asked` is the path of the checkpoint; "" means the newest that can be read. `allowed` are the
        FIXED_KEYS that may differ from the checkpoint. UserError if it can't be read, or if another one
        differs.
        """
        path, content = self.world.from_first(lambda: self._read(asked, config, fingerprints, allowed))
        whole = model.state_dict()
        weights = whole | content["model"]
        if "frozen" not in content:  # written by an earlier version: it holds the frozen weights too
            weights = content["model"]
        elif missing := trained_state(model).keys() - content["model"].keys():
            raise UserError(f"{path}: lacks the trained weight {min(missing)}; resume from another one with "
                            "--resume PATH")
        checkpoint.load_state(model, sharded_like(whole, weights), "model", path)
        optim.restore(optimizer, content["optimizer"], path)
        for later in self.paths() if self.world.first else ():  # of an earlier continuation
            if int(later.stem[5:]) > content["step"]:
                checkpoint.delete(later)
        state = TrainState.from_content(content)
        state.rate_before = content["optimizer"]["param_groups"][0].get("lr", 0.0)
        return state

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
            raise UserError(f'--allow-change {unknown[0]}: no such key; choose from '
                            f'{", ".join(FIXED_KEYS + PARTS)}')
        defaults = {f.name: getattr(SFTConfig(), f.name) for f in dataclasses.fields(SFTConfig)}
        refused = []
        # An earlier version may lack keys: it did what is now their default, and took no note of the media.
        unnoted = {key: value for key, value in fingerprints.items() if key.endswith(MEDIA)}
        trained = tuple(key for key in fingerprints if not key.endswith(VAL_MEDIA))
        for was, new, fixed in ((defaults | content["config"], now, FIXED_KEYS),
                                (unnoted | content["inputs"], fingerprints, trained)):
            for key in sorted(was.keys() | new.keys()):
                old_value, new_value = (json.dumps(v.get(key), default=str) for v in (was, new))
                if old_value != new_value:
                    change = f'"{key}" {old_value} -> {new_value}'
                    root = key.split(".")[0]
                    if key in fixed and root not in allowed:
                        refused.append((change, root))
                    else:
                        say(f"changed since {path.name}: {change}")
        if content.get("frozen", self.frozen) != self.frozen and not {*allowed} & {*PARTS}:
            refused.append((f'frozen weights {content["frozen"]} -> {self.frozen}', "thinker_ckpt"))
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
        found = self.paths()
        for path in reversed(found):
            try:
                return path, self._load(path)
            except UserError as err:
                if path == found[0]:
                    raise
                say(f"ignored: {err}")
        raise UserError(f"{self.path}: holds no step checkpoint to resume from; start without --resume")
