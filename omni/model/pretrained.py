"""Parts from folders of open weights, as they are published on the Hugging Face Hub.

A folder has config.json, *.safetensors and, for a language model, tokenizer.json. Only JSON and safetensors
are read, so nothing in a folder is run or unpickled. A config that asks for something that isn't supported is
refused.
"""

import json
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from omni.base import checkpoint
from omni.base.config import ThinkerArch, build
from omni.base.errors import UserError
from omni.data.tokenizer import Tokenizer
from omni.model.published import require
from omni.model.siglip import SiglipEncoder
from omni.model.thinker import Thinker
from omni.model.whisper import WhisperEncoder

State = dict[str, torch.Tensor]
FLOATS = (torch.float32, torch.float16, torch.bfloat16)
# The keys of Llama 3's `rope_scaling`.
LLAMA3_ROPE = ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings")


def load_thinker(folder: Path) -> tuple[Thinker, Tokenizer, str]:
    """A language model, its tokenizer and the line about its tensors."""
    config = read_json(folder / "config.json")
    arch = thinker_arch(config, folder / "config.json")
    state, unwanted = _thinker_state(read_tensors(folder), arch, folder)
    thinker, line = _build(lambda: Thinker(arch), state, unwanted, "thinker", folder)
    generation = folder / "generation_config.json"
    ends = _ends(config) + (_ends(read_json(generation)) if generation.is_file() else [])
    return thinker, Tokenizer.from_folder(folder, arch.vocab_size, ends), line


def load_audio_encoder(folder: Path, **changes: Any) -> tuple[nn.Module, str]:
    """Whisper's encoder and the line about its tensors. `changes` are fields of its arch."""
    return _load_encoder(folder, "audio_encoder", WhisperEncoder, changes, "whisper")


def load_vision_encoder(folder: Path, **changes: Any) -> tuple[nn.Module, str]:
    """SigLIP's vision encoder and the line about its tensors. `changes` are fields of its arch."""
    return _load_encoder(folder, "vision_encoder", SiglipEncoder, changes, "siglip")


def _load_encoder(folder: Path, name: str, kind: type, changes: dict, family: str) -> tuple[nn.Module, str]:
    config, preprocessor = read_json(folder / "config.json"), folder / "preprocessor_config.json"
    try:
        arch = kind.arch_of(config, read_json(preprocessor) if preprocessor.is_file() else {})
        tensors = read_tensors(folder)
        state = kind.rename(tensors)
    except ValueError as err:
        raise UserError(f"{folder}: not a {family} that can be used: {err}") from None
    unwanted = [tensor for tensor in tensors if tensor.startswith(kind.IGNORED)]
    return _build(lambda: kind(replace(arch, **changes)), state, unwanted, name, folder)


def _build(make: Callable[[], nn.Module], state: State, unwanted: Sequence[str], name: str,
           folder: Path) -> tuple[nn.Module, str]:
    """The part with its weights in fp32, and the line about its tensors. UserError if they don't fit."""
    try:
        with torch.device("meta"):  # no memory is allocated and nothing is initialised
            part = make()
    except (RuntimeError, ValueError, ZeroDivisionError, AssertionError) as err:
        raise UserError(f"{folder}: its architecture can't be built ({str(err)[:100]})") from None
    state = {key: tensor.float() for key, tensor in state.items()}
    line = checkpoint.load_state(part, state, name, folder, assign=True)
    return part, f"{line}{_unwanted(unwanted)}"


def _unwanted(names: Sequence[str]) -> str:
    """What a file holds besides the part: the number of tensors for each beginning of a name."""
    groups = Counter(".".join(name.split(".")[:2]) for name in names)
    listed = ", ".join(f"{count} of {group}" if count > 1 else group
                       for group, count in sorted(groups.items()))
    return f"; not needed of the file: {listed}" if groups else ""


def read_json(path: Path) -> dict:
    """The JSON object in a file. UserError if there is none."""
    if not path.is_file():
        raise UserError(f"{path.parent}: holds no {path.name}; a folder of open weights has one, and a part "
                        "of this project is a .pt file")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as err:
        raise UserError(f"{path}: not readable as JSON ({str(err)[:100]}); download it again") from None
    if not isinstance(content, dict):
        raise UserError(f"{path}: must hold an object {{...}}; download it again")
    return content


def read_tensors(folder: Path) -> State:
    """All tensors of a folder's safetensors files, which may be several (shards)."""
    state: State = {}
    for path in _files(folder):
        tensors = read_file(path)
        if twice := state.keys() & tensors.keys():
            raise UserError(f"{path}: the tensor {min(twice)} is in another file of the folder too")
        state |= tensors
    return state


def read_file(path: Path) -> State:
    """The tensors of a safetensors file. UserError if it is damaged or holds anything but floats."""
    try:
        with safe_open(path, framework="pt") as file:
            state = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a dict
    except (SafetensorError, OSError, ValueError, RuntimeError) as err:
        raise UserError(f"{path}: not readable as safetensors ({str(err)[:100]}); get it again") from None
    for name, tensor in state.items():
        if tensor.dtype not in FLOATS:
            raise UserError(f"{path}: {name} is {str(tensor.dtype).removeprefix('torch.')}; only fp32, fp16 "
                            "and bf16 weights can be used, not quantised ones")
    return state


def _files(folder: Path) -> list[Path]:
    index = folder / "model.safetensors.index.json"
    if index.is_file():
        shards = read_json(index).get("weight_map")
        names = sorted({*map(str, shards.values())}) if isinstance(shards, dict) else []
        for name in names:
            if Path(name).name != name or "\\" in name:
                raise UserError(f"{index}: {name} is not a file of its folder")
            if not (folder / name).is_file():
                raise UserError(f"{folder}: lacks the shard {name}; download it")
        if not names:
            raise UserError(f'{index}: has no usable "weight_map"; download it again')
        return [folder / name for name in names]
    whole = folder / "model.safetensors"
    if whole.is_file():
        return [whole]
    pickled = next((path.name for path in sorted(folder.glob("*"))
                    if path.suffix in (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack")), None)
    if pickled:
        raise UserError(f"{folder}: holds {pickled}, which is never read since it can run code; get "
                        "model.safetensors: most repositories of the Hub have it, on main or as a pull "
                        "request (hf:OWNER/NAME@refs/pr/NUMBER), and transformers' save_pretrained writes it")
    raise UserError(f"{folder}: holds no model.safetensors; download it")


def thinker_arch(config: dict, where: str | Path) -> ThinkerArch:
    """The shape of the language model that a published config.json describes.

    UserError that names the key if the model is one that the Thinker can't compute.
    """
    kind = config.get("model_type")
    if kind not in ("llama", "qwen2", "qwen3"):
        raise UserError(f'{where}: "model_type" {kind!r} is not supported; llama (SmolLM2 too), qwen2 and '
                        "qwen3 are")
    absent = (False, None)
    try:
        require(config, hidden_act="silu", mlp_bias=absent, use_sliding_window=absent,
                quantization_config=None, partial_rotary_factor=(1, None))
        if kind != "qwen2":  # which always has biases, on q, k and v
            require(config, attention_bias=absent)
    except ValueError as err:
        raise UserError(f"{where}: {err}") from None
    if any(layer != "full_attention" for layer in config.get("layer_types") or ()):
        raise UserError(f'{where}: "layer_types" other than full_attention are not supported')
    theta, scaling = _rope(config, where)
    try:
        heads, width = config["num_attention_heads"], config["hidden_size"]
        values = {
            "vocab_size": config["vocab_size"], "width": width, "layers": config["num_hidden_layers"],
            "heads": heads, "kv_heads": config.get("num_key_value_heads") or heads,
            "head_dim": config.get("head_dim") or width // heads, "mlp_width": config["intermediate_size"],
            "qk_norm": kind == "qwen3", "qkv_bias": kind == "qwen2",
            "tied_head": config.get("tie_word_embeddings", False),
            "rope_theta": theta, "rope_scaling": scaling, "norm_eps": config.get("rms_norm_eps", 1e-6),
            "max_positions": config.get("max_position_embeddings", 2048)}
    except (KeyError, TypeError, ZeroDivisionError) as err:
        raise UserError(f"{where}: lacks a usable {err}") from None
    return build(ThinkerArch, values, str(where))


def _rope(config: dict, where: str | Path) -> tuple[float, dict | None]:
    """The base of the rotary frequencies, and Llama 3's scaling of them (None: plain).

    Published configs have `rope_theta` and `rope_scaling`; transformers 5 writes both as `rope_parameters`.
    """
    key = "rope_parameters" if config.get("rope_parameters") else "rope_scaling"
    rope = config.get(key) or {}
    if not isinstance(rope, dict):
        raise UserError(f'{where}: "{key}" must be an object')
    theta = rope.get("rope_theta", config.get("rope_theta", 10000.0))
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind == "default":
        return theta, None
    scaling = {name: rope.get(name) for name in LLAMA3_ROPE}
    if kind != "llama3" or not all(type(value) in (int, float) and value > 0 for value in scaling.values()):
        raise UserError(f'{where}: "{key}" {json.dumps(rope)[:120]} is not supported; the types default and '
                        "llama3 are")
    return theta, scaling


def _thinker_state(state: State, arch: ThinkerArch, folder: Path) -> tuple[State, list[str]]:
    """The Thinker's weights by its own names, and the names of those that it doesn't need."""
    unwanted = [name for name in state if name.endswith("rotary_emb.inv_freq")]  # computed here
    own = {name.removeprefix("model."): tensor for name, tensor in state.items() if name not in unwanted}
    if arch.tied_head and "lm_head.weight" in own:
        head, embedding = own.pop("lm_head.weight"), own.get("embed_tokens.weight")
        if embedding is None or not torch.equal(head, embedding):
            raise UserError(f"{folder}: lm_head.weight differs from the embedding, though "
                            '"tie_word_embeddings" says that they are one; download both again')
        unwanted.append("lm_head.weight")
    if not arch.tied_head and "lm_head.weight" not in own:
        raise UserError(f'{folder}: lacks lm_head.weight, which "tie_word_embeddings": false of config.json '
                        "asks for; download all shards again")
    return own, unwanted


def _ends(config: dict) -> list[int]:
    """The end tokens that a config names: none, one or several."""
    ends = config.get("eos_token_id")
    ends = ends if isinstance(ends, list) else [ends]
    return [end for end in ends if type(end) is int]
