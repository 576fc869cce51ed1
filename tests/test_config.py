"""Configs: what they may hold, and a one-line error for anything else."""

import json
from pathlib import Path

import pytest
from conftest import ROOT, assert_user_error

from omni.base.config import PretrainConfig, SFTConfig
from omni.base.config_file import load_config, mix_entry, mix_reading, parse_json
from omni.base.errors import UserError

SPECIFIED = """{
  // Load pretrained checkpoints
  "thinker_ckpt": "checkpoints/thinker_tiny/thinker_best.pt",
  "audio_ckpt": "checkpoints/audio_enc_tiny/audio_enc.pt",
  "vision_ckpt": "checkpoints/vision_tiny/vision.pt",
  // Training strategy
  "freeze_encoders": true,  // Only fine-tune Thinker
  "batch_size": 8,
  "num_epochs": 5,
  "learning_rate": 1e-4,
  // Data mix (balance modalities)
  "data_mix": {
    "text_only": 0.4,    // 40% text
    "image_text": 0.3,   // 30% vision
    "audio_text": 0.3    // 30% audio
  }
}"""


def load(tmp_path, text: str, *overrides: str) -> SFTConfig:
    path = tmp_path / "c.json"
    path.write_text(text, encoding="utf-8")
    return load_config(str(path), SFTConfig, list(overrides))


def test_the_specified_config_is_read_word_for_word(tmp_path):
    config = load(tmp_path, SPECIFIED)
    assert (config.batch_size, config.num_epochs, config.learning_rate) == (8, 5, 1e-4)
    assert config.freeze_encoders
    assert config.data_mix == {"text_only": 0.4, "image_text": 0.3, "audio_text": 0.3}
    assert mix_entry(config, "audio_text") == (0.3, "data/tiny/audio_text/train.jsonl",
                                               "data/tiny/audio_text/val.jsonl")


def test_every_key_has_a_default(tmp_path):
    assert load(tmp_path, "{}") == SFTConfig()


@pytest.mark.parametrize("path", sorted((ROOT / "configs").glob("*.json")), ids=lambda p: p.name)
def test_the_shipped_configs_are_read(path):
    load_config(str(path), PretrainConfig if '"stage"' in path.read_text() else SFTConfig)


@pytest.mark.parametrize("text, value", [
    ('{"a": "x // y", "b": "/* z */"} // end', {"a": "x // y", "b": "/* z */"}),
    ('/* a\n b */ {"a": [1, 2, ], /* , */ "b": {"c": 1,},}', {"a": [1, 2], "b": {"c": 1}}),
    ('\ufeff{"a": 1}', {"a": 1}), ('{"a": "q\\" // not, } a comment"}', {"a": 'q" // not, } a comment'}),
    ('{"a": ",}", "b": ",]"}', {"a": ",}", "b": ",]"}), ('{"a": 1, // x\n // y\n}', {"a": 1}),
    ('{"a": "\\\\", "b": 1} // "', {"a": "\\", "b": 1}), ('{"a": 1 /**/}', {"a": 1})])
def test_comments_and_trailing_commas_are_allowed(text, value):
    assert parse_json(text, "here") == value


@pytest.mark.parametrize("text", ["{} /* open", '{"a": 1,, }', "{'a': 1}", "", '{"a": 1 / 2}'])
def test_other_invalid_json_is_an_error(text):
    with pytest.raises(UserError, match="here"):
        parse_json(text, "here")


def test_the_line_of_an_error_is_right_after_comments(tmp_path):
    with pytest.raises(UserError, match="line 4, column 3"):
        load(tmp_path, '{ /* one\n two */ "batch_size": 8, // three\n\n  oops\n}')


MALFORMED = {  # config -> words of the error
    '{"batchsize": 8}': ["batchsize", '"batch_size"'],
    '{"lerning_rate": 1}': ["lerning_rate", "learning_rate"],
    '{"zzz": 1}': ["zzz", "known keys", "thinker_ckpt"], '{"batch_size": "8"}': ["batch_size", "whole number",
                                                                                 '"8"'],
    '{"batch_size": 8.5}': ["batch_size"], '{"batch_size": true}': ["batch_size"],
    '{"batch_size": 0}': ["batch_size", "at least 1", "0"], '{"batch_size": null}': ["batch_size"],
    '{"num_epochs": -1}': ["num_epochs"], '{"learning_rate": 0}': ["learning_rate", "above 0"],
    '{"learning_rate": 2}': ["learning_rate", "at most 1"], '{"learning_rate": "1e-4"}': ["learning_rate",
                                                                                          "a number"],
    '{"learning_rate": NaN}': ["NaN"], '{"learning_rate": 1e999}': ["learning_rate"],
    '{"learning_rate": -Infinity}': ["Infinity"], f'{{"learning_rate": 1{"0" * 400}}}': ["learning_rate"],
    f'{{"seed": 1{"0" * 5000}}}': ["c.json"], '{"freeze_encoders": 1}': ["freeze_encoders", "true or false"],
    '{"freeze_encoders": "false"}': ["freeze_encoders"], '{"device": "gpu"}': ["device", "auto, cpu, cuda"],
    '{"precision": "fp16"}': ["precision", "bf16"], '{"thinker_ckpt": 3}': ["thinker_ckpt", "a string"],
    '{"thinker_ckpt": null}': ["thinker_ckpt"], '{"save_dir": 3}': ["save_dir", "null"],
    '{"max_skipped": 1.5}': ["max_skipped"], '{"data_mix": []}': ["data_mix", "an object"],
    '{"data_mix": {}}': ["data_mix", "above 0"], '{"data_mix": {"text_only": 0}}': ["data_mix", "above 0"],
    '{"data_mix": {"text_only": -1}}': ["data_mix.text_only"],
    '{"data_mix": {"text_only": "1"}}': ["data_mix.text_only"],
    '{"data_mix": {"text_only": true}}': ["data_mix.text_only"],
    '{"data_mix": {"a": {}}}': ["data_mix.a", "weight"],
    '{"data_mix": {"a": 1e999}}': ["data_mix.a"],
    '{"data_mix": {"a": {"weight": 1, "tran": "x"}}}': ["data_mix.a.tran"],
    '{"data_mix": {"a": {"weight": 1, "train": 3}}}': ["data_mix.a.train"],
    '{"data_mix": {"a": {"weight": 1, "task": "sing"}}}': ["data_mix.a.task", "text, qa, asr", "sing"],
    '{"data_mix": {"a": {"weight": 1, "columns": "x"}}}': ["data_mix.a.columns", "an object"],
    '{"data_mix": {"a": {"weight": 1, "columns": {"sound": "x"}}}}': ["data_mix.a.columns.sound", "audio",
                                                                      "ignore"],
    '{"data_mix": {"a": {"weight": 1, "columns": {"audio": 3}}}}': ["data_mix.a.columns.audio", "name"],
    '{"data_mix": {"a": {"weight": 1, "columns": {"audio": "x", "ignore": ["x"]}}}}': ['"x" twice'],
    '{"data_mix": {"a": {"weight": 1, "val": 1.5}}}': ["data_mix.a.val", "below 1", "1.5"],
    '{"data_mix": {"a": {"weight": 1, "val": 0}}}': ["data_mix.a.val", "above 0"],
    '{"data_mix": {"a": {"weight": 1, "val": true}}}': ["data_mix.a.val", "share"],
    '{"data_mix": {"a": {"weight": 1, "image_folder": "x", "val": 0.1}}}': ["data_mix.a", "question"],
    '{"data_mix": {"a": {"weight": 1, "image_folder": "x", "question": "q"}}}': ["data_mix.a", "val"],
    '{"data_mix": {"a": {"weight": 1, "image_folder": "x", "train": "y"}}}': ["data_mix.a", "both"],
    '{"seed": 1, "seed": 2}': ["seed", "twice"],
    '{"data_mix": {"a": 1, "a": 2}}': ['"a"', "twice"], "[]": ["object"], "3": ["object"], "": ["line 1"],
    '{"seed": 1': ["line 1"], '{"seed" 1}': ["line 1"], "[" * 100_000: ["nested"],
    '{"a\\nb": 1}': ["known keys"],
    '{"batch_size": 0, "num_epochs": 0}': ["batch_size", "num_epochs"], '{"max_length": 3}': ["max_length"]}


@pytest.mark.parametrize("text", MALFORMED, ids=lambda t: t[:60])
def test_a_malformed_config_gives_a_one_line_error_that_names_the_key(tmp_path, text):
    with pytest.raises(UserError) as caught:
        load(tmp_path, text)
    said = str(caught.value)
    assert "c.json" in said and "\n" not in said and len(said) < 2000
    for word in MALFORMED[text]:
        assert word in said


@pytest.mark.parametrize("content", [b"\xff\xfe{\x00}\x00", b"\x80"])
def test_a_config_that_is_not_text_gives_a_one_line_error(tmp_path, content):
    (tmp_path / "c.json").write_bytes(content)
    for path in (tmp_path / "c.json", tmp_path, tmp_path / "none.json"):
        with pytest.raises(UserError) as caught:
            load_config(str(path), SFTConfig)
        assert path.name in str(caught.value) and "\n" not in str(caught.value)


def test_overrides_are_set_and_checked(tmp_path):
    config = load(tmp_path, SPECIFIED, "batch_size=16", "data_mix.text_only=0", "device=cpu", "save_dir=a b",
                  'data_mix.more={"weight": 1, "train": "t.jsonl"}', "learning_rate=1e-3",
                  "freeze_encoders=false")
    assert config.batch_size == 16 and config.device == "cpu" and config.save_dir == "a b"
    assert config.data_mix["text_only"] == 0 and config.data_mix["image_text"] == 0.3
    assert config.learning_rate == 1e-3 and config.freeze_encoders is False
    assert mix_entry(config, "more") == (1.0, "t.jsonl", "data/tiny/more/val.jsonl")


def test_a_source_needs_only_a_path(tmp_path):
    config = load(tmp_path, """{"data_mix": {"vqa": {"weight": 0.3, "train": "my/vqa.json", "val": 0.05},
        "kinds": {"weight": 1, "image_folder": "my/kinds", "val": "my/test", "question": "What is this?"}}}
        """)
    assert mix_entry(config, "vqa") == (0.3, "my/vqa.json", 0.05) and not mix_reading(config,
                                                                                      "vqa")["question"]
    assert mix_entry(config, "kinds") == (1.0, "my/kinds", "my/test")
    assert mix_reading(config, "kinds") == {"question": "What is this?", "columns": None, "task": "",
                                            "media_dir": ""}


@pytest.mark.parametrize("setting, word", [
    ("batch_size", "key=value"), ("=3", "key=value"), ("batchsize=3", "batch_size"),
    ("batch_size=x", "batch_size"),
    ("batch_size.x=3", "batch_size"), ("learning_rate=NaN", "learning_rate"),
    ("data_mix.text_only=-1", "text_only"),
    ("data_mix.image_text.weight=1", "image_text"), (f"seed=1{'0' * 5000}", "seed")])
def test_a_wrong_override_gives_a_one_line_error(tmp_path, setting, word):
    with pytest.raises(UserError, match=word) as caught:
        load(tmp_path, SPECIFIED, setting)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("text, word", [
    ('{"batchsize": 8}', "batchsize"), ('{"learning_rate": NaN}', "NaN"), ("{", "line 1")])
def test_the_command_gives_a_one_line_error_and_makes_no_folder(tmp_path, command, text, word):
    (tmp_path / "c.json").write_text(text)
    before = set(Path(ROOT / "checkpoints").iterdir())
    assert_user_error(command("sft_omni.py", "--config", tmp_path / "c.json"), word)
    assert set(Path(ROOT / "checkpoints").iterdir()) == before
    assert [p.name for p in tmp_path.iterdir()] == ["c.json"]


def test_the_command_names_a_wrong_override(tmp_path, command):
    (tmp_path / "c.json").write_text(json.dumps({"save_dir": str(tmp_path / "out")}))
    assert_user_error(command("sft_omni.py", "--config", tmp_path / "c.json", "--set", "batch_size=0"),
                      "batch_size")
    assert not (tmp_path / "out").exists()
