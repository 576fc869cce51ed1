"""Several ranks: the same loss curve as one, no hang, resume with another number, one writer."""

import json
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from omni.base.distributed import ALONE, World
from omni.data.decoding import Decoder
from omni.train.features import FeatureStore

ROOT = Path(__file__).resolve().parent.parent
WATCHDOG = 240  # seconds after which a run counts as hung
CURVE = {"samples_per_epoch": 100}  # 50 steps in two epochs


def torchrun(ranks: int, toy, out: Path, *arguments, more=(), script=ROOT / "sft_omni.py",
             **settings) -> subprocess.Popen:
    """Start the toy's run on `ranks` ranks. `more` are arguments of torchrun itself."""
    (toy.root / "config.json").write_text(json.dumps(toy.config))
    sets = [f"--set={key}={json.dumps(value)}" for key, value in (settings | {"save_dir": str(out)}).items()]
    where = more or ["--standalone"]
    command = [sys.executable, "-m", "torch.distributed.run", *where, f"--nproc-per-node={ranks}",
               str(script), "--config", str(toy.root / "config.json"), *arguments, *sets]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            start_new_session=True)


def finished(run: subprocess.Popen, seconds: float = WATCHDOG) -> str:
    """The output of the run. One that hangs is killed and fails the test."""
    try:
        said, _ = run.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        raise AssertionError(f"still running after {seconds} s") from None
    return said


def trained(ranks: int, toy, out: Path, *arguments, **settings) -> list[dict]:
    """The metrics of a run, which must succeed."""
    run = torchrun(ranks, toy, out, *arguments, **settings)
    said = finished(run)
    assert run.returncode == 0, said
    return [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]


def losses(rows: list[dict]) -> list[float]:
    return [row["loss"] for row in rows if row["event"] == "step"]


@pytest.fixture(scope="module")
def alone(toy, tmp_path_factory) -> tuple[list[dict], Path]:
    """The run of one process: its metrics and its folder."""
    out = tmp_path_factory.mktemp("alone") / "out"
    return trained(1, toy, out, **CURVE), out


@pytest.mark.parametrize("ranks, settings", [
    (2, {}), (3, {"gradient_accumulation_steps": 2}), (4, {}), (2, {"parallel": "fsdp"}),
    (2, {"parallel": "fsdp", "activation_checkpointing": True, "gradient_accumulation_steps": 2})],
    ids=["2", "3, accumulated", "4", "2, sharded", "2, sharded, checkpointed, accumulated"])
def test_the_loss_curve_equals_that_of_one_process(alone, toy, tmp_path, ranks, settings):
    rows = trained(ranks, toy, tmp_path / "out", **CURVE, **settings)
    assert len(losses(rows)) == 50 and losses(rows) == pytest.approx(losses(alone[0]), rel=1e-5)
    ours, theirs = ([r for r in found if r["event"] == "epoch"] for found in (rows, alone[0]))
    assert [r["mix"] for r in ours] == [r["mix"] for r in theirs]
    assert [r["counts"] for r in ours] == [r["counts"] for r in theirs], "each held-out sample once"
    assert [r["val_loss"] for r in ours] == pytest.approx([r["val_loss"] for r in theirs], rel=1e-4)
    one, many = (torch.load(path / "omni_final.pt", weights_only=True)
                 for path in (alone[1], tmp_path / "out"))
    assert many.keys() == one.keys()
    for name, tensor in one["thinker"]["state"].items():
        torch.testing.assert_close(many["thinker"]["state"][name], tensor, rtol=1e-3, atol=1e-4)


def test_another_number_of_ranks_can_resume_a_run(alone, toy, tmp_path):
    settled = CURVE | {"save_every_steps": 15, "keep_checkpoints": 9}
    trained(3, toy, tmp_path / "out", **settled)
    for ranks, settings in ((1, {}), (2, {"parallel": "fsdp"})):
        again = tmp_path / str(ranks)
        shutil.copytree(tmp_path / "out", again)
        for later in ("step_000045.pt", "step_000050.pt"):
            (again / later).unlink()
        rows = trained(ranks, toy, again, "--resume", **settled, **settings)
        assert losses(rows) == pytest.approx(losses(alone[0]), rel=1e-5)
        assert [row["step"] for row in rows if row["event"] == "step"] == list(range(1, 51))


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
def test_ranks_without_a_modality_never_hang(toy, tmp_path, request, parallel):
    """One sample per rank and step, fewer at an epoch's end: ranks lack images, clips, or any sample."""
    steps = 500 if request.config.getoption("--full") else 40
    rows = trained(4, toy, tmp_path / "out", parallel=parallel, num_epochs=2, eval_samples=1,
                   samples_per_epoch=2 * steps - 1, save_every_steps=10_000, log_every_steps=1)
    assert sum(row["event"] == "step" for row in rows) == 2 * (-(-(2 * steps - 1) // 4))


def test_a_rank_that_dies_ends_all(toy, tmp_path):
    run = torchrun(3, toy, tmp_path / "out", num_epochs=100_000)
    deadline = time.monotonic() + WATCHDOG
    metrics = tmp_path / "out" / "metrics.jsonl"
    while not (metrics.exists() and '"step"' in metrics.read_text()):
        assert time.monotonic() < deadline and run.poll() is None
        time.sleep(0.2)
    found = subprocess.run(["pgrep", "-P", str(run.pid)], capture_output=True, text=True).stdout.split()
    os.kill(int(found[-1]), signal.SIGKILL)
    finished(run, 30)
    assert run.returncode != 0


def test_an_error_is_reported_and_ends_all_ranks(toy, tmp_path):
    run = torchrun(2, toy, tmp_path / "out", thinker_ckpt="nowhere.pt")
    said = finished(run, 60)
    assert run.returncode != 0 and "error: nowhere.pt: no such checkpoint" in said


@pytest.mark.parametrize("changes, word", [({}, "already holds a run"), ({"data_dir": "nowhere"}, "nowhere")])
def test_an_error_that_only_rank_0_finds_ends_all_ranks_in_order(toy, tmp_path, changes, word):
    """Rank 0 alone looks into the output folder, and the first rank of a machine alone reads manifests."""
    if not changes:
        (tmp_path / "out").mkdir()
        (tmp_path / "out" / "omni_final.pt").write_text("")
    run = torchrun(2, toy, tmp_path / "out", **changes)
    said = finished(run, 60)
    assert run.returncode != 0 and word in said
    ours = [line for line in said.splitlines() if f'File "{ROOT}' in line and "site-packages" not in line]
    assert ours == []  # no traceback; torchrun's own is from a virtual environment, which may be in ROOT


LEAVING = """
import os, sys
sys.path.insert(0, {root!r})
import sft_omni
from omni.base import distributed
leave = distributed.leave
distributed.leave = lambda code: (os.write(1, b"rank %d left: %d\\n" % (distributed.dist.get_rank(), code)),
                                  leave(code))
sft_omni.command(sft_omni.main)
"""


@pytest.mark.parametrize("arguments", [["--dry-run"], []], ids=["dry run", "run"])
def test_all_ranks_leave_the_process_group_together(toy, tmp_path, arguments):
    """Else the interpreter destroys the group at exit: a warning with NCCL, perhaps a deadlock with Gloo."""
    script = tmp_path / "leaving.py"
    script.write_text(LEAVING.format(root=str(ROOT)))
    run = torchrun(2, toy, tmp_path / "out", *arguments, script=script, num_epochs=1)
    said = finished(run)
    assert run.returncode == 0 and "destroy_process_group" not in said, said
    assert "rank 0 left: 0" in said and "rank 1 left: 0" in said, said
    assert (tmp_path / "out").exists() != bool(arguments)


AUDITED = """
import os, sys, types
sys.path.insert(0, {root!r})
log = os.open({log!r} + os.environ["RANK"], os.O_WRONLY | os.O_CREAT | os.O_APPEND)
WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND

def audit(event, arguments):
    changes = event in ("os.rename", "os.remove", "os.mkdir", "os.truncate", "os.link", "os.symlink")
    if changes or (event == "open" and isinstance(arguments[2], int) and arguments[2] & WRITES):
        path = os.fsdecode(arguments[0]) if not isinstance(arguments[0], int) else ""
        if path.startswith({out!r}):
            os.write(log, (event + " " + path + "\\n").encode())

class SummaryWriter:  # TensorBoard's, which may not be installed
    def __init__(self, folder, purge_step):
        os.makedirs(folder, exist_ok=True)
        open(folder + "/events", "a").close()
    def add_scalar(self, *arguments): pass
    def flush(self): pass

sys.modules["torch.utils.tensorboard"] = types.SimpleNamespace(SummaryWriter=SummaryWriter)
sys.addaudithook(audit)
import sft_omni
sft_omni.command(sft_omni.main)
"""
WRITTEN = ("run.lock", "skipped.jsonl", "before.json", "metrics.jsonl", "tensorboard", "config.json",
           "report.html", "step_000005.pt", "omni_best.pt", "omni_final.pt")


def test_only_rank_0_writes(toy, tmp_path):
    """All files of a run with skipped samples, and of one that is resumed."""
    data, out = tmp_path / "data", tmp_path / "out"
    shutil.copytree(toy.root / "data", data)
    (data / "image_text" / "train_1.png").write_bytes(b"<html>404</html>")
    with open(data / "text_only" / "train.jsonl", "a") as manifest:
        manifest.write("not JSON\n")
    script = tmp_path / "audited.py"
    script.write_text(AUDITED.format(root=str(ROOT), log=str(tmp_path / "writes_"), out=str(out)))
    settings = {"data_dir": str(data), "max_skipped": 0.5, "script": script, "save_every_steps": 1,
                "keep_checkpoints": 2}
    trained(2, toy, out, num_epochs=1, **settings)
    (out / "step_000099.pt.tmp").write_text("left by a run that was killed")
    trained(2, toy, out, "--resume", num_epochs=2, **settings)
    first, second = ((tmp_path / f"writes_{rank}").read_text() for rank in (0, 1))
    assert second == ""
    for name in WRITTEN:
        assert f"{out}/{name}" in first and (out / name).exists() or "step" in name, name
    assert len((out / "skipped.jsonl").read_text().splitlines()) == 2 and not list(out.glob("*.tmp"))


def test_two_machines(alone, toy, tmp_path):
    """Two agents of torchrun, as on two machines, connect over a port."""
    def node(rank):
        return ["--nnodes=2", f"--node-rank={rank}", "--master-addr=127.0.0.1", "--master-port=29517"]
    first = torchrun(1, toy, tmp_path / "out", more=node(0), **CURVE)
    second = torchrun(1, toy, tmp_path / "out", more=node(1), **CURVE)
    said = finished(first) + finished(second)
    assert first.returncode == second.returncode == 0, said
    rows = [json.loads(line) for line in (tmp_path / "out" / "metrics.jsonl").read_text().splitlines()]
    assert losses(rows) == pytest.approx(losses(alone[0]), rel=1e-5)


FORKS = """
import multiprocessing
import torch
from omni.base import distributed

world = distributed.start(torch.device("cpu"))
for number in range(100):
    world.gather(number)
    child = multiprocessing.get_context("fork").Process(target=int)
    child.start()
    child.join(10)
    if child.exitcode is None:
        child.kill()
    assert child.exitcode == 0, "it hangs"
distributed.stop()
"""


def test_a_child_forked_just_after_a_collective_does_not_hang():
    """The decoder and the loader's workers are such children. Without a wait, about one in a hundred hung."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4",
               "--no-python", sys.executable, "-c", FORKS]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WATCHDOG,
                         env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr[-2000:]


class Thread(World):
    """A rank that is a thread, with the one method that the feature store needs."""

    def gather(self, value):
        self.node["values"][self.rank] = value
        self.node["barrier"].wait(60)
        values = list(self.node["values"])
        self.node["barrier"].wait(60)
        return values


def test_features_are_computed_once_over_all_ranks(toy, tmp_path, monkeypatch):
    samples = toy.samples("image_audio_text") + toy.samples("image_text")
    encoded, model = [], toy.model()
    encode_images = model.encode_images
    monkeypatch.setattr(model, "encode_images", lambda pixels: encoded.append(len(pixels))
                        or encode_images(pixels))
    monkeypatch.setattr("omni.train.features.GROUP", 5)
    node = {"values": [None] * 3, "barrier": threading.Barrier(3)}

    def stored(world: World) -> FeatureStore:
        store = FeatureStore(model, Decoder(toy.collator(model).reader, 20), 1.0, world=world)
        assert store.add(samples, 2, "test") == {}
        return store
    whole = stored(ALONE)
    alone = list(encoded)
    encoded.clear()
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    with ThreadPoolExecutor(3) as pool:
        stores = list(pool.map(stored, [Thread(rank, 3, rank, 3, node) for rank in range(3)]))
    assert sorted(encoded) == sorted(alone) and sum(alone) == 2 * len({p for s in samples for p in s.images})
    for store in stores:
        assert store.bytes == whole.bytes
        for path, take in ((s.images[0], take) for s in samples for take in range(2)):
            assert torch.equal(store.image(path, take), whole.image(path, take))


def test_each_item_is_in_exactly_one_share():
    items = list(range(11))
    parts = [World(rank, 4).share(items) for rank in range(4)]
    assert sorted(sum(parts, [])) == items
    assert ALONE.share(items) == items and ALONE.any(True, False) == [True, False]
