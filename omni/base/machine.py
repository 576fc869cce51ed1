"""What Linux, macOS and Windows do differently, each as one function: child processes, locks, limits, memory.

So no other module asks which system it runs on.
"""

import ctypes
import faulthandler
import mmap
import multiprocessing
import os
import sys
import threading
import time
from collections.abc import Callable
from functools import cache
from multiprocessing.context import BaseContext
from pathlib import Path

try:
    import fcntl
    import resource
except ImportError:  # Windows
    fcntl = resource = None
    import msvcrt

LOCKED_BYTE = 2 ** 30  # on Windows a locked byte can't be read, so it is one behind the text
IDLE = 30.0  # seconds
OUT_OF_MEMORY = 77  # exit code of a process that went over `limit_memory`
SPAWNED = 4  # children that "auto" starts at most where each needs a PyTorch of its own, some 0.25 GB


def can_fork() -> bool:
    """Whether a child can be forked. macOS can, but its own libraries crash in such a child."""
    return sys.platform == "linux" and hasattr(os, "fork")


def children() -> BaseContext:
    """How child processes start: forked, which takes milliseconds, or anew, with all imports to do."""
    return multiprocessing.get_context("fork" if can_fork() else "spawn")


def idle_seconds() -> float:
    """How long a child waits for more work: not at all where a new one starts in milliseconds."""
    return 0.0 if can_fork() else IDLE


def before_fork(call: Callable[[], None]) -> None:
    """Let `call` be called before each fork of this process, if there are any."""
    if can_fork():
        os.register_at_fork(before=call)


def drop_inherited(keep) -> None:
    """Close the files that a forked process inherited, except its standard streams and the pipe `keep`.

    The process also leaves the terminal's process group, so that Ctrl-C reaches the parent alone.
    """
    if can_fork():
        empty = os.open(os.devnull, os.O_RDWR)
        for number in map(int, os.listdir("/proc/self/fd")):
            if number > 2 and number not in (keep.fileno(), empty):
                os.dup2(empty, number)
        os.setsid()


def cores() -> int:
    """The cores that this process may use. The ranks of a machine share them equally."""
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, usable // int(os.environ.get("LOCAL_WORLD_SIZE", "1")))


def most_children() -> int:
    """As many children as keep all cores busy; fewer where they take much memory."""
    return cores() if can_fork() else min(cores(), SPAWNED)


def end_after(seconds: float) -> None:
    """End this process in `seconds` unless this is called again before; 0 cancels.

    It ends a child whose parent was killed. The timer is no Python thread, so it works even while a decoder
    hangs and holds the interpreter's lock (GIL).
    """
    faulthandler.cancel_dump_traceback_later()
    if seconds:
        faulthandler.dump_traceback_later(seconds, exit=True, file=_nowhere())


@cache
def _nowhere():
    return open(os.devnull, "w", encoding="utf-8")


def lock(file) -> None:
    """Lock an open file until this process ends, however it ends. OSError if another process has locked it.

    Child processes don't inherit this lock, as they would an flock: they may outlive a run that is killed.
    """
    if fcntl is not None:
        fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        return
    os.lseek(file.fileno(), LOCKED_BYTE, os.SEEK_SET)
    msvcrt.locking(file.fileno(), msvcrt.LK_NBLCK, 1)


def flush_folder(folder: Path) -> None:
    """Flush the names of a folder's files to the disk. Windows can't open a folder; NTFS logs its names."""
    if hasattr(os, "O_DIRECTORY"):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def forget_cached(file) -> None:
    """Drop a flushed file from the page cache, so that the disk is read back. Only Linux can."""
    if hasattr(os, "posix_fadvise"):
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def release_mapped(mapped: mmap.mmap, start: int, stop: int) -> None:
    """Let bytes `start` to `stop` of a mapped file no longer count as memory of this process.

    The system keeps them cached, so they can be read again at once. Does nothing on Windows.
    """
    if hasattr(mmap, "MADV_DONTNEED"):
        first = start - start % mmap.PAGESIZE
        mapped.madvise(mmap.MADV_DONTNEED, first, stop - first)


def keep_freed_memory() -> None:
    """Make glibc reuse the memory of freed tensors of up to 32 MB.

    By default it may return the memory to the system and request it again for each operation, page by page,
    which can take much longer than the operation itself. Does nothing on other C libraries.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        mallopt(-3, 2 ** 25)  # M_MMAP_THRESHOLD: larger blocks are always returned
        mallopt(-1, 2 ** 31 - 1)  # M_TRIM_THRESHOLD


def limit_memory(more: int) -> None:
    """Let this process take `more` bytes than now. Linux refuses an allocation beyond that (MemoryError).

    Elsewhere a thread looks ten times a second and ends the process with the exit code OUT_OF_MEMORY.
    """
    pages = _own("statm").split()
    if pages and resource is not None:
        limit = int(pages[0]) * resource.getpagesize() + more
        resource.setrlimit(resource.RLIMIT_AS, (limit, resource.getrlimit(resource.RLIMIT_AS)[1]))
    else:
        threading.Thread(target=_end_above, args=(peak_memory() + more,), daemon=True).start()


def _end_above(limit: int) -> None:
    while peak_memory() <= limit:
        time.sleep(0.1)
    os._exit(OUT_OF_MEMORY)


def _own(name: str) -> str:
    """A file of Linux about this process; empty on other systems."""
    try:
        return Path("/proc/self", name).read_text(encoding="utf-8")
    except OSError:
        return ""


def peak_memory() -> int:
    """Peak main memory of this process so far in bytes; 0 if the system doesn't say.

    On Linux it is read from /proc, because ru_maxrss starts at the value of the parent process.
    """
    peak = _own("status").partition("VmHWM:")[2].split()
    if peak:
        return int(peak[0]) * 1024
    if resource is not None:
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    return _windows_peak(ctypes.windll.kernel32) if hasattr(ctypes, "windll") else 0


class _Counters(ctypes.Structure):
    """PROCESS_MEMORY_COUNTERS of Windows."""

    _fields_ = [("size", ctypes.c_uint32), ("faults", ctypes.c_uint32), ("peak", ctypes.c_size_t),
                *((f"other_{number}", ctypes.c_size_t) for number in range(7))]


def _windows_peak(kernel) -> int:
    """The peak of this process from `kernel`, the library kernel32; 0 if it fails."""
    counters = _Counters(ctypes.sizeof(_Counters))
    kernel.GetCurrentProcess.restype = ctypes.c_void_p
    kernel.K32GetProcessMemoryInfo.argtypes = [ctypes.c_void_p, ctypes.c_void_p, ctypes.c_uint32]
    found = kernel.K32GetProcessMemoryInfo(kernel.GetCurrentProcess(), ctypes.byref(counters), counters.size)
    return counters.peak if found else 0
