"""A system as a folder of safetensors and JSON: written for other programs, and read back by this one.

    thinker/                   a language model as `transformers` loads it, with tokenizer and chat template
    audio_encoder.safetensors, vision_encoder.safetensors, projectors.safetensors
    omni.json                  the shapes of the parts, the config and the held-out figures of the run
"""

import json
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file

from omni.base import checkpoint
from omni.base.config import ThinkerArch, build
from omni.base.errors import UserError
from omni.data.tokenizer import Tokenizer
from omni.model.pretrained import read_file, read_json

FORMAT = "micro-omni-folder-1"
SYSTEM, THINKER = "omni.json", "thinker"
PARTS = (THINKER, "audio_encoder", "vision_encoder")


def write(content: dict, folder: Path) -> None:
    """Write the `content` of an omni_final.pt to a new `folder`. omni.json is written last.

    UserError if something can't be written.
    """
    tokenizer = Tokenizer.from_content(content["tokenizer"])
    arch = build(ThinkerArch, content[THINKER]["arch"], THINKER)
    state = {name if name.startswith("lm_head.") else f"model.{name}": tensor
             for name, tensor in content[THINKER]["state"].items()}
    ends = list(tokenizer.ends)
    try:
        (folder / THINKER).mkdir(parents=True)
        _save_tensors(folder / THINKER / "model.safetensors", state)
        for name in PARTS[1:]:
            _save_tensors(folder / f"{name}.safetensors", content[name]["state"])
        _save_tensors(folder / "projectors.safetensors", content["projectors"])
    except (OSError, SafetensorError) as err:  # the second if a disk is full
        reason = getattr(err, "strerror", None) or err
        raise UserError(f"{folder}: can't be written ({reason}); make room or choose another "
                        "folder") from None
    dtype = state["model.embed_tokens.weight"].dtype
    _save_json(folder / THINKER / "config.json", thinker_config(arch, ends, tokenizer.pad, dtype))
    _save_json(folder / THINKER / "generation_config.json",
               {"eos_token_id": ends, "pad_token_id": tokenizer.pad, "do_sample": False})
    checkpoint.save_text(folder / THINKER / "tokenizer.json", tokenizer.json_text)
    _save_json(folder / THINKER / "tokenizer_config.json", tokenizer_config(tokenizer))
    shapes = {name: {key: content[name][key] for key in ("arch_type", "arch") if key in content[name]}
              for name in PARTS}
    _save_json(folder / SYSTEM, {"format": FORMAT, **shapes, "tokenizer": content["tokenizer"],
                                 "config": content["config"], "metrics": content["metrics"]})


def read(folder: Path) -> dict:
    """The content of an exported `folder`: that of the omni_final.pt that it was made of.

    UserError if it is no such folder.
    """
    content = read_json(folder / SYSTEM)
    if content.get("format") != FORMAT:
        raise UserError(f"{folder}: its {SYSTEM} is not of this project ({FORMAT}); export the system again")
    for name in PARTS:
        if not isinstance(content.get(name), dict):
            raise UserError(f"{folder / SYSTEM}: lacks {name}; export the system again")
    for name in PARTS[1:]:
        content[name]["state"] = read_file(folder / f"{name}.safetensors")
    content["projectors"] = read_file(folder / "projectors.safetensors")
    state = read_file(folder / THINKER / "model.safetensors")
    content[THINKER]["state"] = {name.removeprefix("model."): tensor for name, tensor in state.items()}
    return content


def thinker_config(arch: ThinkerArch, ends: list[int], pad: int, dtype: torch.dtype) -> dict:
    """config.json of the family that computes what the Thinker computes, in the published style."""
    family = "qwen3" if arch.qk_norm else "qwen2" if arch.qkv_bias else "llama"
    scaling = None if arch.rope_scaling is None else {"rope_type": "llama3", **arch.rope_scaling}
    return {
        "architectures": [f"{family.capitalize()}ForCausalLM"], "model_type": family, "hidden_act": "silu",
        "hidden_size": arch.width, "num_hidden_layers": arch.layers, "num_attention_heads": arch.heads,
        "num_key_value_heads": arch.kv_heads, "head_dim": arch.head_dim, "intermediate_size": arch.mlp_width,
        "vocab_size": arch.vocab_size, "rms_norm_eps": arch.norm_eps, "rope_theta": arch.rope_theta,
        "rope_scaling": scaling, "tie_word_embeddings": arch.tied_head, "attention_bias": False,
        "max_position_embeddings": arch.max_positions, "use_sliding_window": False, "eos_token_id": ends,
        "pad_token_id": pad, "torch_dtype": str(dtype).removeprefix("torch.")}


def tokenizer_config(tokenizer: Tokenizer) -> dict:
    """tokenizer_config.json: the published one, or one for our own tokenizer; with the chat template."""
    end, pad = map(tokenizer.bpe.id_to_token, (tokenizer.end, tokenizer.pad))
    own = {"tokenizer_class": "PreTrainedTokenizerFast", "clean_up_tokenization_spaces": False,
           "eos_token": end, "pad_token": pad}
    published = json.loads(tokenizer.config_text) if tokenizer.config_text else own
    return published | {"chat_template": tokenizer.template.jinja}


def _save_tensors(path: Path, state: dict[str, torch.Tensor]) -> None:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path, metadata={"format": "pt"})


def _save_json(path: Path, content: dict) -> None:
    checkpoint.save_text(path, json.dumps(content, indent=2, default=str) + "\n")
