"""What a run says at its start about its sources, and how it chooses their held-out samples."""

import pytest
from published import clip, picture, put, write

import sft_omni
from omni.base.config import SFTConfig, build
from omni.base.errors import UserError
from omni.data import manifest
from omni.data.mixture import read_mix


def conversations(count: int) -> list[dict]:
    return [{"query": f"question {i}", "response": str(i)} for i in range(count)]


def test_a_run_reads_columns_and_task_and_prints_what_is_not_read(toy, tmp_path, capsys):
    put(tmp_path, {f"wav/{i}.snd0": clip(0.3 + i / 50) for i in range(8)})
    entries = [{"take": f"wav/{i}.snd0", "says": "low", "mood": "glad"} for i in range(8)]
    source = {"weight": 1, "train": write(tmp_path, "m.jsonl", entries), "val": 0.3, "task": "qa",
              "question": "Which word?", "columns": {"audio": "take", "answer": "says"}}
    sft_omni.main(["--config", toy.write(tmp_path, num_epochs=1, samples_per_epoch=4,
                                         data_mix={"heard": source}),
                   "--dry-run"])
    printed = capsys.readouterr().out
    assert "source heard: JSON lines: clips with text; 8 samples, 8 media, 0 skipped" in printed
    assert 'source heard: not read: "mood" (8)' in printed
    assert manifest.read(source["train"], columns=source["columns"], task="qa").samples[0].task == "qa"


def test_held_out_texts_that_are_in_training_are_told(toy, tmp_path, capsys):
    path = write(tmp_path, "m.jsonl", conversations(8))
    config = toy.write(tmp_path, data_mix={"a": {"weight": 1, "train": path, "val": path}})
    sft_omni.main(["--config", config, "--dry-run"])
    assert "source a: 8 of 8 held-out texts are in training word for word" in capsys.readouterr().out


def test_the_held_out_samples_of_a_run_are_spread_over_their_source(tmp_path):
    put(tmp_path, {f"set/{kind}/{i}.png": picture() for kind in ("cat", "dog", "owl") for i in range(20)})
    source = {"weight": 1, "train": str(tmp_path / "set"), "val": str(tmp_path / "set"), "question": "What?"}
    mix = read_mix(build(SFTConfig, {"data_mix": {"a": source}, "eval_samples": 6}, "here"))
    assert [s.answer for s in mix.val["a"]] == ["cat", "cat", "dog", "dog", "owl", "owl"]


def test_a_source_without_val_is_told_in_its_own_words(toy, tmp_path):
    path = write(tmp_path, "m.jsonl", conversations(8))
    with pytest.raises(UserError, match='source a: it has "train" and no "val"; add "val": .*0.1'):
        sft_omni.main(["--config", toy.write(tmp_path, data_mix={"a": {"weight": 1, "train": path}}),
                       "--dry-run"])
