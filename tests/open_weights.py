"""Small random folders of open weights in the published form, and `transformers`' models of them."""

import json
import os
from pathlib import Path

import foreign
import pytest
import torch
from safetensors.torch import save_file
from torch import nn
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    PreTrainedModel,
    SiglipVisionConfig,
    SiglipVisionModel,
    WhisperConfig,
    WhisperModel,
)

BASE = {"hidden_act": "silu", "hidden_size": 48, "num_hidden_layers": 3, "num_attention_heads": 6,
        "num_key_value_heads": 2, "intermediate_size": 80, "vocab_size": foreign.ROWS,
        "max_position_embeddings": 512, "rms_norm_eps": 1e-5, "eos_token_id": 2}
LLAMA3 = {"rope_type": "llama3", "factor": 32.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
          "original_max_position_embeddings": 64}
# config.json of small models in the published style, with the keys that each family sets.
FAMILIES = {
    "smollm2": BASE | {"model_type": "llama", "rope_theta": 100000, "rope_scaling": None,
                       "tie_word_embeddings": True, "attention_bias": False, "mlp_bias": False},
    "llama3": BASE | {"model_type": "llama", "rope_theta": 500000.0, "rope_scaling": LLAMA3, "head_dim": 8,
                      "tie_word_embeddings": True, "eos_token_id": [2, 5]},
    "llama-untied": BASE | {"model_type": "llama", "rope_theta": 10000.0},
    "qwen2": BASE | {"model_type": "qwen2", "rope_theta": 1e6, "tie_word_embeddings": True,
                     "rms_norm_eps": 1e-6, "use_sliding_window": False, "sliding_window": 32768,
                     "max_window_layers": 21},
    "qwen3": BASE | {"model_type": "qwen3", "rope_theta": 1e6, "rope_scaling": None, "head_dim": 16,
                     "tie_word_embeddings": True, "attention_bias": False, "sliding_window": None,
                     "use_sliding_window": False, "rms_norm_eps": 1e-6},
    "transformers-5": {key: value for key, value in BASE.items()} | {
        "model_type": "llama", "rope_parameters": LLAMA3 | {"rope_theta": 500000.0}, "head_dim": 8,
        "tie_word_embeddings": True}}


def randomise(model: nn.Module, seed: int = 0) -> None:
    """Every parameter, so that one that is ignored makes a difference: biases and norms too."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, weight in model.named_parameters():
            noise = torch.randn(weight.shape, generator=generator)
            if weight.dim() == 1:
                weight.copy_(noise * 0.3 + (0 if name.endswith("bias") else 1))
            else:
                weight.copy_(noise * 0.7 * weight.shape[-1] ** -0.5)


def language_model(folder: Path, family: str, shards: int = 1, dtype=torch.float32,
                   **changes) -> PreTrainedModel:
    """Write a language model of a family to `folder`, without a tokenizer; returns that of transformers."""
    config = FAMILIES[family] | changes
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    values = {key: value for key, value in config.items() if key != "model_type" and value is not None}
    model = AutoModelForCausalLM.from_config(AutoConfig.for_model(config["model_type"], **values)).eval()
    randomise(model)
    model.to(dtype)
    state = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    if config.get("tie_word_embeddings"):
        del state["lm_head.weight"]
    if shards == 1:
        save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    else:
        names = [f"model-{i + 1:05d}-of-{shards:05d}.safetensors" for i in range(shards)]
        places = {name: names[i % shards] for i, name in enumerate(state)}
        for file in names:
            save_file({name: tensor for name, tensor in state.items() if places[name] == file}, folder / file)
        (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    return model


def real_weights(name: str) -> Path:
    """The folder `name` of real open weights; the test is skipped where there is none."""
    folder = Path(os.environ.get("OMNI_WEIGHTS", "nowhere")) / name
    if not folder.is_dir():
        pytest.skip(f"OMNI_WEIGHTS names no folder that holds {name}")
    return folder


def whisper(folder: Path) -> WhisperModel:
    """Write a small Whisper, with its decoder, to `folder`."""
    model = WhisperModel(WhisperConfig(
        num_mel_bins=80, d_model=32, encoder_layers=2, encoder_attention_heads=2, encoder_ffn_dim=48,
        decoder_layers=1, decoder_ffn_dim=8, decoder_attention_heads=2, vocab_size=51865)).eval()
    return _encoder(folder, model, "model.", model_type="whisper")


def siglip(folder: Path) -> SiglipVisionModel:
    """Write a small vision encoder of SigLIP to `folder`."""
    model = SiglipVisionModel(SiglipVisionConfig(hidden_size=48, intermediate_size=80, num_hidden_layers=2,
                                                 num_attention_heads=4, image_size=32, patch_size=8)).eval()
    return _encoder(folder, model, "vision_model.", model_type="siglip_vision_model")


def _encoder(folder: Path, model: PreTrainedModel, prefix: str, **names) -> PreTrainedModel:
    randomise(model)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps(model.config.to_dict() | names))
    save_file({prefix + name: tensor.contiguous() for name, tensor in model.state_dict().items()},
              folder / "model.safetensors")
    return model


def parts(root: Path, family: str = "smollm2", tokenizer: str = "smol") -> dict[str, str]:
    """Folders of a language model with its tokenizer, a Whisper and a SigLIP: the keys of a config."""
    language_model(root / "thinker", family)
    foreign.write(root / "thinker", tokenizer)
    whisper(root / "whisper")
    siglip(root / "siglip")
    return {"thinker_ckpt": str(root / "thinker"), "audio_ckpt": str(root / "whisper"),
            "vision_ckpt": str(root / "siglip")}
