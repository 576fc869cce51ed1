"""The configs as frozen dataclasses: the type, default and allowed range of every key.

Whatever is wrong with a config is reported in one line, with the key, the value and what is allowed, before
a model or data is loaded.
"""

import dataclasses
import difflib
import json
import math
import types
import typing
from dataclasses import dataclass, field

from omni.base.errors import UserError


def _key(default=dataclasses.MISSING, *, low=None, high=None, above=None, choices=None, word=None,
         factory=None):
    """A dataclass field with its range: low <= value <= high, value > above, or one of `choices`.

    `word` is allowed in place of a number.
    """
    check = {"low": low, "high": high, "above": above, "choices": choices, "word": word}
    if factory is not None:
        return field(default_factory=factory, metadata=check)
    return field(metadata=check) if default is dataclasses.MISSING else field(default=default, metadata=check)


ENCODERS = ("audio", "vision")
SCHEDULES = ("cosine", "constant", "wsd")
PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")  # of a block


@dataclass(frozen=True)
class SFTConfig:
    """Stage E, `sft_omni.py`: multimodal supervised fine-tuning."""

    # Parts: a .pt of this project, a folder of open weights, or hf:OWNER/NAME[@REVISION]
    thinker_ckpt: str = "checkpoints/thinker_tiny/thinker_best.pt"
    audio_ckpt: str = "checkpoints/audio_enc_tiny/audio_enc.pt"
    vision_ckpt: str = "checkpoints/vision_tiny/vision.pt"
    system_ckpt: str | None = None  # an omni_final.pt to train further, in place of the three parts
    audio_window: str | None = _key(None, choices=("clip", "30s"))  # what Whisper encodes; None: the clip
    audio_stack: int | None = _key(None, low=1, high=16)  # Whisper's frames per token; None: 4, 12.5 tokens/s
    audio_words_first: bool = False  # one feature for each piece that the CTC head hears, then silence
    image_merge: int | None = _key(None, choices=(None, 1, 2, 3, 4))  # patches a side per token; None: 2 or 3
    # Data: source name -> weight, or -> {"weight": w, "train": PATH, "val": PATH, share or null, ...}
    data_mix: dict = _key(factory=lambda: {"text_only": 0.4, "image_text": 0.3, "audio_text": 0.3})
    data_dir: str = "data/tiny"
    samples_per_epoch: int | None = _key(None, low=1, high=10 ** 12)  # None: as many as all sources have
    max_length: int = _key(512, low=16, high=2 ** 20)  # tokens per sample; longer prompts lose their start
    augment_takes: int = _key(2, low=1, high=100)  # versions of each medium; the first is the original
    allow_outside_paths: bool = False  # allow media outside the manifest's folder
    check_media: str = _key("auto", choices=("auto", "first", "drawn"))  # before the first step, or as drawn
    max_skipped: float = _key(0.05, low=0.0, high=1.0)  # largest share of unusable samples in a source
    decode_timeout_s: float = _key(20.0, above=0.0, high=3600.0)  # a medium that takes longer is unusable
    # What is trained
    freeze_encoders: bool | list = True  # or a list of those that are frozen: ["audio"], ["vision"]
    freeze_thinker: bool = False  # train the projectors alone (and encoders that aren't frozen)
    lora_rank: int = _key(0, low=0, high=4096)  # above 0: train low-rank adapters in place of the Thinker
    lora_alpha: float | None = _key(None, above=0.0, high=1e6)  # None: twice the rank
    lora_targets: list = _key(factory=lambda: list(PROJECTIONS))
    # How many clips and images new projectors are first fitted to
    audio_alignment_clips: int = _key(0, low=0, high=10 ** 6)
    vision_alignment_images: int = _key(0, low=0, high=10 ** 6)
    # Optimisation
    batch_size: int = _key(8, low=1, high=2 ** 16)  # samples per step, over all micro-batches and ranks
    gradient_accumulation_steps: int = _key(1, low=1, high=2 ** 16)  # micro-batches per step
    num_epochs: int = _key(5, low=1, high=10 ** 6)
    learning_rate: float = _key(1e-4, above=0.0, high=1.0)
    projector_learning_rate: float = _key(1e-3, above=0.0, high=1.0)
    # None: projector_learning_rate. A lower one keeps what the audio projector was first fitted to
    audio_projector_learning_rate: float | None = _key(None, above=0.0, high=1.0)
    encoder_learning_rate: float = _key(1e-5, above=0.0, high=1.0)  # with freeze_encoders: false
    warmup_steps: int = _key(100, low=0, high=10 ** 9)
    # After the warm-up: a cosine to the last rate; none; or wsd: constant, then linear in the last fifth
    schedule: str = _key("cosine", choices=SCHEDULES)
    min_learning_rate_ratio: float = _key(0.02, low=0.0, high=1.0)  # last learning rate / peak
    weight_decay: float = _key(0.01, low=0.0, high=100.0)
    grad_clip: float = _key(1.0, above=0.0)
    label_smoothing: float = _key(0.0, low=0.0, high=0.9)  # of the training loss
    max_bad_steps: int = _key(10, low=1, high=10 ** 6)  # skipped steps in a row that end the run
    # Evaluation
    eval_batch_size: int = _key(64, low=1, high=2 ** 16)
    eval_samples: int | None = _key(None, low=1)  # held-out samples per source; None: all
    # Longest generated answer; None: half as long again as the longest reference of a held-out set
    max_new_tokens: int | None = _key(None, low=1, high=2 ** 16)
    best_by: str = "val_loss"  # the figure by which omni_best.pt is chosen, such as "audio_wer"
    stop_after: int | None = _key(None, low=1)  # epochs without a better one; None: all epochs are trained
    # The run
    save_dir: str | None = None  # None: checkpoints/<config name>
    save_every_steps: int = _key(500, low=1)
    save_every_minutes: float = _key(10.0, above=0.0)  # whichever of the two comes first
    keep_checkpoints: int = _key(2, low=1)
    log_every_steps: int = _key(20, low=1)
    feature_cache_gb: float = _key(20.0, low=0.0, high=1e6)  # on the disk, for features of frozen encoders
    feature_cache_dir: str | None = None  # None: the user's cache folder, which all runs share
    track: str | None = _key(None, choices=(None, "wandb", "trackio"))  # follow the run there too
    # "auto": as many processes decode media before training as there are cores, and none prepares batches
    num_workers: int | str = _key("auto", low=0, high=256, word="auto")
    parallel: str = _key("auto", choices=("auto", "ddp", "fsdp"))  # under torchrun; auto: ddp
    compile: bool | str = _key("auto", choices=("auto", True, False))  # the blocks; auto: large ones on CUDA
    cuda_graphs: bool | str = _key("auto", choices=("auto", True, False))  # of steps; auto: small Thinkers
    activation_checkpointing: bool = False  # recompute blocks in the backward pass: less memory, more time
    device: str = _key("auto", choices=("auto", "cpu", "cuda", "mps"))
    precision: str = _key("auto", choices=("auto", "fp32", "bf16"))
    seed: int = _key(0, low=0, high=2 ** 63)

    @property
    def frozen(self) -> frozenset[str]:
        """The parts that are not trained: some of "thinker", "audio", "vision"."""
        encoders = self.freeze_encoders
        if isinstance(encoders, bool):
            encoders = ENCODERS if encoders else ()
        return frozenset(encoders) | ({"thinker"} if self.freeze_thinker else frozenset())


@dataclass(frozen=True)
class ThinkerArch:
    """Shape of the Thinker: that of Llama, Qwen2 (qkv_bias) or Qwen3 (qk_norm)."""

    vocab_size: int = _key(0, low=0, high=2 ** 24)  # 0 in a pretraining config: that of its tokenizer
    width: int = _key(256, low=8, high=2 ** 18)
    layers: int = _key(4, low=1, high=1024)
    heads: int = _key(8, low=1, high=1024)
    kv_heads: int = _key(4, low=1, high=1024)
    head_dim: int = _key(32, low=2, high=2 ** 18)
    mlp_width: int = _key(704, low=1, high=2 ** 18)
    qk_norm: bool = True
    qkv_bias: bool = False
    tied_head: bool = True
    rope_theta: float = _key(10000.0, above=0.0)
    rope_scaling: dict | None = None  # Llama 3's: factor, low_freq_factor, high_freq_factor, original length
    norm_eps: float = _key(1e-6, above=0.0)
    max_positions: int = _key(4096, low=1, high=2 ** 40)  # tokens of a sample that it was made for


@dataclass(frozen=True)
class AudioArch:
    """Shape of the audio encoder: convolutions to 12.5 or 25 frames/s, then transformer layers."""

    width: int = _key(192, low=8, high=2 ** 18)
    layers: int = _key(4, low=1, high=1024)
    heads: int = _key(6, low=1, high=1024)
    mlp_width: int = _key(512, low=1, high=2 ** 18)
    stem_channels: int = _key(32, low=1, high=2 ** 18)
    conv_kernel: int = _key(9, low=1, high=1025)  # depthwise convolution inside each layer, in frames
    frames_per_second: float = _key(12.5, choices=(12.5, 25.0))
    level: str = _key("clip", choices=("clip", "speech"))  # what a log-mel is normalised over
    ctc_outputs: int = _key(0, low=0, high=2 ** 18)  # of a head that reorders (WordsFirst); 0: none


@dataclass(frozen=True)
class VisionArch:
    """Shape of the vision encoder (ViT with a convolutional patch stem)."""

    image_size: int = _key(128, low=32, high=8192)
    patch_size: int = _key(16, choices=(4, 8, 16, 32))
    stem_blocks: int = _key(0, low=0, high=64)  # residual blocks of convolutions after each halving
    width: int = _key(192, low=8, high=2 ** 18)
    layers: int = _key(4, low=1, high=1024)
    heads: int = _key(6, low=1, high=1024)
    mlp_width: int = _key(512, low=1, high=2 ** 18)
    merge: int = _key(2, choices=(1, 2, 3, 4))  # patches a side that are joined to one token


@dataclass(frozen=True)
class WhisperArch:
    """Shape of Whisper's encoder (Radford et al. 2022), how it is used, and how many frames make a token."""

    mels: int = _key(80, choices=(80, 128))
    width: int = _key(384, low=8, high=2 ** 18)
    layers: int = _key(4, low=1, high=1024)
    heads: int = _key(6, low=1, high=1024)
    mlp_width: int = _key(1536, low=1, high=2 ** 18)
    positions: int = _key(1500, low=1, high=2 ** 18)  # frames, 50 per second
    window: str = _key("clip", choices=("clip", "30s"))  # "clip": its length and half a second of silence
    stack: int = _key(4, low=1, high=16)  # frames that are joined to one token
    ctc_outputs: int = _key(0, low=0, high=2 ** 18)  # of a head that reorders (WordsFirst); 0: none


@dataclass(frozen=True)
class SiglipArch:
    """Shape of SigLIP's vision encoder (Zhai et al. 2023), and how an image is resized for it."""

    image_size: int = _key(224, low=8, high=8192)
    patch_size: int = _key(16, low=1, high=1024)
    width: int = _key(768, low=8, high=2 ** 18)
    layers: int = _key(12, low=1, high=1024)
    heads: int = _key(12, low=1, high=1024)
    mlp_width: int = _key(3072, low=1, high=2 ** 18)
    norm_eps: float = _key(1e-6, above=0.0)
    resample: str = _key("bicubic", choices=("bicubic", "bilinear"))
    merge: int = _key(2, choices=(1, 2, 3, 4))  # patches a side that are joined to one token


@dataclass(frozen=True)
class PretrainConfig:
    """Stages A (Thinker), B (audio encoder) and C (vision encoder), `python -m omni.pretrain`."""

    stage: str = _key("thinker", choices=("thinker", "audio", "vision", "vision_boxes", "audio_projector",
                                           "vision_projector"))
    train: str | list = ""  # a manifest, or several
    val: str | list = ""
    output: str = ""
    arch: dict = _key(factory=dict)
    num_epochs: int = _key(10, low=1)
    batch_size: int = _key(32, low=1)
    learning_rate: float = _key(1e-3, above=0.0, high=1.0)
    warmup_steps: int = _key(100, low=0)
    min_learning_rate_ratio: float = _key(0.02, low=0.0, high=1.0)
    weight_decay: float = _key(0.05, low=0.0)
    optimizer: str = _key("adamw", choices=("adamw", "muon"))  # muon: for matrices, AdamW for the rest
    grad_clip: float = _key(1.0, above=0.0)
    max_length: int = _key(512, low=16)
    allow_outside_paths: bool = False
    save_every_minutes: float = _key(10.0, above=0.0)  # for --resume
    device: str = _key("auto", choices=("auto", "cpu", "cuda", "mps"))
    precision: str = _key("auto", choices=("auto", "fp32", "bf16"))
    seed: int = _key(0, low=0, high=2 ** 63)
    # Stages A and C
    vocab_size: int = _key(1200, low=300)  # of the byte-level BPE trained on `train`
    reading_share: float = _key(0.3, low=0.0, high=1.0)  # Stage A: share of samples that are speech to read
    # Stage A: manifests of clips, and the encoder of stage B. The Thinker reads what that hears in them
    clips: str | list = ""
    audio_encoder: str | None = None
    # Stages A and B: how many subwords the audio encoder outputs and the Thinker learns to read. None: those
    # of `start`, or 192
    speech_pieces: int | None = _key(None, low=30)
    decoder: dict = _key(factory=dict)  # Stage C: the captioning decoder, not kept afterwards
    # Stage A: a Thinker to train further, with its tokenizer. Stages B and C: an encoder, in place of `arch`
    start: str | None = None
    head_learning_rate: float | None = _key(None, above=0.0, high=1.0)  # Stage B: of the CTC head
    thinker: str | None = None  # Projectors: the Thinker to whose words they map the features of `start`
    photographs: list = _key(factory=list)  # Stage C: manifests of `train` to augment as photographs


def _type_names(kinds: tuple) -> list[str]:
    names = {int: "a whole number", float: "a number", str: "a string", bool: "true or false",
             dict: "an object {...}", list: "a list", types.NoneType: "null"}
    return [names[kind] for kind in kinds]


def _check_value(f: dataclasses.Field, kind, value):
    """`value` converted to the field's type. A ValueError says what is allowed."""
    allowed = typing.get_args(kind) or (kind,)
    if float in allowed and isinstance(value, int) and not isinstance(value, bool):
        value = float(value) if abs(value) < 1e300 else math.inf
    m, words = f.metadata, []
    if m.get("word") is not None:
        if value == m["word"]:
            return value
        allowed, words = [k for k in allowed if k is not str], [json.dumps(m["word"])]
    if type(value) not in allowed or (isinstance(value, float) and not math.isfinite(value)):
        raise ValueError("must be " + " or ".join(_type_names(allowed) + words))
    if value is None or not m:
        return value
    if m["choices"] is not None and value not in m["choices"]:
        raise ValueError(f"must be one of {', '.join(map(str, m['choices']))}")
    if m["low"] is not None and value < m["low"]:
        raise ValueError(f"must be at least {m['low']}")
    if m["above"] is not None and value <= m["above"]:
        raise ValueError(f"must be above {m['above']:g}")
    if m["high"] is not None and value > m["high"]:
        raise ValueError(f"must be at most {m['high']:g}")
    return value


def checked(cls, name: str, value):
    """`value` as the field `name` of the dataclass `cls`. A ValueError says what is allowed."""
    return _check_value(cls.__dataclass_fields__[name], typing.get_type_hints(cls)[name], value)


def _shown(value) -> str:  # a checkpoint may hold values that JSON can't
    return json.dumps(value, default=lambda other: type(other).__name__, skipkeys=True)


def build(cls, values, where: str):
    """The dataclass `cls` made of the dict `values`, read from `where`; UserError with all problems."""
    if not isinstance(values, dict):
        raise UserError(f"{where}: must be an object {{...}}, not {_shown(values)[:60]}")
    fields = {f.name: f for f in dataclasses.fields(cls)}
    kinds = typing.get_type_hints(cls)
    checked, problems = {}, []
    for name, value in values.items():
        if name not in fields:
            near = difflib.get_close_matches(str(name), fields, n=1, cutoff=0.5)
            hint = f'did you mean "{near[0]}"?' if near else f"known keys: {', '.join(fields)}"
            problems.append(f"unknown key {_shown(name)}; {hint}")
            continue
        try:
            checked[name] = _check_value(fields[name], kinds[name], value)
        except ValueError as err:
            problems.append(f'"{name}" {err}, not {_shown(value)[:80]}')
    if problems:
        raise UserError(f"{where}: " + "; ".join(problems))
    return cls(**checked)
