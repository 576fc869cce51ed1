"""Parts from checkpoints or folders of open weights, and whole systems from the file that a run wrote."""

import dataclasses
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import nn

from omni.base import checkpoint, hub
from omni.base.config import AudioArch, SFTConfig, SiglipArch, ThinkerArch, VisionArch, WhisperArch
from omni.base.console import say
from omni.base.device import computes_in_bf16
from omni.base.errors import UserError
from omni.data.tokenizer import Tokenizer
from omni.model import lora, pretrained
from omni.model.audio_encoder import AudioEncoder
from omni.model.omni import OmniNetwork
from omni.model.projector import words_hash
from omni.model.siglip import SiglipEncoder
from omni.model.thinker import Thinker
from omni.model.vision_encoder import VisionEncoder
from omni.model.whisper import WhisperEncoder

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
# The modules that a part can be. The name of its arch is in its checkpoint; older ones have the first.
KINDS = {"thinker": {"ThinkerArch": (Thinker, ThinkerArch)},
         "audio_encoder": {"AudioArch": (AudioEncoder, AudioArch),
                           "WhisperArch": (WhisperEncoder, WhisperArch)},
         "vision_encoder": {"VisionArch": (VisionEncoder, VisionArch),
                            "SiglipArch": (SiglipEncoder, SiglipArch)}}
FOLDERS = {"audio_encoder": pretrained.load_audio_encoder, "vision_encoder": pretrained.load_vision_encoder}
# Keys of a config, and the field of an encoder's arch that each one changes.
CHANGES = {"audio_encoder": {"audio_window": "window", "audio_stack": "stack"},
           "vision_encoder": {"image_merge": "merge"}}


class Part(NamedTuple):
    """A part of a system, as its file or folder has it."""

    module: nn.Module
    line: str  # about its tensors
    tokenizer: Tokenizer | None = None  # a Thinker's
    projector: dict | None = None  # an encoder's: the weights, and the hash of the Thinker's words


def load_for_training(config: SFTConfig, device: torch.device) -> OmniNetwork:
    """The system that a run trains, on its device: what is frozen is frozen, adapters are added."""
    model = load(config, partial(OmniNetwork, frozen=config.frozen, label_smoothing=config.label_smoothing))
    model.thinker.activation_checkpointing = config.activation_checkpointing
    if config.lora_rank:
        alpha = 2.0 * config.lora_rank if config.lora_alpha is None else config.lora_alpha
        lora.add_adapters(model.thinker, config.lora_rank, alpha, config.lora_targets)
    if computes_in_bf16(device, config.precision):
        model.store_frozen(torch.bfloat16, lossy=device.type == "cuda")
    return model.to(device).train()


def load(config: SFTConfig, make: Callable[..., OmniNetwork] = OmniNetwork,
         report: Callable[[str], None] = say) -> OmniNetwork:
    """The system that a config names: three parts and new projectors, or a whole one.

    `make` builds it from its tokenizer and parts; `report` gets a line about each part.
    """
    if config.system_ckpt is not None:
        content = checkpoint.load(hub.locate(config.system_ckpt), "omni", "a run of sft_omni.py writes it")
        model = load_system(content, config.system_ckpt, make)
        parameters = sum(p.numel() for p in model.parameters())
        report(f"{config.system_ckpt}: a whole system, {parameters:,} parameters")
        return model
    thinker = _load_part(config, "thinker_ckpt", "thinker", "thinker_tiny")
    report(thinker.line)
    audio = _load_part(config, "audio_ckpt", "audio_encoder", "audio_enc_tiny")
    report(audio.line)
    vision = _load_part(config, "vision_ckpt", "vision_encoder", "vision_tiny")
    report(vision.line)
    model = make(thinker.tokenizer, thinker.module, audio.module, vision.module)
    words = words_hash(thinker.module.embed_tokens.weight)
    for name, part, place, key in (
            ("audio_projector", audio, config.audio_ckpt, "audio_alignment_clips"),
            ("vision_projector", vision, config.vision_ckpt, "vision_alignment_images")):
        if part.projector is None:
            continue
        projector = getattr(model, name)
        if misfit := _misfit(projector, part.projector, words):
            report(f"{place}: its projector {misfit}, so a new one is trained")
        elif getattr(config, key):
            raise UserError(f'"{key}" is for a new projector, and {place} brings one that is fitted already; '
                            "remove the key")
        else:
            report(checkpoint.load_state(projector, part.projector["state"], name, place))
    return model


def _misfit(projector: nn.Module, pretrained: dict, words: str) -> str:
    """Why a pretrained projector isn't for a Thinker with these `words`; "" if it is."""
    if not isinstance(pretrained, dict) or pretrained.get("words_of") != words:
        return "is for the words of another Thinker"
    state = pretrained.get("state")
    if not isinstance(state, dict) or {k: v.shape for k, v in state.items()} != \
            {k: v.shape for k, v in projector.state_dict().items()}:
        return "has another shape"
    return ""


def _load_part(config: SFTConfig, key: str, name: str, made_by: str) -> Part:
    """The part that the config's `key` names."""
    place, path = getattr(config, key), hub.locate(getattr(config, key))
    changes = {field: getattr(config, own) for own, field in CHANGES.get(name, {}).items()
               if getattr(config, own) is not None}
    if place and path.is_dir():
        if name == "audio_encoder" and config.audio_words_first:
            raise _headless(place)
        if name == "thinker":
            module, tokenizer, line = pretrained.load_thinker(path)
            return Part(module, line, tokenizer)
        return Part(*FOLDERS[name](path, **changes))
    folder = path.parent.name  # a part is written into the folder of its config's name
    maker = folder if (CONFIGS / f"{folder}.json").is_file() else made_by
    content = checkpoint.load(path, (name, "omni"),
                              f"make it: python -m omni.pretrain --config configs/{maker}.json")
    whole = content["kind"] == "omni"  # one part of a finished system
    part = content.get(name) if whole else content
    if name == "audio_encoder" and config.audio_words_first:
        part = _with_words_first(part, place)
    module, line = _build(part, name, place, changes)
    tokenizer = _tokenizer(content, module, place) if name == "thinker" else None
    return Part(module, line, tokenizer, None if whole else content.get("projector"))


def _with_words_first(content: object, place: str) -> object:
    """An audio encoder's checkpoint, with its CTC head as a part of the encoder (WordsFirst)."""
    arch, state = ((content if isinstance(content, dict) else {}).get(key) for key in ("arch", "state"))
    if not isinstance(arch, dict) or not isinstance(state, dict) or arch.get("ctc_outputs"):
        return content  # can't be built, or does so already
    head = content.get("ctc_head")
    if not isinstance(head, dict) or not isinstance(head.get("bias"), torch.Tensor):
        raise _headless(place)
    state = state | {f"words_first.{name}": tensor for name, tensor in head.items()}
    return {**content, "arch": {**arch, "ctc_outputs": len(head["bias"])}, "state": state}


def _headless(place: str) -> UserError:
    return UserError(f'"audio_words_first" needs an encoder with a CTC head, and {place} has none; train it '
                     "with stage B, or remove the key")


def load_encoder(place: str, name: str) -> tuple[nn.Module, dict]:
    """The encoder `name` in a checkpoint or a published folder, and the checkpoint ({} for a folder)."""
    path = hub.locate(place)
    if path.is_dir():
        return FOLDERS[name](path)[0], {}
    content = checkpoint.load(path, name, "make it with an earlier stage")
    return _build(content, name, place)[0], content


def load_system(content: dict, where: str,
                make: Callable[..., OmniNetwork] = OmniNetwork) -> OmniNetwork:
    """The system in `content`, which is what `OmniNetwork.content` returned; loaded strictly.

    `make` builds it from its tokenizer and parts.
    """
    parts = [_build(content.get(name), name, where, assign=True)[0] for name in KINDS]
    projectors = content.get("projectors")
    if not isinstance(projectors, dict):
        raise UserError(f"{where}: lacks the projectors")
    model = make(_tokenizer(content, parts[0], where), *parts)
    parts_state = {k: v for k, v in model.state_dict().items() if "_projector." not in k}
    checkpoint.load_state(model, parts_state | projectors, "omni", where)
    return model.eval()


def _build(content: dict, name: str, where: str, changes: dict | None = None,
           assign: bool = False) -> tuple[nn.Module, str]:
    """The part `name` in `content`, with `changes` of its arch, and the line about its tensors."""
    kinds = KINDS[name]
    first = next(iter(kinds))
    kind = content.get("arch_type", first) if isinstance(content, dict) else first
    if kind not in kinds:
        raise UserError(f"{where}: its {name} is of the unknown type {kind!r}; use a newer version")
    if changes:
        known = {field.name for field in dataclasses.fields(kinds[kind][1])}
        for field in changes.keys() - known:
            key = next(own for own, changed in CHANGES[name].items() if changed == field)
            raise UserError(f'{where}: "{key}" is for Whisper, and this encoder is not one; remove the key')
        content = {**content, "arch": {**content["arch"], **changes}}
    return checkpoint.build_part(*kinds[kind], content, name, where, assign)


def _tokenizer(content: dict, thinker: Thinker, where: str) -> Tokenizer:
    """The tokenizer of a checkpoint, checked against the Thinker that it is for."""
    try:
        tokenizer = Tokenizer.from_content(content["tokenizer"])
    except Exception as err:  # tokenizers raises plain Exception
        raise UserError(f"{where}: holds no usable tokenizer ({str(err)[:80]})") from None
    if len(tokenizer) > thinker.arch.vocab_size:
        raise UserError(f"{where}: {len(tokenizer)} tokens, but only {thinker.arch.vocab_size} embeddings")
    return tokenizer
