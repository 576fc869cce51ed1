"""Malformed configs through the command: one line that names the key, exit code 2, no folder created."""

import json
import time
from pathlib import Path

import pytest
from conftest import assert_user_error
from harness import start, wait
from test_config import MALFORMED

import sft_omni
from omni.base.errors import UserError

MORE = {  # config -> words in its error, in addition to test_config's MALFORMED
    "\ufeff": ["line 1"], "\ufeff[]": ["object"], "null": ["object"], '"text"': ["object"], "{": ["line 1"],
    "{}}": ["line 1"], "{} {}": ["line 1"], "// nothing": ["line"], "/* never closed": ["line 1"],
    '{"seed": 1 /* never closed }': ["line 1"], '{"seed": 1,, "batch_size": 2}': ["line 1"],
    '{"seed": 01}': ["line 1"], '{"seed": +1}': ["line 1"], '{"seed": .5}': ["line 1"],
    "{'seed': 1}": ["line 1"],
    '{seed: 1}': ["line 1"], '{"seed": True}': ["line 1"], '{"seed": "1}': ["line 1"],
    '{"a": "\n"}': ["line 1"],
    '{"seed": 1e400}': ["seed"], '{"seed": 1.0}': ["seed"], '{"seed": -1}': ["seed"],
    '{"seed": 99999999999999999999999}': ["seed", "at most"], '{"batch_size": 1e9}': ["batch_size"],
    '{"batch_size": 100000000000}': ["batch_size", "at most"], '{"num_workers": 99999}': ["num_workers"],
    '{"augment_takes": 0}': ["augment_takes"], '{"decode_timeout_s": 0}': ["decode_timeout_s", "above 0"],
    '{"save_every_minutes": -5}': ["save_every_minutes"], '{"max_bad_steps": 0}': ["max_bad_steps"],
    '{"save_dir": "\\u0000"}': ["character"], '{"save_dir": "\\ud800"}': ["character"],
    '{"thinker_ckpt": "a\\u0000b"}': ["character"],
    '{"thinker_ckpt": "nowhere.pt"}': ["nowhere.pt", "omni.pretrain"],
    '{"audio_ckpt": "configs/thinker_tiny.json"}': ["thinker_tiny.json", "not readable as a checkpoint"],
    '{"vision_ckpt": "configs"}': ["configs", "holds no config.json"],
    '{"vision_ckpt": ""}': ["no such checkpoint", "configs/vision_tiny.json"],
    '{"vision_ckpt": "nowhere/vision_real/vision.pt"}': ["no such checkpoint", "configs/vision_real.json"],
    '{"data_mix": {"nowhere": 1}}': ["nowhere", "can't open this manifest"],
    '{"data_mix": {"": 1}}': ["can't open this manifest"], '{"data_dir": "nowhere"}': ["nowhere", "data_dir"],
    '{"data_mix": {"a": {"weight": 1, "train": "no.jsonl"}}}': ["source a", '"val"'],
    '{"data_mix": null}': ["data_mix"],
    '{"data_mix": {"a": [1]}}': ["data_mix.a"],
    '{"data_mix": {"a": {"weight": {"weight": 1}}}}': ["data_mix.a"],
    '{"data_mix": {"a": 0, "b": 0.0}}': ["data_mix", "above 0"], '{"data_mix": {"a": 1e300}}': ["data_mix.a"],
    '{"data_mix": {"text_only": 1, "batch_size": 8}}': ["batch_size"],
    '{"model": {"batch_size": 8}}': ["unknown key", "model"], '{"Batch_Size": 8}': ["batch_size"],
    '{"batch-size": 8}': ["batch_size"], '{"epochs": 3}': ["num_epochs"], '{"lr": 0.1}': ["unknown key"],
    '{"precision": "float32"}': ["precision", "fp32"], '{"device": "cuda:0"}': ["device"],
    '{"grad_clip": 0}': ["grad_clip"], '{"max_length": 1}': ["max_length"],
    '{"eval_samples": 0}': ["eval_samples"]}
ALL = MALFORMED | MORE


def run_in_process(arguments: list, log: Path) -> int:
    """As `wait(start(...))`, but faster, in this process."""
    with pytest.raises(UserError) as caught:
        sft_omni.main([str(a) for a in arguments])
    log.write_text(f"error: {caught.value}\n")
    return 2


def test_every_malformed_config_is_a_one_line_error(toy, tmp_path, full):
    """Checks message, exit code, time and files of each. With --full each runs in a process of its own."""
    assert len(ALL) >= 60
    slowest = 0.0
    for number, (text, words) in enumerate(ALL.items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        (folder / "c.json").write_text(text, encoding="utf-8")
        parts = ("thinker_ckpt", "audio_ckpt", "vision_ckpt", "data_dir")  # toy parts load fast
        settings = {key: toy.config[key] for key in parts if f'"{key}"' not in text}
        arguments = ["--config", folder / "c.json"]
        for key, value in settings.items() if text.lstrip("\ufeff ").startswith("{") else ():
            arguments += ["--set", f"{key}={value}"]
        if '"save_dir"' not in text and text.startswith("{"):
            arguments += ["--set", f"save_dir={folder / 'out'}"]
        begun = time.monotonic()
        ended = (wait(start(arguments, folder / "log")) if full else
                 run_in_process(arguments, folder / "log"))
        slowest = max(slowest, time.monotonic() - begun)
        said = (folder / "log").read_text().splitlines()
        assert ended == 2 and said[-1].startswith("error: "), (text, said)
        assert "Traceback" not in "".join(said), text
        missing = [word for word in words if word not in said[-1]]
        assert not missing, f"{text[:80]}: {said[-1][:300]} lacks {missing}"
        assert sorted(p.name for p in folder.iterdir()) == ["c.json", "log"], text
    print(f"{len(ALL)} malformed configs, the slowest took {slowest:.2f} s after the imports")
    assert slowest < 5


@pytest.mark.parametrize("setting", [
    "seed=" + "[" * 100_000, "save_dir=a\udcffb", "data_mix.text_only.x.y=1", "=", "batch_size=1e3",
    'data_mix={"a": NaN}'])
def test_a_malformed_override_is_an_error(tmp_path, setting, toy):
    config = toy.write(tmp_path)
    assert wait(start(["--config", config, "--set", setting], tmp_path / "log")) == 2
    assert (tmp_path / "log").read_text().startswith("error: ") and not (tmp_path / "out").exists()


def test_the_command_itself_within_5_s_of_its_own_time(tmp_path, command):
    import resource
    (tmp_path / "c.json").write_text(json.dumps({"batchsize": 8}))
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert_user_error(command("sft_omni.py", "--config", tmp_path / "c.json"), "batch_size")
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    spent = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    assert spent < 5 and [p.name for p in tmp_path.iterdir()] == ["c.json"]
