"""Media that are checked as they are drawn: bad ones are replaced, and a resume is exact."""

import json
import shutil
from copy import deepcopy
from pathlib import Path

import pytest
import torch

from omni.base import checkpoint
from omni.base.distributed import World
from omni.base.errors import UserError
from omni.data import drawn, manifest
from omni.data.decoding import Decoder
from omni.data.drawn import DrawnDataset, checked_as_drawn
from omni.data.loader import Schedule, StepDataset
from omni.data.mixture import Mix
from omni.data.sampler import WeightedSampler
from sft_omni import main

SOURCES = ("image_text", "audio_text", "text_only")


@pytest.fixture(scope="module")
def damaged(toy, tmp_path_factory):
    """The toy's data with a broken picture, a clip that is none and one that is cut short."""
    root = shutil.copytree(toy.root / "data", tmp_path_factory.mktemp("damaged") / "data")
    (root / "image_text" / "train_3.png").write_bytes(b"no picture")
    (root / "audio_text" / "train_2.wav").write_bytes(b"no sound")
    clip = root / "audio_text" / "train_5.wav"
    clip.write_bytes(clip.read_bytes()[:200])
    return root


def train(toy, folder, data, *options, **changes) -> Path:
    settings = {"data_dir": str(data), "check_media": "drawn", "max_skipped": 0.5} | changes
    main(["--config", toy.write(folder, **settings), *options])
    return folder / "out"


def rows(out: Path, event: str) -> list[dict]:
    lines = (out / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["event"] == event]


def losses(out: Path) -> list[float]:
    return [row["loss"] for row in rows(out, "step")]


def test_without_bad_media_a_run_is_that_of_media_checked_first(toy, tmp_path):
    same = {"feature_cache_gb": 0}
    first = train(toy, tmp_path / "first", toy.root / "data", check_media="first", **same)
    later = train(toy, tmp_path / "later", toy.root / "data", **same)
    assert losses(first) == losses(later)


def test_bad_media_are_replaced_named_and_the_mix_stays_exact(toy, damaged, tmp_path, capsys):
    out = train(toy, tmp_path, damaged, samples_per_epoch=60)
    said = capsys.readouterr().out
    assert "checked as they are drawn" in said and "not readable as sound" in said
    listed = [json.loads(line) for line in (out / "skipped.jsonl").read_text().splitlines()]
    names = sorted(Path(row["media"][0]).name for row in listed)
    assert names == ["train_2.wav", "train_3.png", "train_5.wav"]
    mix = rows(out, "epoch")[-1]["mix"]
    assert all(abs(share["samples"] - share["wanted"]) <= 1 / 60 for share in mix.values())
    assert rows(out, "epoch")[-1]["skipped"]["image_text"]


@pytest.mark.parametrize("at", [3, 7])
def test_a_resume_is_exact(toy, damaged, tmp_path, at):
    out = train(toy, tmp_path, damaged, save_every_steps=1, keep_checkpoints=99)
    final = checkpoint.load(out / "omni_final.pt", "omni", "")
    (out / "omni_final.pt").unlink()
    train(toy, tmp_path, damaged, "--resume", str(out / f"step_{at:06d}.pt"))
    again = checkpoint.load(out / "omni_final.pt", "omni", "")
    state = again["thinker"]["state"]
    assert all(torch.equal(t, state[name]) for name, t in final["thinker"]["state"].items())


def dataset_of(toy, data, world=World(), batch_size=4) -> DrawnDataset:  # noqa: B008 - frozen
    model = toy.model()
    train = {name: manifest.read(str(data / name / "train.jsonl")).samples for name in SOURCES}
    mix = Mix(train=train, val=train, weights=dict.fromkeys(SOURCES, 1.0))
    collate = toy.collator(model)
    sampler = WeightedSampler({name: len(samples) for name, samples in train.items()}, mix.weights, 0)
    dataset = StepDataset(mix, sampler, Schedule(40, batch_size, 1), collate, 2, 1, world)
    return DrawnDataset(dataset, Decoder(collate.reader, 20), 0.9)


def test_ranks_and_windows_see_the_same_samples(toy, damaged, monkeypatch):
    whole = [step.batches for step in dataset_of(toy, damaged).steps(0, 10, 0)]
    monkeypatch.setattr(drawn, "WINDOW", 3)
    again = [step.batches for step in dataset_of(toy, damaged).steps(0, 10, 0)]
    later = [step.batches for step in dataset_of(toy, damaged).steps(4, 10, 0)]
    ids = [[batch.ids.tolist() for batch in batches] for batches in whole]
    assert ids == [[batch.ids.tolist() for batch in batches] for batches in again]
    assert ids[4:] == [[batch.ids.tolist() for batch in batches] for batches in later]
    parts = [list(dataset_of(toy, damaged, World(rank, 2)).steps(0, 10, 0)) for rank in range(2)]
    for step, (one, two) in enumerate(zip(*parts, strict=True)):
        tokens = sum(sum(batch.answer_counts) for part in (one, two) for batch in part.batches)
        assert tokens == sum(batch.answer_tokens for batch in whole[step])


def test_a_rank_without_a_sample_has_an_idle_batch(toy, damaged):
    for rank in range(3):
        steps = list(dataset_of(toy, damaged, World(rank, 3), batch_size=2).steps(0, 3, 0))
        assert all(len(step.batches) == 1 for step in steps)
    assert steps[0].batches[0].answer_tokens == 0


def test_a_replacement_is_the_next_sample_that_can_be_used(toy, damaged):
    dataset = dataset_of(toy, damaged)
    list(dataset.steps(0, 10, 0))
    for draw in (dataset.sampler[k] for k in range(40)):
        if (draw.source, draw.index) in dataset._bad:
            samples = dataset.mix.train[draw.source]
            wanted = next(samples[(draw.index + i) % len(samples)] for i in range(len(samples))
                          if (draw.source, (draw.index + i) % len(samples)) not in dataset._bad)
            dataset._chosen = {}
            requests = dataset._requests(draw, samples[draw.index])
            assert dataset._usable(draw, samples[draw.index], list(dataset._spare.read(requests))) == wanted
    assert len(dataset._bad) == 3


def test_too_many_bad_samples_end_the_run_in_one_line(toy, damaged, tmp_path, monkeypatch):
    monkeypatch.setattr(drawn, "JUDGED_AFTER", 5)
    with pytest.raises(UserError, match="samples drawn so far can't be used"):
        train(toy, tmp_path, damaged, samples_per_epoch=60, max_skipped=0.01)


def test_a_source_without_a_usable_sample_ends_the_run(toy, tmp_path):
    data = shutil.copytree(toy.root / "data", tmp_path / "data")
    for path in (data / "image_text").glob("train_*.png"):
        path.write_bytes(b"broken")
    with pytest.raises(UserError, match="none of its 12 samples can be used"):
        train(toy, tmp_path, data, data_mix={"image_text": 1.0}, max_skipped=1.0)


def test_samples_that_are_too_long_are_replaced_too(toy, tmp_path):
    data = shutil.copytree(toy.root / "data", tmp_path / "data")
    manifest = data / "text_only" / "train.jsonl"
    lines = manifest.read_text().splitlines()
    entry = json.loads(lines[0])
    entry["messages"][1]["content"] = "word " * 400
    manifest.write_text("\n".join([json.dumps(entry), *lines[1:]]) + "\n")
    out = train(toy, tmp_path, data, samples_per_epoch=60)
    assert "max_length" in (out / "skipped.jsonl").read_text()


def test_many_media_are_checked_as_they_are_drawn(toy, monkeypatch):
    mix = Mix(train={"image_text": toy.samples("image_text")}, weights={"image_text": 1.0})
    assert not checked_as_drawn(mix, "auto") and checked_as_drawn(mix, "drawn")
    monkeypatch.setattr(drawn, "MOST_FIRST", 5)
    assert checked_as_drawn(mix, "auto") and not checked_as_drawn(mix, "first")
    assert not checked_as_drawn(deepcopy(mix), "first")
