"""Which epoch is the best, by which figure, when a run stops, and runs that hold nothing out."""

import json

import pytest
from test_run import rows, train

from omni.base import checkpoint
from omni.base.config import SFTConfig
from omni.base.errors import UserError
from omni.data.sample import Sample
from omni.eval.best import Best, metric_names

HELD_OUT = {"a": [Sample(("user", "q", "assistant", "x"), (), ("1.wav",), "asr")],
            "t": [Sample(("user", "q", "assistant", "x"), group="far")]}


def test_the_figures_of_held_out_samples_have_these_names():
    assert metric_names(HELD_OUT) == ["val_loss", "audio_wer", "a/wer", "t/far/acc", "t/far/exact"]
    chinese = {"a": [Sample(("user", "q", "assistant", "我很好"), (), ("1.wav",), "asr")]}
    assert metric_names(chinese) == ["val_loss", "audio_cer", "a/cer"]


@pytest.mark.parametrize("name, values, best, stops_after", [
    ("audio_wer", [0.5, 0.3, 0.4, 0.3, 0.2], 2, 4), ("t/far/acc", [0.5, 0.3, 0.4, 0.9], 1, 3),
    ("val_loss", [float("nan"), 2.0, 1.0, 0.5], 4, None)])
def test_the_best_epoch_is_found_by_the_direction_of_its_figure(name, values, best, stops_after):
    found = Best(SFTConfig(best_by=name, stop_after=2), HELD_OUT)
    for epoch, value in enumerate(values, 1):
        assert found.verdict is None
        found.add(epoch, {name: value, "other": 0.0})
        if found.verdict:
            break
    assert found.epoch == best and (epoch if found.verdict else None) == stops_after
    if stops_after:
        assert f"stopped after epoch {epoch}" in found.verdict and f"of epoch {best}" in found.verdict


def test_without_held_out_samples_there_is_nothing_to_choose_by():
    assert Best(SFTConfig(), {"a": []}).add(1, {}) is False
    for keys in ({"stop_after": 1}, {"best_by": "audio_wer"}):
        with pytest.raises(UserError, match=next(iter(keys))):
            Best(SFTConfig(**keys), {"a": []})
    with pytest.raises(UserError, match='no figure "image_qa"; they have val_loss, audio_wer'):
        Best(SFTConfig(best_by="image_qa"), HELD_OUT)


def test_a_run_stops_at_the_figure_that_it_is_told_and_stays_stopped(toy, tmp_path, capsys):
    still = {"learning_rate": 1e-9, "projector_learning_rate": 1e-9, "num_epochs": 9, "stop_after": 2,
             "best_by": "image_text/qa", "samples_per_epoch": 8}
    out = train(toy, tmp_path, **still)
    said = capsys.readouterr().out
    assert "stopped after epoch 3: 2 without a better image_text/qa" in said
    assert [row["epoch"] for row in rows(out, "epoch")] == [1, 2, 3]
    assert checkpoint.load(out / "omni_best.pt", "omni", "")["metrics"].keys() >= {"val_loss", "image_qa"}
    train(toy, tmp_path, "--resume", **still)
    assert "stopped after epoch 3" in capsys.readouterr().out and len(rows(out, "epoch")) == 3
    train(toy, tmp_path, "--resume", **{**still, "stop_after": 4})
    assert [row["epoch"] for row in rows(out, "epoch")] == [1, 2, 3, 4, 5]


def test_a_finished_run_that_goes_on_says_both_learning_rates(toy, tmp_path, capsys):
    short = {"samples_per_epoch": 8, "num_epochs": 2, "warmup_steps": 1, "eval_samples": 1}
    out = train(toy, tmp_path, save_every_steps=1, keep_checkpoints=9, **short)
    last = rows(out, "step")[-1]["lr"]
    capsys.readouterr()
    train(toy, tmp_path, "--resume", str(out / "step_000003.pt"), **short)
    assert "resumed at step 3 of 4\n" in capsys.readouterr().out
    train(toy, tmp_path, "--resume", **short)
    assert "resumed at step 4 of 4\n" in capsys.readouterr().out
    train(toy, tmp_path, "--resume", **{**short, "num_epochs": 4})
    first = rows(out, "step")[4]["lr"]
    said = capsys.readouterr().out
    assert f"its learning rate was {last:.2e} and is {first:.2e} from now on" in said and first > 1.5 * last
    assert '"schedule": "cosine" spans all 8 steps' in said
    train(toy, tmp_path / "b", schedule="constant", **short)
    capsys.readouterr()
    out = train(toy, tmp_path / "b", "--resume", schedule="constant", **{**short, "num_epochs": 3})
    assert "resumed at step 4 of 6\n" in capsys.readouterr().out
    assert {row["lr"] for row in rows(out, "step")} == {3e-3}


def test_a_run_without_validation(toy, tmp_path, capsys):
    source = {"weight": 1, "train": str(toy.root / "data" / "image_text" / "train.jsonl"), "val": None}
    out = train(toy, tmp_path, data_mix={"pictures": source}, num_epochs=1)
    said = capsys.readouterr().out
    assert "source pictures: nothing is held out" in said and "nothing is held out\n    mix" in said
    (row,) = rows(out, "epoch")
    assert "val_loss" not in row and row["loss"] > 0 and (out / "omni_final.pt").exists()
    assert not (out / "omni_best.pt").exists() and (out / "report.html").exists()
    other = json.loads((out / "config.json").read_text())["data_mix"]["pictures"]
    assert other["val"] is None
    out = train(toy, tmp_path / "b", data_mix={"pictures": source, "text_only": 1}, num_epochs=1)
    assert "text_only/acc" in rows(out, "epoch")[0] and (out / "omni_best.pt").exists()
