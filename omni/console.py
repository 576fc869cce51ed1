"""What a run says: a line on the screen, and a row in metrics.jsonl."""

import contextlib
import os
import sys
import traceback
from collections.abc import Callable

from tqdm import tqdm

from omni import distributed
from omni.errors import UserError

QUIET = os.environ.get("RANK", "0") != "0"  # of the processes that torchrun starts, the first one speaks


def open_streams() -> None:
    """Stand in for closed streams, whose numbers would go to the next files opened: a checkpoint, say."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest number that is free: this one
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, "r" if number == 0 else "w", encoding="utf-8"))


def command(main: Callable[[], object]) -> None:
    """Run a command: what its user has to mend is one line and exit 2, Ctrl-C is exit 130."""
    with contextlib.suppress(AttributeError):  # a terminal may know no arrows, a file's name be no UTF-8
        sys.stdout.reconfigure(errors="backslashreplace")
    try:
        main()
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
    """A line on the screen, above the progress bar if there is one. A screen that is gone ends no run."""
    if QUIET:
        return
    try:
        tqdm.write(line, file=sys.stdout)
        sys.stdout.flush()
    except (OSError, ValueError):  # a pipe nobody reads, a full disk, or closed
        sys.stdout = open(os.devnull, "w", encoding="utf-8")
