"""What all tests share: the toy run, one thread for equal bits, signal handlers, and skipped tests."""

import atexit
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp()  # the features of test runs
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

import pytest  # noqa: E402
import torch  # noqa: E402
import toy as toy_module  # noqa: E402

from omni.data.sample import Sample  # noqa: E402

REAL = ROOT.parent / "shared" / "real"


def pytest_addoption(parser):
    parser.addoption("--full", action="store_true", help="run all cases of tests/faults, not some")


@pytest.fixture(scope="session")
def full(request) -> bool:
    return request.config.getoption("--full")


def pytest_collection_modifyitems(items):
    for item in items:
        if item.get_closest_marker("gpu") and not torch.cuda.is_available():
            item.add_marker(pytest.mark.skip(reason="no CUDA device here"))
        if item.get_closest_marker("real_data") and not REAL.is_dir():
            item.add_marker(pytest.mark.skip(reason="shared/real is not beside the repository"))


@pytest.fixture(scope="session", autouse=True)
def one_thread():
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def no_features_kept(tmp_path_factory, monkeypatch):
    """No test finds the features of another one."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path_factory.mktemp("cache")))


@pytest.fixture(autouse=True)
def signals_restored():
    """A run in this process handles SIGINT and SIGTERM. After each test the old handlers are restored."""
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.fixture(scope="session")
def toy(tmp_path_factory) -> toy_module.Toy:
    return toy_module.make(tmp_path_factory.mktemp("toy"))


@pytest.fixture
def model(toy):
    return toy.model()


@pytest.fixture
def mixed(toy) -> list[Sample]:
    """Samples with 0, 1 and several media, in any turn."""
    pictures = [s.images[0] for s in toy.samples("image_text")]
    clips = [s.audios[0] for s in toy.samples("audio_text")]
    return [
        toy.samples("text_only")[0],
        Sample(("user", "<audio>and<image>?", "assistant", "yes"), (pictures[0],), (clips[3],)),
        Sample(("system", "look <image>", "user", "a<image><image>b", "assistant", "red",
                "user", "<audio>now <audio>", "assistant", "low and high"), tuple(pictures[1:4]),
                tuple(clips[:2])),
        toy.samples("audio_text")[5], toy.samples("image_text")[2]]


@pytest.fixture(scope="session")
def real() -> Path:
    return REAL


@pytest.fixture
def command():
    """Runs `python ARGUMENTS` in the repository's root, as a user does; returns the finished process."""
    def call(*arguments, **options) -> subprocess.CompletedProcess:
        return subprocess.run([sys.executable, *map(str, arguments)], cwd=ROOT, capture_output=True,
                              text=True,
                              timeout=120, **options)
    return call


def assert_user_error(done: subprocess.CompletedProcess, *words: str) -> None:
    """Exit code 2, one line on stderr that starts with `error:` and names `words`, no traceback."""
    assert done.returncode == 2, done.stderr[-2000:]
    lines = done.stderr.strip().splitlines()
    assert len(lines) == 1 and lines[0].startswith("error:"), done.stderr[-2000:]
    for word in words:
        assert word in lines[0]
