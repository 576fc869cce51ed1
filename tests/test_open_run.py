"""Whole runs over open weights, what is exported of them, and weights from the Hub."""

import json
import os
import re
import shutil
import subprocess
import sys

import open_weights
import pytest
import torch
from conftest import ROOT, assert_user_error
from safetensors import SafetensorError
from transformers import AutoModelForCausalLM, AutoTokenizer

from omni.base import checkpoint
from omni.base.errors import UserError
from omni.chat import OmniModel
from omni.data.layout import packed_layout
from omni.export import export
from sft_omni import main

OPEN = ("thinker_ckpt", "audio_ckpt", "vision_ckpt")
QUICK = {"samples_per_epoch": 8, "num_epochs": 1, "lora_rank": 2, "max_length": 400}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, str]:
    return open_weights.parts(tmp_path_factory.mktemp("open"))


def train(toy, folder, **changes):
    main(["--config", toy.write(folder, **changes)])
    return folder / "out" / "omni_final.pt"


def conversations(toy) -> list[list[dict]]:
    """Questions about text, a picture and a clip."""
    media = [{}, {"image": toy.samples("image_text", "val")[0].images[0]},
             {"audio": toy.samples("audio_text", "val")[0].audios[0]}]
    return [[{"role": "user", "content": [*({"type": kind, kind: path} for kind, path in one.items()),
                                          {"type": "text", "text": "What is it?"}]}] for one in media]


@pytest.mark.parametrize("own", [(), ("vision_ckpt",), ("audio_ckpt", "vision_ckpt"), ("thinker_ckpt",)])
def test_open_and_own_parts_train_and_answer_in_any_combination(toy, folders, tmp_path, capsys, own):
    chosen = {key: place for key, place in folders.items() if key not in own}
    final = train(toy, tmp_path, **QUICK, **chosen)
    said = capsys.readouterr().out
    assert said.count("0 missing, 0 unexpected, 0 mis-shaped") == 3
    assert "not needed of the file" in said or "audio_ckpt" in own
    assert re.search(r"frozen weights: (\w+) before, \1 after: equal", said)
    system = OmniModel.load(str(final))
    for messages in conversations(toy):
        assert isinstance(system.chat(messages), str)


@pytest.mark.parametrize("changes", [{"audio_window": "30s", "audio_stack": 2}, {"image_merge": 1},
                                     {"freeze_encoders": False, "lora_rank": 0, "feature_cache_gb": 0}])
def test_options_of_open_encoders_reach_the_model(toy, folders, changes):
    model = toy.model(**folders, **changes)
    arch = model.audio_encoder.arch
    assert (arch.window, arch.stack) == (changes.get("audio_window", "clip"), changes.get("audio_stack", 4))
    assert model.image_tokens == (16 if changes.get("image_merge") == 1 else 4)
    batch = toy.collator(model)(toy.samples("image_audio_text")[:2])
    loss, _ = model(batch)
    assert torch.isfinite(loss)


@pytest.fixture(scope="module")
def exported(toy, folders, tmp_path_factory):
    """A run over open weights: (its omni_final.pt, the folder that it was exported to)."""
    folder = tmp_path_factory.mktemp("exported")
    final = train(toy, folder, **QUICK, **folders)
    export(str(final), folder / "system")
    return final, folder / "system"


@pytest.mark.parametrize("own", [True, False])
def test_transformers_reads_the_exported_thinker(toy, exported, tmp_path, own):
    if own:  # a system of this project's own parts
        final = train(toy, tmp_path, samples_per_epoch=8, num_epochs=1)
        export(str(final), tmp_path / "system")
    else:
        final, _ = exported
    folder = (tmp_path / "system" if own else exported[1]) / "thinker"
    theirs, info = AutoModelForCausalLM.from_pretrained(folder, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"] and not info["mismatched_keys"]
    system = OmniModel.load(str(final))
    reader = AutoTokenizer.from_pretrained(folder)
    talk = [{"role": "user", "content": "What is 1 plus 1?"}, {"role": "assistant", "content": "It is 2."},
            {"role": "user", "content": "And 2 plus 2?"}]
    ours, _ = system.tokenizer.chat([(m["role"], m["content"]) for m in talk], [], [])
    rendered = reader.apply_chat_template(talk, add_generation_prompt=True, tokenize=True)
    assert (rendered["input_ids"] if hasattr(rendered, "keys") else rendered) == ours
    ids = torch.tensor(ours)
    with torch.no_grad():
        layout = packed_layout([len(ours)], 1)
        packed = system.thinker.embed(torch.cat([ids, ids[:1]]))
        logits = system.thinker.logits(system.thinker.hidden(packed, layout))[:-1]
        expected = theirs.eval()(ids[None]).logits[0]
    assert (logits - expected).abs().max() < 2e-6 * expected.abs().max()
    assert theirs.generation_config.eos_token_id in (list(system.tokenizer.ends), system.tokenizer.end)


def test_an_exported_folder_is_read_back_to_the_same_answers(toy, exported):
    final, folder = exported
    one, two = OmniModel.load(str(final)), OmniModel.load(str(folder))
    assert one.state_dict().keys() == two.state_dict().keys()
    assert all(torch.equal(tensor, two.state_dict()[name]) for name, tensor in one.state_dict().items())
    for messages in conversations(toy):
        assert one.chat(messages) == two.chat(messages)
    readme = (folder / "README.md").read_text()
    assert "val_loss" in readme and "thinker_ckpt" in readme


def test_export_is_a_command_and_overwrites_nothing(exported, command):
    final, folder = exported
    assert_user_error(command("-m", "omni.export", "--ckpt", final, "--out", folder), "is there already")
    done = command("-m", "omni.export", "--ckpt", "nowhere.pt", "--out", folder / "x")
    assert_user_error(done, "nowhere.pt")


def test_a_disk_that_is_full_ends_an_export_in_one_line(exported, tmp_path, monkeypatch):
    def fails(*_, **__):
        raise SafetensorError("I/O error: No space left on device")

    monkeypatch.setattr("omni.model.exported.save_file", fails)
    with pytest.raises(UserError, match="No space left on device.*make room"):
        export(str(exported[0]), tmp_path / "system")


@pytest.mark.parametrize("damage", ["omni.json", "projectors.safetensors", "thinker/model.safetensors"])
@pytest.mark.parametrize("how", ["absent", "cut"])
def test_a_damaged_export_is_refused_in_one_line(exported, tmp_path, damage, how, command):
    folder = shutil.copytree(exported[1], tmp_path / "system")
    path = folder / damage
    content = path.read_bytes()
    path.unlink()
    if how == "cut":
        path.write_bytes(content[:len(content) // 2])
    assert_user_error(command("-m", "omni.chat", "--ckpt", folder, "hello"), path.name)


def test_weights_from_the_hub_are_read_from_its_cache(tmp_path, folders):
    """A local cache in the Hub's layout, without a network: the commit is printed."""
    commit = "0123456789abcdef0123456789abcdef01234567"
    repository = tmp_path / "models--someone--small"
    shutil.copytree(folders["thinker_ckpt"], repository / "snapshots" / commit)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    code = ("from pathlib import Path; from omni.base import hub; from omni.model import pretrained\n"
            "folder = hub.locate('hf:someone/small')\n"
            "print(pretrained.load_thinker(folder)[2], hub.commit('hf:someone/small@main'))")
    env = os.environ | {"HF_HUB_CACHE": str(tmp_path), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, env=env, capture_output=True, text=True)
    assert f"commit {commit}" in done.stdout and "0 missing" in done.stdout, done.stderr
    absent = code.replace("someone/small", "someone/else")
    done = subprocess.run([sys.executable, "-c", absent], cwd=ROOT, env=env, capture_output=True, text=True)
    assert "UserError: hf:someone/else: can't be downloaded" in done.stderr


@pytest.mark.parametrize("place", ["hf:small", "hf:../../etc", "hf:a/b/c"])
def test_a_name_that_is_no_repository_is_refused(toy, tmp_path, command, place):
    path = toy.write(tmp_path, thinker_ckpt=place)
    assert_user_error(command("sft_omni.py", "--config", path), "hf:OWNER/NAME")


def test_a_resume_names_the_key_of_a_part_that_was_replaced(toy, folders, tmp_path):
    train(toy, tmp_path, **QUICK, **folders)
    other = shutil.copytree(folders["audio_ckpt"], tmp_path / "other")
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config, indent=4))
    with pytest.raises(UserError, match="audio_ckpt"):
        main(["--config", toy.write(tmp_path, **QUICK, **folders | {"audio_ckpt": str(other)}), "--resume"])


def test_pickled_weights_are_never_opened(toy, folders, tmp_path, command):
    folder = shutil.copytree(folders["thinker_ckpt"], tmp_path / "pickled")
    trap = tmp_path / "opened"
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(f"cposix\nsystem\n(S'touch {trap}'\ntR.".encode())
    path = toy.write(tmp_path, **folders | {"thinker_ckpt": str(folder)})
    assert_user_error(command("sft_omni.py", "--config", path), "pytorch_model.bin", "never read")
    assert not trap.exists()


def test_a_checkpoint_says_what_its_parts_are(exported):
    content = checkpoint.load(exported[0], "omni", "")
    assert [content[name]["arch_type"] for name in ("thinker", "audio_encoder", "vision_encoder")] == \
        ["ThinkerArch", "WhisperArch", "SiglipArch"]
    json.dumps({"tokenizer": content["tokenizer"], "config": content["config"]})  # plain types
