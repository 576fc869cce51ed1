"""Save and load, atomic and safe: a file is whole or not there, says what it holds, and never runs code."""

import dataclasses
import hashlib
import os
from pathlib import Path

import torch
from torch import nn

from omni.config import UserError, build

FORMAT = "micro-omni-1"


def save(path: str | Path, kind: str, content: dict) -> None:
    """Write `content` to `path` as a checkpoint of `kind`: flush, rename, flush the folder."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as f:
            torch.save({"format": FORMAT, "kind": kind, **content}, f)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except (OSError, RuntimeError) as err:
        if temporary.is_file():
            temporary.unlink()
        raise UserError(f"{path}: can't be written ({str(err).splitlines()[0]}); what was there before is "
                        "intact, make room or choose another save_dir") from None


def save_text(path: str | Path, text: str) -> None:
    """Write a text file in the same all-or-nothing way."""
    path = Path(path)
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "w", encoding="utf-8") as f:
            f.write(text)
            f.flush()
            os.fsync(f.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as err:
        raise UserError(f"{path}: can't be written ({err.strerror}); choose another save_dir") from None


def _sync_folder(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def load(path: str | Path, kind: str, remedy: str) -> dict:
    """Read a checkpoint and check that it is of `kind`. UserError with `remedy` if it is not."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such checkpoint; {remedy}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as err:  # torch raises a dozen types on broken files, and each means the same to a user
        reason = (str(err).splitlines() or [type(err).__name__])[0][:100]
        raise UserError(f"{path}: not readable as a checkpoint ({reason}); {remedy}") from None
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise UserError(f"{path}: not a checkpoint of this project ({FORMAT}); {remedy}")
    if content.get("kind") != kind:
        raise UserError(f'{path}: holds a "{content.get("kind")}", and a "{kind}" is wanted; {remedy}')
    return content


def load_state(module: nn.Module, state: dict, name: str, where: str | Path) -> str:
    """Load a state dict strictly. Returns the line that says so; on any mismatch it is a UserError."""
    own = module.state_dict()
    missing = [k for k in own if k not in state]
    unexpected = [k for k in state if k not in own]
    misshaped = [k for k in own if k in state and getattr(state[k], "shape", None) != own[k].shape]
    loaded = len(own) - len(missing) - len(misshaped)
    parameters = sum(p.numel() for p in module.parameters())
    line = (f"{name}: {loaded} tensors loaded, {len(missing)} missing, {len(unexpected)} unexpected, "
            f"{len(misshaped)} mis-shaped, {parameters:,} parameters")
    if missing or unexpected or misshaped:
        first = (missing + unexpected + misshaped)[0]
        shapes = ""
        if first in misshaped:
            given = tuple(getattr(state[first], "shape", ()))
            shapes = f", {given} in the file and {tuple(own[first].shape)} here"
        raise UserError(f"{where}: {line} (first: {first}{shapes}); it does not match the architecture it "
                        "names")
    module.load_state_dict(state)
    return line


def build_part(module_type, arch_type, content: dict, name: str, where: str | Path) -> tuple[nn.Module, str]:
    """A part of the architecture that its checkpoint names, with its weights, and the line that says so."""
    if "arch" not in content or not isinstance(content.get("state"), dict):
        raise UserError(f"{where}: lacks the architecture or the weights of {name}")
    arch = build(arch_type, content["arch"], f"{where} (arch)")
    try:
        module = module_type(arch)
    except (RuntimeError, ValueError, ZeroDivisionError, AssertionError) as err:
        reason = str(err).splitlines()[0][:100]
        raise UserError(f"{where}: its architecture can't be built ({reason})") from None
    return module, load_state(module, content["state"], name, where)


def part(module: nn.Module) -> dict:
    """What `build_part` reads."""
    return {"arch": dataclasses.asdict(module.arch), "state": module.state_dict()}


def fingerprint(*modules: nn.Module) -> str:
    """A hash over the names and bits of all weights, to show that frozen parts are as they were."""
    digest = hashlib.sha256()
    for module in modules:
        for name, tensor in module.state_dict().items():
            digest.update(name.encode())
            digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]
