"""Small files in published formats, made for the tests."""

import io
import json
import tarfile

import numpy as np
import soundfile
from PIL import Image


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
    """A JSON list, or JSON lines where the name says so."""
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
