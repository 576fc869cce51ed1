"""The end of an epoch after sources left or joined the mix, and where all held-out samples have a group."""

import json
import shutil
from pathlib import Path

import pytest
from test_run import read, rows, train

from omni.base.errors import UserError


@pytest.fixture(scope="module")
def half(toy, tmp_path_factory) -> Path:
    """A run with a checkpoint in the middle of its first epoch of five steps."""
    return train(toy, tmp_path_factory.mktemp("half"), num_epochs=1, save_every_steps=1, keep_checkpoints=20)


def source(toy, name: str, weight: float) -> dict:
    folder = toy.root / "data" / name
    return {"weight": weight, "train": str(folder / "train.jsonl"), "val": str(folder / "val.jsonl")}


def change(toy, what: str) -> dict:
    """The toy's mix with a source removed, switched off, renamed, added, or all of them replaced."""
    mix = dict(toy.config["data_mix"])
    if what in ("removed", "renamed"):
        del mix["image_text"]
    if what in ("renamed", "added"):
        mix["pictures"] = source(toy, "image_text", 0.2)
    if what == "switched off":
        mix["image_text"] = 0
    return mix if what != "all replaced" else {"other": source(toy, "text_only", 1)}


@pytest.mark.parametrize("what", ["removed", "switched off", "renamed", "added", "all replaced"])
def test_a_resume_in_mid_epoch_with_another_mix_finishes(toy, tmp_path, half, capsys, what):
    out, mix = tmp_path / "out", change(toy, what)
    out.mkdir()
    shutil.copy(half / "step_000003.pt", out)
    with pytest.raises(UserError, match="--allow-change data_mix"):
        train(toy, tmp_path, "--resume", data_mix=mix)
    train(toy, tmp_path, "--resume", "--allow-change", "data_mix", data_mix=mix, save_every_steps=1,
          keep_checkpoints=20)
    drawn = set(read(half / "step_000003.pt")["sums"]["mix"])
    now = {name for name, entry in mix.items() if entry}
    said = capsys.readouterr().out
    first, second = (row["mix"] for row in rows(out, "epoch"))
    assert set(first) == drawn | now and set(second) == now
    for name, share in first.items():
        left = name not in now
        assert ("passes" not in share) == left == (share["wanted"] == 0)
        assert left == (f"mix {name}: no longer in the mix" in said)
    for shares in (first, second):
        assert [sum(s[key] for s in shares.values()) for key in ("wanted", "samples", "tokens")] == \
            pytest.approx([1, 1, 1])
    assert (out / "report.html").exists() and (out / "omni_final.pt").exists()
    for later in range(5, 11):  # a second resume with the new mix needs no --allow-change
        (out / f"step_{later:06d}.pt").unlink()
    train(toy, tmp_path, "--resume", data_mix=mix)
    assert [row["mix"] for row in rows(out, "epoch")] == [first, second]


def test_the_best_epoch_is_found_where_all_held_out_samples_have_a_group(toy, tmp_path):
    data = tmp_path / "data"
    shutil.copytree(toy.root / "data", data)
    for manifest in data.glob("*/val.jsonl"):
        lines = [json.loads(line) | {"group": "far"} for line in manifest.read_text().splitlines()]
        manifest.write_text("".join(json.dumps(line) + "\n" for line in lines))
    out = train(toy, tmp_path, data_dir=str(data))
    first, second = (row["val_loss"] for row in rows(out, "epoch"))
    assert 0 < second < first, "the second epoch is the better one"
    assert read(out / "omni_best.pt")["metrics"]["val_loss"] == second
