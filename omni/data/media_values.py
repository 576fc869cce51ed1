"""The media that a value of an entry names: a path, a data: URL, {"path", "bytes"}, or a list of these."""

import re

from omni.data.keys import role_of
from omni.data.media import Piece

MAX_PATH = 4096  # characters; a longer text without a dot is base64
_BASE64 = re.compile(r"[A-Za-z0-9+/]+={0,2}")
_OWN_TAGS = re.compile(r"<[^<>]*>")  # keys of MiniCPM's {"<image_00>": PATH}


def no_base64(payload: str, name: str) -> Piece:
    """The `find_base64` of formats that can't hold a medium inside their text."""
    raise ValueError("a data: URL is supported in JSON files only")


def media_paths(value, kind: str, find_base64) -> list[str]:
    """The paths of a key's value; `kind` is image or audio. ValueError if it holds something else."""
    if isinstance(value, dict) and value and all(_OWN_TAGS.fullmatch(key) for key in value):
        value = list(value.values())
    paths = [media_path(item, kind, find_base64) for item in (value if isinstance(value, list) else [value])]
    return [path for path in paths if path is not None]


def media_path(value, kind: str, find_base64) -> str | None:
    """The path of one medium; None if the value is null."""
    if value is None or isinstance(value, Piece):
        return value
    if isinstance(value, dict):
        value = _inner(value, kind, find_base64)
        if value is None or isinstance(value, Piece):
            return value
    if not isinstance(value, str) or not value:
        raise ValueError(f"<{kind}> needs a path, not {type(value).__name__}")
    if value.startswith("data:"):
        mime_type, _, payload = value.partition(";base64,")
        return find_base64(payload, f"{kind}.{mime_type.rpartition('/')[2][:8]}")
    if len(value) > MAX_PATH and _BASE64.fullmatch(value):
        return find_base64(value, kind)
    return value


def _inner(value: dict, kind: str, find_base64):
    """The path in {"path", "bytes"} (Hugging Face), {"url"} or {"data", "format"} (OpenAI), or its piece."""
    for key in ("bytes", "data", "base64", "b64"):
        if isinstance(value.get(key), str) and value[key]:
            form = str(value.get("format") or value.get("media_type") or "").rpartition("/")[2][:8]
            payload = value[key].rpartition(";base64,")[2]
            return find_base64(payload, f"{kind}.{form}" if form else kind)
    keys = sorted(value, key=lambda key: ("url" in key.lower(), str(key)))
    found = [value[key] for key in keys if value[key] and (role_of(key) in (kind, "medium") or key in
                                                           ("url", "uri", "value", "src", "name"))]
    if not found:
        if "array" in value:
            raise ValueError(f"<{kind}> as numbers: save it as a file")
        if any(value.values()):
            raise ValueError(f"<{kind}> needs a path; it has {', '.join(map(str, list(value)[:5]))}")
        return None
    return found[0]
