"""Several ranks: the same curve as one, any mix without a hang, another number of ranks on resume."""

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

from omni.data.decoding import Decoder
from omni.distributed import ALONE, World
from omni.train.features import FeatureStore

ROOT = Path(__file__).resolve().parent.parent
WATCHDOG = 240  # seconds after which a run counts as hung
CURVE = {"samples_per_epoch": 100}  # 50 steps in two epochs


def torchrun(ranks: int, toy, out: Path, *arguments, more=(), **settings) -> subprocess.Popen:
    """Start the toy's run on so many ranks; `more` are arguments of torchrun itself."""
    (toy.root / "config.json").write_text(json.dumps(toy.config))
    sets = [f"--set={key}={json.dumps(value)}" for key, value in (settings | {"save_dir": str(out)}).items()]
    where = more or ["--standalone"]
    command = [sys.executable, "-m", "torch.distributed.run", *where, f"--nproc-per-node={ranks}",
               str(ROOT / "sft_omni.py"), "--config", str(toy.root / "config.json"), *arguments, *sets]
    env = os.environ | {"OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=env, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
                            start_new_session=True)


def finished(run: subprocess.Popen, seconds: float = WATCHDOG) -> str:
    """What the run said; one that hangs is ended and fails the test."""
    try:
        said, _ = run.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(run.pid, signal.SIGKILL)
        raise AssertionError(f"still running after {seconds} s") from None
    return said


def trained(ranks: int, toy, out: Path, *arguments, more=(), **settings) -> list[dict]:
    """The metrics of a run that ends well."""
    run = torchrun(ranks, toy, out, *arguments, more=more, **settings)
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
def test_the_curve_is_that_of_one_process(alone, toy, tmp_path, ranks, settings):
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


def test_another_number_of_ranks_goes_on_where_the_run_stopped(alone, toy, tmp_path):
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
    """A sample a rank and step, fewer at the end of an epoch: some have no picture, no sound, or nothing."""
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


def test_an_error_is_told_once_and_ends_all(toy, tmp_path):
    run = torchrun(2, toy, tmp_path / "out", thinker_ckpt="nowhere.pt")
    said = finished(run, 60)
    assert run.returncode != 0 and "error: nowhere.pt: no such checkpoint" in said


def test_two_machines(alone, toy, tmp_path):
    """Two agents of torchrun, as on two machines, meet at a port."""
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
from omni import distributed

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


def test_a_child_forked_just_after_a_collective_lives():
    """The decoder and the loader's workers are such children. One in some hundred hung."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node=4",
               "--no-python", sys.executable, "-c", FORKS]
    run = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=WATCHDOG,
                         env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert run.returncode == 0, run.stderr[-2000:]


class Thread(World):
    """A rank that is a thread: what `gather` needs of a process group."""

    def gather(self, value):
        self.node["values"][self.rank] = value
        self.node["barrier"].wait(60)
        values = list(self.node["values"])
        self.node["barrier"].wait(60)
        return values


def test_features_are_computed_once_over_all_ranks(toy, monkeypatch):
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
    with ThreadPoolExecutor(3) as pool:
        stores = list(pool.map(stored, [Thread(rank, 3, node=node) for rank in range(3)]))
    assert sorted(encoded) == sorted(alone) and sum(alone) == 2 * len({p for s in samples for p in s.images})
    for store in stores:
        assert store.bytes == whole.bytes
        for path, take in whole._images:
            assert torch.equal(store.image(path, take), whole.image(path, take))


def test_shares_are_whole_and_apart():
    items = list(range(11))
    parts = [World(rank, 4).share(items) for rank in range(4)]
    assert sorted(sum(parts, [])) == items
    assert ALONE.share(items) == items and ALONE.any(True, False) == [True, False]
