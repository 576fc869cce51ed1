"""Small files in published formats, made for the tests, and the errors that decoders may raise."""

import io
import json
import struct
import tarfile
import zlib

import numpy as np
import pytest
import soundfile
from PIL import Image

from omni.base.errors import MediaError


def picture(color="red", form="PNG") -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (24, 16), color).save(buffer, form)
    return buffer.getvalue()


def clip(seconds=0.2, form="WAV") -> bytes:
    buffer = io.BytesIO()
    soundfile.write(buffer, 0.1 * np.sin(np.arange(int(16_000 * seconds)) / 9), 16_000, format=form)
    return buffer.getvalue()


def put(folder, files: dict[str, bytes | str]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content if isinstance(content, bytes) else content.encode())


def write(folder, name: str, entries) -> str:
    """Write a JSON list, or JSON lines if the name ends in l; returns the path."""
    lines = "".join(json.dumps(e) + "\n" for e in entries)
    put(folder, {name: lines if name.endswith("l") else json.dumps(entries, indent=1)})
    return str(folder / name)


def user(content, **more):
    return {"role": "user", "content": content, **more}


def assistant(content, **more):
    return {"role": "assistant", "content": content, **more}


def tar(path, files: dict[str, bytes | str]) -> None:
    with tarfile.open(path, "w") as archive:
        for name, content in files.items():
            content = content if isinstance(content, bytes) else content.encode()
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


# What decoders may raise on damaged files; some name the file, which the tests call PATH.
DECODER_ERRORS = [
    ValueError("not seekable"), ValueError(), RuntimeError("in\ntwo lines"), OSError("broken data stream"),
    OSError(5, "Input/output error", "PATH"), PermissionError(13, "Permission denied", "PATH"), MemoryError(),
    RecursionError("too deep"), struct.error("unpack"), zlib.error("Error -3"), KeyError(7), EOFError(),
    SyntaxError("bad"), IndexError("list"), TypeError("None"), AttributeError("no tile"), AssertionError(),
    ZeroDivisionError("zero"), OverflowError("large"), UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid"),
    NotImplementedError("tile"), BufferError("buffer"), StopIteration(), UserWarning("odd"),
    Exception("at PATH")]


def assert_refused(load, reason: str = "") -> None:
    """`load()` raises MediaError with a short reason in one line that doesn't hold the file's name, PATH."""
    with pytest.raises(MediaError) as caught:
        load()
    message = str(caught.value)
    assert reason in message and 0 < len(message) < 130
    assert "\n" not in message and "PATH" not in message
