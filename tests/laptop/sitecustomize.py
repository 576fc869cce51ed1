"""With this folder on PYTHONPATH, Python has nothing that Windows lacks, and a lock as Windows has it.

Spawned children get it too. `fcntl` and `resource` are hidden from omni alone, since PyTorch needs them here.
"""

import builtins
import fcntl
import os
import signal
import sys
import types

plain_import = builtins.__import__
msvcrt = types.SimpleNamespace(LK_NBLCK=2, locking=lambda handle, mode, count: fcntl.lockf(
    handle, fcntl.LOCK_EX | fcntl.LOCK_NB, count, 0, os.SEEK_CUR))  # from the file's position on, as there


def import_(name, globals=None, *others, **options):
    if (globals or {}).get("__name__", "").partition(".")[0] in ("omni", "__main__", "__mp_main__"):
        if name in ("fcntl", "resource"):
            raise ImportError(f"no module named {name}")
        if name == "msvcrt":
            return msvcrt
    return plain_import(name, globals, *others, **options)


def refuse(event: str, arguments: tuple) -> None:
    if event == "open" and isinstance(arguments[0], str | bytes):
        path = os.fsdecode(arguments[0])
        if path.startswith("/proc/"):
            raise FileNotFoundError(path)
        if os.path.isdir(path) and sys._getframe(1).f_globals["__name__"] != "shutil":  # it differs there
            raise PermissionError(path)


builtins.__import__ = import_
sys.addaudithook(refuse)
for module, names in ((os, ("fork", "posix_fadvise", "sched_getaffinity", "O_DIRECTORY")),
                      (signal, ("SIGALRM", "alarm", "setitimer"))):
    for name in names:
        delattr(module, name)
