"""Open weights: the same numbers as `transformers`, and one line for what can't be used."""

import json
import shutil

import pytest
import torch
from open_weights import FAMILIES, language_model, real_weights
from reference import unpacked
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM

from omni.base.errors import UserError
from omni.data.layout import packed_layout
from omni.model import attention, cpu_block, pretrained
from omni.model.attention import DecodeLayout
from omni.model.thinker import Thinker

LENGTHS = (37, 150, 5, 64)  # one row is longer than a bin, the others share bins


def thinker_of(folder) -> Thinker:
    """The Thinker alone, for folders without a tokenizer."""
    config = pretrained.read_json(folder / "config.json")
    arch = pretrained.thinker_arch(config, "config.json")
    state, unwanted = pretrained._thinker_state(pretrained.read_tensors(folder), arch, folder)
    return pretrained._build(lambda: Thinker(arch), state, unwanted, "thinker", folder)[0].eval()


def rows_of(vocabulary: int) -> list[torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(vocabulary, (length,), generator=generator) for length in LENGTHS]


@torch.no_grad()
def packed_logits(thinker: Thinker, rows: list[torch.Tensor]) -> list[torch.Tensor]:
    layout = packed_layout([len(row) for row in rows], 3)
    ids = torch.cat([*rows, torch.zeros(3, dtype=torch.int64)])
    return unpacked(layout, thinker.logits(thinker.hidden(thinker.embed(ids), layout)))


@torch.no_grad()
def decoded_logits(thinker: Thinker, row: torch.Tensor) -> torch.Tensor:
    """The same token by token, through the cache."""
    cache, logits = thinker.new_cache(1, len(row), thinker.embed(row)), []
    for position, token in enumerate(row):
        layout = DecodeLayout(torch.tensor([position]), reach=position + 1)
        logits.append(thinker.logits(thinker.decode(thinker.embed(token[None]), cache, layout)))
    return torch.cat(logits)


def difference(ours: torch.Tensor, theirs: torch.Tensor) -> float:
    """The largest one, relative to the largest logit."""
    return float((ours - theirs).abs().max() / theirs.abs().max())


@pytest.mark.parametrize("backend", ["fused", "bins", "sdpa", "decode"])
@pytest.mark.parametrize("family", FAMILIES)
def test_logits_equal_those_of_transformers(tmp_path, monkeypatch, family, backend):
    reference = language_model(tmp_path, family)
    thinker, rows = thinker_of(tmp_path), rows_of(400)
    if backend != "fused":
        monkeypatch.setattr(cpu_block, "fused", lambda *_: None)
    if backend == "sdpa":
        monkeypatch.setattr(attention, "MAX_SCORES", 0)
    with torch.no_grad():
        theirs = [reference(row[None]).logits[0] for row in rows]
    ours = [decoded_logits(thinker, row) for row in rows] if backend == "decode" \
        else packed_logits(thinker, rows)
    assert max(map(difference, ours, theirs)) < 2e-6


@pytest.mark.parametrize(("family", "change"), [
    ("llama3", {"rope_scaling": None}), ("transformers-5", {"rope_parameters": None}),
    ("qwen3", {"rope_theta": 10000.0}), ("smollm2", {"rms_norm_eps": 1e-2})])
def test_a_key_of_the_config_that_is_ignored_makes_a_difference(tmp_path, family, change):
    """The parity tests can fail: without the key the numbers differ."""
    reference, rows = language_model(tmp_path, family), rows_of(400)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with torch.no_grad():
        theirs = [reference(row[None]).logits[0] for row in rows]
    assert max(map(difference, packed_logits(thinker_of(tmp_path), rows), theirs)) > 1e-4


def test_a_bias_that_is_ignored_makes_a_difference(tmp_path):
    reference, rows = language_model(tmp_path, "qwen2"), rows_of(400)
    thinker = thinker_of(tmp_path)
    thinker.layers[1].self_attn.k_proj.bias.data.zero_()
    with torch.no_grad():
        theirs = [reference(row[None]).logits[0] for row in rows]
    assert max(map(difference, packed_logits(thinker, rows), theirs)) > 1e-4


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_shards_and_half_precision_files_are_read(tmp_path, dtype):
    language_model(tmp_path / "whole", "qwen3", dtype=dtype)
    language_model(tmp_path / "shards", "qwen3", shards=3, dtype=dtype)
    whole, shards = (thinker_of(tmp_path / name).state_dict() for name in ("whole", "shards"))
    assert whole.keys() == shards.keys()
    assert all(torch.equal(whole[k], shards[k]) and whole[k].dtype == torch.float32 for k in whole)


def edit(folder, change) -> None:
    """Change the tensors of a folder."""
    state = load_file(folder / "model.safetensors")
    change(state)
    save_file(state, folder / "model.safetensors")


def test_a_redundant_head_is_dropped_and_one_that_differs_is_refused(tmp_path):
    language_model(tmp_path, "smollm2")
    edit(tmp_path, lambda state: state.update({
        "lm_head.weight": state["model.embed_tokens.weight"].clone(),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(4)}))
    config = pretrained.read_json(tmp_path / "config.json")
    arch = pretrained.thinker_arch(config, "config.json")
    state, unwanted = pretrained._thinker_state(pretrained.read_tensors(tmp_path), arch, tmp_path)
    _, line = pretrained._build(lambda: Thinker(arch), state, unwanted, "thinker", tmp_path)
    assert "0 missing, 0 unexpected, 0 mis-shaped" in line and "lm_head.weight" in line
    edit(tmp_path, lambda state: state["lm_head.weight"].add_(1))
    with pytest.raises(UserError, match="tie_word_embeddings"):
        thinker_of(tmp_path)


@pytest.mark.parametrize(("change", "words"), [
    ({"model_type": "mistral"}, "model_type"), ({"hidden_act": "gelu"}, "hidden_act"),
    ({"mlp_bias": True}, "mlp_bias"), ({"attention_bias": True}, "attention_bias"),
    ({"use_sliding_window": True}, "use_sliding_window"),
    ({"quantization_config": {"bits": 4}}, "quantization"),
    ({"rope_scaling": {"type": "yarn", "factor": 4.0}}, "rope_scaling"),
    ({"rope_scaling": {"rope_type": "llama3", "factor": 4.0}}, "rope_scaling"),
    ({"rope_scaling": "linear"}, "rope_scaling"), ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
    ({"layer_types": ["full_attention", "sliding_attention"]}, "layer_types"),
    ({"hidden_size": None}, "usable"), ({"hidden_size": "64"}, "usable"),
    ({"num_attention_heads": 0}, "usable"),
    ({"vocab_size": -3}, "vocab_size"), ({"num_hidden_layers": 10 ** 9}, "layers"),
    ({"num_hidden_layers": 4}, "missing"), ({"num_hidden_layers": 2}, "unexpected"),
    ({"intermediate_size": 81}, "mis-shaped"), ({"tie_word_embeddings": False}, "lm_head.weight")])
def test_what_is_not_supported_is_refused_by_its_key(tmp_path, change, words):
    language_model(tmp_path, "smollm2")
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | change))
    with pytest.raises(UserError, match=words):
        thinker_of(tmp_path)


def spoil(name: str, content: bytes):
    return lambda folder: (folder / name).write_bytes(content)


def shard_elsewhere(folder) -> None:
    shutil.move(folder / "model.safetensors", folder.parent / "outside.safetensors")
    index = {"weight_map": {"model.norm.weight": "../outside.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def pickled(folder) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(b"cos\nsystem\n(S'touch /tmp/omni_was_here'\ntR.")


@pytest.mark.parametrize(("damage", "words"), [
    (pickled, "pytorch_model.bin, which is never read"), (shard_elsewhere, "not a file of its folder"),
    (spoil("model.safetensors", b"\xff" * 100), "not readable as safetensors"),
    (spoil("model.safetensors", b""), "not readable as safetensors"),
    (spoil("config.json", b"{"), "not readable as JSON"), (spoil("config.json", b"[]"), "object"),
    (spoil("model.safetensors.index.json", b'{"weight_map": []}'), "weight_map"),
    (spoil("model.safetensors.index.json", b'{"weight_map": {"a": "b.safetensors"}}'), "lacks the shard"),
    (lambda folder: (folder / "config.json").unlink(), "holds no config.json"),
    (lambda folder: (folder / "model.safetensors").unlink(), "holds no model.safetensors"),
    (lambda folder: edit(folder, lambda s: s.update({"model.norm.weight": torch.ones(48, dtype=torch.int8)})),
     "quantised"),
    (lambda folder: edit(folder, lambda s: s.pop("model.norm.weight")), "1 missing"),
    (lambda folder: edit(folder, lambda s: s.update(extra=torch.ones(2))), "1 unexpected")])
def test_a_damaged_folder_is_refused_in_one_line(tmp_path, damage, words):
    folder = tmp_path / "model"
    language_model(folder, "smollm2")
    damage(folder)
    with pytest.raises(UserError, match=words):
        thinker_of(folder)


@pytest.mark.real_weights
def test_smollm2_goes_on_like_transformers():
    folder = real_weights("SmolLM2-135M-Instruct")
    thinker, tokenizer, line = pretrained.load_thinker(folder)
    assert "0 missing, 0 unexpected, 0 mis-shaped" in line
    ids = tokenizer.encode("The capital of France is")
    reference = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ours, theirs = list(ids), list(ids)
    with torch.no_grad():
        for _ in range(50):  # beyond an end token too, which `generate` with a least length would forbid
            ours.append(int(packed_logits(thinker, [torch.tensor(ours)])[0][-1].argmax()))
            theirs.append(int(reference(torch.tensor([theirs])).logits[0, -1].argmax()))
    assert ours == theirs and "Paris" in tokenizer.decode(ours[len(ids):][:5])
