"""Adapters, parts that are frozen apart, and a system that is trained a second time."""

import json

import pytest
import torch

from omni.base import checkpoint
from omni.base.config import PROJECTIONS, SFTConfig, build
from omni.base.config_file import load_config
from omni.base.errors import UserError
from omni.chat import OmniModel
from omni.model.load import load_for_training, load_system
from omni.model.lora import LoRALinear, add_adapters, merged_state
from omni.model.thinker import Thinker
from omni.train import optim
from sft_omni import main

LORA = {"lora_rank": 4, "learning_rate": 1e-2}


def train(toy, folder, *options, **changes) -> None:
    main(["--config", toy.write(folder, **changes), *options])


def last_epoch(folder) -> dict:
    rows = map(json.loads, (folder / "out" / "metrics.jsonl").read_text().splitlines())
    return [row for row in rows if row["event"] == "epoch"][-1]


def shaken(thinker: Thinker) -> None:
    """Adapters as after training: B is no longer zero."""
    with torch.no_grad():
        for name, weight in thinker.named_parameters():
            if "lora_B" in name:
                weight.normal_(0, 0.1)


@pytest.mark.parametrize("targets", [PROJECTIONS, ("q_proj", "v_proj"), ("down_proj",)])
def test_a_merged_thinker_answers_as_the_adapted_one(toy, mixed, targets):
    model = toy.model(lora_rank=4, lora_targets=list(targets)).eval()
    shaken(model.thinker)
    adapters = [m for m in model.modules() if isinstance(m, LoRALinear)]
    assert len(adapters) == len(targets) * model.thinker.arch.layers
    merged = load_system(model.content(), "memory")
    assert not any("lora" in name for name in merged.state_dict())
    batch = toy.collator(model)(mixed)
    with torch.no_grad():
        before, after, base = (m.thinker.logits(m.thinker.hidden(m.embed(batch), batch.layout))
                               for m in (model, merged, toy.model().eval()))
    assert (before - after).abs().max() < 1e-5 * before.abs().max()
    assert (before - base).abs().max() > 1e-2  # the adapters do something


def test_adapters_compute_what_the_paper_says():
    base = torch.nn.Linear(5, 3)
    layer = LoRALinear(base, rank=2, alpha=6.0).double()
    torch.nn.init.normal_(layer.lora_B)
    x = torch.randn(4, 5, dtype=torch.float64)
    expected = x @ (layer.weight + 6.0 / 2 * layer.lora_B @ layer.lora_A).T + layer.bias
    torch.testing.assert_close(layer(x), expected)


def test_new_adapters_change_nothing(toy, mixed):
    plain, adapted = toy.model().eval(), toy.model(lora_rank=4).eval()
    batch = toy.collator(plain)(mixed)
    with torch.no_grad():
        torch.testing.assert_close(plain(batch)[0], adapted(batch)[0], rtol=1e-6, atol=0)


@pytest.mark.parametrize(("changes", "trained"), [
    ({}, {"thinker", "audio_projector", "vision_projector"}),
    ({"freeze_thinker": True}, {"audio_projector", "vision_projector"}),
    ({"freeze_encoders": ["audio"]}, {"thinker", "audio_projector", "vision_projector", "vision_encoder"}),
    ({"freeze_encoders": ["vision"], "freeze_thinker": True},
     {"audio_projector", "vision_projector", "audio_encoder"}),
    ({"freeze_encoders": []}, {"thinker", "audio_projector", "vision_projector", "audio_encoder",
                               "vision_encoder"}),
    ({"lora_rank": 2}, {"thinker", "audio_projector", "vision_projector"})])
def test_gradients_are_computed_of_what_is_trained_alone(toy, mixed, changes, trained):
    model = toy.model(**changes)
    batch = toy.collator(model)(mixed)
    (model(batch)[0] / batch.answer_tokens).backward()
    with_gradient = {name for name, weight in model.named_parameters() if weight.grad is not None}
    assert {name.split(".")[0] for name in with_gradient} == trained
    assert with_gradient == {name for name, weight in model.named_parameters() if weight.requires_grad}
    if "lora_rank" in changes:
        assert all(".lora_" in name for name in with_gradient if name.startswith("thinker."))
    grouped = optim.adamw([(part, 1e-3) for part in model.children()], 0.01, model)
    assert sum(len(group["params"]) for group in grouped.param_groups) == len(with_gradient)


@pytest.mark.parametrize("changes", [LORA, {"freeze_thinker": True}, {"freeze_encoders": ["vision"]},
                                     {"freeze_encoders": ["audio"], **LORA}])
def test_a_killed_run_goes_on_to_the_same_bits(toy, tmp_path, changes):
    """From a step checkpoint that holds nothing but what is trained."""
    train(toy, tmp_path, **changes, save_every_steps=3)
    folder = tmp_path / "out"
    final = checkpoint.load(folder / "omni_final.pt", "omni", "")
    (folder / "omni_final.pt").unlink()
    step = sorted(folder.glob("step_*.pt"))[0]
    held = checkpoint.load(step, "step", "")["model"].keys()
    assert held == {name for name, p in toy.model(**changes).named_parameters() if p.requires_grad}
    train(toy, tmp_path, "--resume", str(step), **changes, save_every_steps=3)
    again = checkpoint.load(folder / "omni_final.pt", "omni", "")
    for part in ("thinker", "audio_encoder", "vision_encoder"):
        assert all(torch.equal(t, again[part]["state"][n]) for n, t in final[part]["state"].items())
    assert final["thinker"]["state"].keys() == toy.model().thinker.state_dict().keys()
    assert all(torch.equal(t, again["projectors"][n]) for n, t in final["projectors"].items())


def test_frozen_weights_that_changed_are_noticed_on_resume(toy, tmp_path):
    train(toy, tmp_path, freeze_thinker=True, num_epochs=1)
    step = sorted((tmp_path / "out").glob("step_*.pt"))[-1]
    content = checkpoint.load(step, "step", "")
    checkpoint.save(step, "step", {**{k: v for k, v in content.items() if k not in ("format", "kind")},
                                   "frozen": "0123456789abcdef"})
    with pytest.raises(UserError, match="frozen weights 0123456789abcdef"):
        train(toy, tmp_path, "--resume", freeze_thinker=True)


def test_a_finished_system_is_trained_further(toy, tmp_path):
    """With `system_ckpt` the projectors go on too; with the three keys they begin anew."""
    train(toy, tmp_path / "first", num_epochs=1)
    final = str(tmp_path / "first" / "out" / "omni_final.pt")
    content = checkpoint.load(final, "omni", "")
    config = {key: value for key, value in toy.config.items() if not key.endswith("_ckpt")}
    device = torch.device("cpu")
    whole = load_for_training(build(SFTConfig, {**config, "system_ckpt": final}, "toy"), device)
    assert all(torch.equal(whole.state_dict()[name], t) for name, t in content["projectors"].items())
    parts = load_for_training(build(SFTConfig, {**config, "thinker_ckpt": final, "audio_ckpt": final,
                                                "vision_ckpt": final}, "toy"), device)
    assert not all(torch.equal(parts.state_dict()[name], t) for name, t in content["projectors"].items())
    for model in (whole, parts):
        state = model.thinker.state_dict()
        assert all(torch.equal(state[name], t) for name, t in content["thinker"]["state"].items())
    second = tmp_path / "second" / "toy.json"
    second.parent.mkdir()
    second.write_text(json.dumps(config | {"system_ckpt": final, "save_dir": str(tmp_path / "second" / "out"),
                                           "lora_rank": 2}))
    main(["--config", str(second)])
    assert last_epoch(tmp_path / "second")["loss"] < last_epoch(tmp_path / "first")["loss"]
    assert OmniModel.load(str(tmp_path / "second" / "out" / "omni_final.pt")).chat(
        [{"role": "user", "content": "What is 1 plus 1?"}]) is not None


@pytest.mark.parametrize(("changes", "words"), [
    ({"freeze_encoders": ["eyes"]}, "audio, vision"),
    ({"lora_rank": 4, "lora_targets": ["lm_head"]}, "q_proj"),
    ({"lora_rank": 4, "freeze_thinker": True}, "freeze_thinker"), ({"lora_alpha": 8}, "lora_rank"),
    ({"lora_targets": ["q_proj"]}, "lora_rank"), ({"lora_rank": 4, "lora_targets": []}, "empty"),
    ({"system_ckpt": "a.pt"}, "system_ckpt"), ({"image_merge": 5}, "image_merge")])
def test_keys_that_contradict_each_other_are_refused(toy, tmp_path, changes, words):
    with pytest.raises(UserError, match=words):
        load_config(toy.write(tmp_path, **changes), SFTConfig)


@pytest.mark.parametrize("changes", [{"audio_stack": 2}, {"audio_window": "30s"}, {"image_merge": 3}])
def test_keys_that_do_not_fit_the_encoders_are_refused(toy, changes):
    with pytest.raises(UserError, match="audio_|grid|merge"):
        toy.model(**changes)


def test_the_frozen_base_is_kept_in_half_precision_if_nothing_is_lost(toy):
    model = toy.model(lora_rank=2)
    with torch.no_grad():
        for weight in model.thinker.parameters():
            weight.copy_(weight.bfloat16())
    exact = checkpoint.fingerprint(model.frozen_weights(), torch.bfloat16)
    model.store_frozen(torch.bfloat16, lossy=False)
    kept = {name: weight.dtype for name, weight in model.frozen_weights().items()}
    assert kept["thinker.layers.0.mlp.up_proj.weight"] == torch.bfloat16
    assert kept["thinker.norm.weight"] == kept["audio_encoder.stem_proj.weight"] == torch.float32
    assert checkpoint.fingerprint(model.frozen_weights(), torch.bfloat16) == exact


def test_a_base_in_bf16_is_merged_in_fp32():
    torch.manual_seed(0)
    base = torch.nn.Linear(64, 64, bias=False)
    base.weight.data = base.weight.data.bfloat16()
    layer = LoRALinear(base, 2, 1.0)
    torch.nn.init.normal_(layer.lora_B, 0, 1e-4)  # less than a step of bf16
    merged = layer.merged_weight()
    assert merged.dtype == torch.float32 and (merged != layer.weight.float()).float().mean() > 0.99


def test_adapters_leave_the_state_dict_names_of_the_base(toy):
    thinker = toy.model().thinker
    names = thinker.state_dict().keys()
    add_adapters(thinker, 2, 4.0, PROJECTIONS)
    assert merged_state(thinker).keys() == names
