"""Where weights are: at a path, or hf:OWNER/NAME[@REVISION] in a repository of the Hugging Face Hub."""

import re
from functools import cache
from pathlib import Path

from omni.base.console import say
from omni.base.errors import UserError

PREFIX = "hf:"
SAFE_FILES = ["*.json", "*.safetensors", "*.jinja"]  # nothing that is unpickled or run
_NAME = re.compile(r"hf:(?P<repository>[\w.-]+/[\w.-]+)(@(?P<revision>[\w./-]+))?")


@cache
def locate(place: str) -> Path:
    """The path of `place`. A repository is downloaded into the Hub's own cache, unless it is there already.

    UserError if `huggingface_hub` is not installed, or the repository can't be had.
    """
    if not place.startswith(PREFIX):
        return Path(place).expanduser()
    name = _NAME.fullmatch(place)
    if name is None:
        raise UserError(f"{place}: write it as hf:OWNER/NAME or hf:OWNER/NAME@REVISION")
    try:
        from huggingface_hub import snapshot_download  # an option: runs from files don't need it
    except ImportError:
        raise UserError(f"{place}: needs a package that is not installed: pip install huggingface_hub") \
            from None
    try:
        folder = Path(snapshot_download(name["repository"], revision=name["revision"],
                                        allow_patterns=SAFE_FILES))
    except Exception as err:  # a dozen types: no such repository, no network, no permission, a full disk
        reason = " ".join(str(err).split())[:200]
        raise UserError(f"{place}: can't be downloaded ({reason}); download it by hand and give the "
                        "folder") from None
    say(f"{place}: commit {folder.name}, in {folder}")
    return folder


def commit(place: str) -> str | None:
    """The commit of a repository of the Hub; None if `place` is a path."""
    return locate(place).name if place.startswith(PREFIX) else None
