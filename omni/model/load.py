"""Parts from their checkpoints, and the whole system from the file that a run wrote."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

from omni import checkpoint
from omni.config import AudioArch, SFTConfig, ThinkerArch, VisionArch
from omni.console import say
from omni.data.tokenizer import Tokenizer
from omni.errors import UserError
from omni.model.audio_encoder import AudioEncoder
from omni.model.omni import OmniNetwork
from omni.model.thinker import Thinker
from omni.model.vision_encoder import VisionEncoder

CONFIGS = Path(__file__).resolve().parents[2] / "configs"


def load_parts(config: SFTConfig) -> OmniNetwork:
    """A system of the three parts in their checkpoints and new projectors. Prints a line about each part."""
    thinker = partial(Thinker, activation_checkpointing=config.activation_checkpointing)
    parts, tokenizer = [], None
    for path, kind, module, arch, made_by in (
            (config.thinker_ckpt, "thinker", thinker, ThinkerArch, "thinker_tiny"),
            (config.audio_ckpt, "audio_encoder", AudioEncoder, AudioArch, "audio_enc_tiny"),
            (config.vision_ckpt, "vision_encoder", VisionEncoder, VisionArch, "vision_tiny")):
        folder = Path(path).parent.name  # a part is written into the folder of its config's name
        maker = folder if (CONFIGS / f"{folder}.json").is_file() else made_by
        remedy = f"make it: python -m omni.pretrain --config configs/{maker}.json"
        content = checkpoint.load(path, kind, remedy)
        part, line = checkpoint.build_part(module, arch, content, kind, path)
        say(line)
        parts.append(part)
        if kind == "thinker":
            tokenizer = _tokenizer(content, part, path)
    return OmniNetwork(tokenizer, *parts, freeze_encoders=config.freeze_encoders,
                       label_smoothing=config.label_smoothing)


def load_system(content: dict, where: str,
                make: Callable[..., OmniNetwork] = OmniNetwork) -> OmniNetwork:
    """The system in `content`, which is what `OmniNetwork.content` returned; loaded strictly.

    `make` builds it from its tokenizer and parts.
    """
    kinds = {"thinker": (Thinker, ThinkerArch), "audio_encoder": (AudioEncoder, AudioArch),
             "vision_encoder": (VisionEncoder, VisionArch)}
    parts = [checkpoint.build_part(*part, content.get(name), name, where)[0]
             for name, part in kinds.items()]
    projectors = content.get("projectors")
    if not isinstance(projectors, dict):
        raise UserError(f"{where}: lacks the projectors")
    model = make(_tokenizer(content, parts[0], where), *parts)
    parts_state = {k: v for k, v in model.state_dict().items() if "_projector." not in k}
    checkpoint.load_state(model, parts_state | projectors, "omni", where)
    return model.eval()


def _tokenizer(content: dict, thinker: Thinker, where: str) -> Tokenizer:
    """The tokenizer of a checkpoint, checked against the Thinker that it is for."""
    try:
        tokenizer = Tokenizer(content["tokenizer"])
    except Exception as err:  # tokenizers raises plain Exception
        raise UserError(f"{where}: holds no usable tokenizer ({str(err)[:80]})") from None
    if len(tokenizer) > thinker.arch.vocab_size:
        raise UserError(f"{where}: {len(tokenizer)} tokens, but only {thinker.arch.vocab_size} embeddings")
    return tokenizer
