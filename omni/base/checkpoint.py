"""Checkpoints. A file is written completely or not at all, carries a checksum, and loading runs no code."""

import contextlib
import dataclasses
import hashlib
import os
from pathlib import Path

import torch
from torch import nn
from torch.distributed.tensor import DTensor

from omni.base import machine
from omni.base.config import build
from omni.base.errors import UserError

FORMAT = "micro-omni-2"  # a torch.save archive, then a checksum of it
CHECKSUM_MARK = b"sha256: "
TAIL_BYTES = len(CHECKSUM_MARK) + hashlib.sha256().digest_size  # zip readers ignore it


class _ChecksummedFile:
    """A file open for writing, with the checksum of what was written to it."""

    def __init__(self, file):
        self.file, self.sum = file, hashlib.sha256()

    def write(self, data) -> int:
        self.sum.update(data)
        return self.file.write(data)

    def flush(self) -> None:
        self.file.flush()


def save(path: str | Path, kind: str, content: dict) -> None:
    """Write `content` to `path` as a checkpoint of `kind` ("step", "omni", ...), completely or not at all.

    It is read back and compared before it replaces an older file. UserError if it can't be written.
    """
    def fill(file: _ChecksummedFile) -> None:
        torch.save({"format": FORMAT, "kind": kind, **content}, file)
        file.write(CHECKSUM_MARK + file.sum.digest())
    _write(Path(path), fill)


def save_text(path: str | Path, text: str) -> None:
    """Write a text completely or not at all. Bytes of file names that are not UTF-8 become \\udcXX."""
    _write(Path(path), lambda file: file.write(text.encode("utf-8", "backslashreplace")))


def _write(path: Path, fill) -> None:
    """Write a temporary file, flush it to the disk, read it back, rename it, and flush the folder."""
    temporary = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with open(temporary, "wb") as f:
            summed = _ChecksummedFile(f)
            fill(summed)
            f.flush()
            os.fsync(f.fileno())
            machine.forget_cached(f)
        if _digest(temporary).digest() != summed.sum.digest():
            raise OSError("the file read back is not what was written")
        os.replace(temporary, path)
        machine.flush_folder(path.parent)
    except (OSError, RuntimeError) as err:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(f"{path}: can't be written ({_reason(err)}); an earlier file of this name is "
                        "intact; make room or choose another folder") from None


def delete(path: Path) -> None:
    """Delete a file. UserError if that fails."""
    try:
        path.unlink()
    except OSError as err:
        raise UserError(f"{path}: can't be deleted ({err.strerror})") from None


def _digest(path: str | Path):
    """The SHA-256 of a file."""
    digest = hashlib.sha256()
    with open(path, "rb") as f:
        while chunk := f.read(1 << 20):
            digest.update(chunk)
    return digest


def _reason(err: Exception) -> str:
    return (str(err).splitlines() or [type(err).__name__])[0][:100]


def _checksum_matches(path: str | Path) -> bool | None:
    """Whether the checksum at the end of a file matches its content; None if it has no checksum."""
    found = hashlib.sha256()
    with open(path, "rb") as f:
        left = os.fstat(f.fileno()).st_size - TAIL_BYTES
        while left > 0:
            chunk = f.read(min(left, 1 << 20))
            found.update(chunk)
            left -= len(chunk) or left
        tail = f.read()
    return tail == CHECKSUM_MARK + found.digest() if tail.startswith(CHECKSUM_MARK) else None


def load(path: str | Path, kinds: str | tuple[str, ...], remedy: str) -> dict:
    """Read a checkpoint. UserError, ending in `remedy`, if it is missing, damaged or not one of `kinds`."""
    kinds = (kinds,) if isinstance(kinds, str) else kinds
    if not Path(path).is_file():
        raise UserError(f"{path}: no such checkpoint; {remedy}")
    try:
        intact = _checksum_matches(path)
        content = torch.load(path, map_location="cpu", weights_only=True) if intact is not False else None
    except Exception as err:  # on broken files torch raises a dozen types of exception
        raise UserError(f"{path}: not readable as a checkpoint ({_reason(err)}); {remedy}") from None
    written = content.get("format") if isinstance(content, dict) else None
    if intact is False or (written == FORMAT and not intact):
        raise UserError(f"{path}: damaged: its checksum does not match; {remedy}")
    if written != FORMAT:
        raise UserError(f"{path}: not a checkpoint of this project ({FORMAT}); {remedy}")
    if content.get("kind") not in kinds:
        wanted = " or ".join(f'a "{kind}"' for kind in kinds)
        raise UserError(f'{path}: holds a "{content.get("kind")}", not {wanted}; {remedy}')
    return content


def file_fingerprint(path: str | Path) -> str:
    """Size and hash of a file, to notice a change. For a folder: number of files, and the hash of their names
    and sizes.
    """
    if os.path.isdir(path):
        files = sorted(p for p in Path(path).rglob("*") if p.is_file())
        listing = "".join(f"{p.relative_to(path)} {p.stat().st_size}\n" for p in files)
        digest = hashlib.sha256(listing.encode("utf-8", "backslashreplace")).hexdigest()
        return f"{len(files)} files, sha256 {digest[:16]}"
    return f"{os.path.getsize(path)} bytes, sha256 {_digest(path).hexdigest()[:16]}"


def load_state(module: nn.Module, state: dict, name: str, where: str | Path, assign: bool = False) -> str:
    """Load a state dict strictly; returns a line that counts its tensors. UserError on any mismatch.

    With `assign` the module takes the tensors themselves, and needs no memory of its own.
    """
    line = _compare(module, state, name, where)
    try:
        module.load_state_dict(state, assign=assign)
    except RuntimeError as err:  # of the right shape, but of a type that can't be copied
        raise UserError(f"{where}: {name}: {_reason(err)}") from None
    return line


def _compare(module: nn.Module, state: dict, name: str, where: str | Path) -> str:
    """A line that counts the tensors that fit; UserError if one is missing, unexpected or mis-shaped."""
    if not isinstance(state, dict):
        raise UserError(f"{where}: lacks the weights of {name}")
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
        raise UserError(f"{where}: {line} (first: {first}{shapes}); the weights do not "
                        "match the architecture")
    return line


def build_part(module_type, arch_type, content: dict, name: str, where: str | Path,
               assign: bool = False) -> tuple[nn.Module, str]:
    """A part (encoder or Thinker) with the architecture and weights in `content`, and the line about them.

    With `assign` the part takes the tensors themselves, which saves its initialisation. UserError if either
    is missing, malformed, or if the two don't fit each other.
    """
    if not isinstance(content, dict) or "arch" not in content or not isinstance(content.get("state"), dict):
        raise UserError(f"{where}: lacks the architecture or the weights of {name}")
    arch = build(arch_type, content["arch"], f"{where} (arch)")
    try:
        with torch.device("meta"):  # compare before memory is allocated: the architecture may be huge
            module = module_type(arch)
            _compare(module, content["state"], name, where)
        if not assign:
            module = module_type(arch)
    except (RuntimeError, ValueError, ZeroDivisionError, AssertionError) as err:
        reason = str(err).splitlines()[0][:100]
        raise UserError(f"{where}: its architecture can't be built ({reason})") from None
    state = {key: tensor.float() for key, tensor in content["state"].items()} if assign else content["state"]
    return module, load_state(module, state, name, where, assign)


def part(module: nn.Module) -> dict:
    """Architecture and weights of a part, as `build_part` reads them."""
    return {"arch_type": type(module.arch).__name__, "arch": dataclasses.asdict(module.arch),
            "state": module.state_dict()}


def fingerprint(weights: dict[str, torch.Tensor], dtype: torch.dtype | None = None) -> str:
    """A hash of the names and bits of weights, to show that frozen ones did not change.

    With `dtype` it is that of the weights in this type, which is the same wherever they are kept in it.
    """
    digest = hashlib.sha256()
    for name, tensor in weights.items():
        digest.update(name.encode())
        whole = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        bits = whole.detach().to("cpu", dtype or whole.dtype).contiguous().view(torch.uint8)
        digest.update(bits.numpy().tobytes())
    return digest.hexdigest()[:16]
