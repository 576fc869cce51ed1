"""What a command prints, and the exit code it ends with."""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable

import torch
from tqdm import tqdm

from omni.base import distributed
from omni.base.errors import UserError

QUIET = os.environ.get("RANK", "0") != "0"  # under torchrun only rank 0 prints


def open_streams() -> None:
    """Open standard streams that are closed. Otherwise the next file opened, such as a checkpoint, would get
    the stream's number, and what is printed would go into it.
    """
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8"))


def command(main: Callable[[], object]) -> None:
    """Run `main` as a command. A UserError is printed as one line with exit code 2; Ctrl-C is exit code 130.

    However `main` ends, this process leaves the process group of `torchrun` cleanly.
    """
    with contextlib.suppress(AttributeError):  # a terminal may not show arrows; a file name may not be UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
        sys.stdin.reconfigure(errors="replace")
    torch.set_flush_denormal(True)  # some CPUs compute many times slower with numbers below 1e-38
    try:
        main()
        distributed.stop()
    except UserError as err:
        print(f"error: {err}", file=sys.stderr)
        distributed.leave(2)
    except KeyboardInterrupt:
        distributed.leave(130)
    except SystemExit as err:
        distributed.leave(err.code)
    except Exception:
        traceback.print_exc()
        distributed.leave(1)


def say(line: str) -> None:
    """Print a line, above the progress bar if there is one. If stdout is gone, the run goes on silently."""
    if QUIET:
        return
    try:
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
    except (OSError, ValueError):  # the pipe's reader has exited, the disk is full, or stdout is closed
        sys.stdout = open(os.devnull, "w", encoding="utf-8")


def progress(items=None, **options) -> tqdm:
    """A progress bar over `items`, drawn only on a terminal and by rank 0; `options` are those of tqdm."""
    return tqdm(items, mininterval=1, disable=QUIET or None, leave=False, **options)
