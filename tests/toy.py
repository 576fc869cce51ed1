"""Toy data and toy parts: a whole run takes seconds, with the same code that users run."""

import json
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
import torch
from PIL import Image, ImageDraw

from omni.base import checkpoint
from omni.base.config import AudioArch, SFTConfig, ThinkerArch, VisionArch, build
from omni.data import manifest
from omni.data.collate import Collator
from omni.data.media_reader import MediaReader
from omni.data.sample import Sample
from omni.data.speech_pieces import SpeechPieces
from omni.data.tokenizer import Tokenizer
from omni.model.audio_encoder import AudioEncoder
from omni.model.load import load_for_training
from omni.model.omni import OmniNetwork
from omni.model.thinker import Thinker
from omni.model.vision_encoder import VisionEncoder

COLORS = ("red", "green", "blue", "white")
SHAPES = ("circle", "square")
WORDS = ("low", "middle", "high", "very high")
SOURCES = ("text_only", "image_text", "audio_text", "image_audio_text")


@dataclass
class Toy:
    """A folder with toy manifests and parts, and the config of a run on them."""

    root: Path
    config: dict

    def write(self, folder: Path, **changes) -> str:
        """A config file in `folder` whose run goes to `folder/out`; returns its path."""
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "toy.json"
        places = {"save_dir": str(folder / "out"), "feature_cache_dir": str(folder / "features")}
        path.write_text(json.dumps(self.config | places | changes), encoding="utf-8")
        return str(path)

    def model(self, **changes) -> OmniNetwork:
        torch.manual_seed(0)
        return load_for_training(build(SFTConfig, {**self.config, **changes}, "toy"), torch.device("cpu"))

    def samples(self, source: str, split: str = "train") -> list[Sample]:
        return manifest.read(str(self.root / "data" / source / f"{split}.jsonl")).samples

    def collator(self, model: OmniNetwork, features=None) -> Collator:
        reader = MediaReader(model.vision_encoder.arch, model.audio_encoder.arch)
        return Collator(model.tokenizer, reader, model.image_tokens, model.audio_encoder.lengths, 256,
                        features)


def draw(path: Path, color: str, shape: str, place: int) -> None:
    picture = Image.new("RGB", (48, 40), (40, 40, 40 + 10 * place))
    box = (6 + place, 6, 26 + place, 26)
    pen = ImageDraw.Draw(picture)
    (pen.ellipse if shape == "circle" else pen.rectangle)(box, fill=color)
    picture.save(path)


def tone(path: Path, level: int, number: int) -> None:
    rate = (16_000, 22_050)[number % 2]
    t = np.arange(int(rate * (0.3 + 0.06 * number))) / rate
    soundfile.write(path, 0.3 * np.sin(2 * math.pi * 200 * 2 ** level * t), rate)


def conversation(question: str, answer: str, **media) -> dict:
    return {"messages": [{"role": "user", "content": question}, {"role": "assistant", "content": answer}],
            **media}


def make_lines(folder: Path, source: str, split: str, count: int) -> list[dict]:
    lines = []
    for i in range(count):
        n = i + (20 if split == "val" else 0)
        color, shape, level = COLORS[n % 4], SHAPES[n // 2 % 2], n % 4
        picture, clip = f"{split}_{i}.png", f"{split}_{i}.{'ogg' if i % 3 == 0 else 'wav'}"
        if "image" in source:
            draw(folder / picture, color, shape, i)
        if "audio" in source:
            tone(folder / clip, level, i)
        if source == "text_only":
            lines.append(conversation(f"What is {n % 5} plus {n % 3}?", f"It is {n % 5 + n % 3}."))
        elif source == "image_text":
            lines.append(conversation("<image>What color?", color, images=[picture]) if i % 2 else
                         conversation("What shape? <image>", shape, images=[picture]))
        elif source == "audio_text":
            lines.append(conversation("<audio>Transcribe.", WORDS[level], audios=[clip]))
        else:
            lines.append(conversation("<image><audio>What is seen and heard?", f"{color} and {WORDS[level]}",
                                      images=[picture], audios=[clip], task="qa"))
    return lines


def make(root: Path) -> Toy:
    texts = []
    for source in SOURCES:
        folder = root / "data" / source
        folder.mkdir(parents=True)
        for split, count in (("train", 12), ("val", 6)):
            lines = make_lines(folder, source, split, count)
            texts += [m["content"] for line in lines for m in line["messages"]]
            (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    torch.manual_seed(1)
    tokenizer = Tokenizer.train(texts, 330)
    thinker = Thinker(ThinkerArch(vocab_size=len(tokenizer), width=32, layers=2, heads=4, kv_heads=2,
                                  head_dim=8,
                                  mlp_width=64))
    audio_encoder = AudioEncoder(AudioArch(width=24, layers=2, heads=2, mlp_width=32, stem_channels=4,
                                           conv_kernel=5))
    vision_encoder = VisionEncoder(VisionArch(image_size=32, patch_size=8, width=32, layers=1, heads=2,
                                              mlp_width=32))
    pieces = SpeechPieces.train([t.lower() for t in texts], 60)
    head = torch.nn.Linear(24, len(pieces) + 1)
    contents = {"thinker": {**checkpoint.part(thinker), "tokenizer": tokenizer.json_text,
                            "pieces": pieces.pieces},
                "audio_encoder": {**checkpoint.part(audio_encoder), "pieces": pieces.pieces,
                                  "ctc_head": head.state_dict()},
                "vision_encoder": checkpoint.part(vision_encoder)}
    for kind, content in contents.items():
        checkpoint.save(root / "parts" / f"{kind}.pt", kind, {**content, "metrics": {}})
    return Toy(root, {
        "thinker_ckpt": str(root / "parts" / "thinker.pt"),
        "audio_ckpt": str(root / "parts" / "audio_encoder.pt"),
        "vision_ckpt": str(root / "parts" / "vision_encoder.pt"), "data_dir": str(root / "data"),
        "data_mix": {"text_only": 0.3, "image_text": 0.2, "audio_text": 0.3, "image_audio_text": 0.2},
        "batch_size": 4, "num_epochs": 2, "samples_per_epoch": 20, "learning_rate": 3e-3, "warmup_steps": 2,
        "max_new_tokens": 4, "eval_samples": 3, "save_every_steps": 100, "log_every_steps": 1,
        "device": "cpu",
        "precision": "fp32", "max_length": 256})


def briefly_trained(model, toy):
    """The model after a few training steps, so that its answers differ in text and length."""
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=5e-3)
    batch = toy.collator(model)([s for name in ("text_only", "audio_text", "image_text")
                                 for s in toy.samples(name)[:3]])
    for _ in range(25):
        loss, _ = model(batch)
        (loss / batch.answer_tokens).backward()
        optimizer.step()
        optimizer.zero_grad()
    return model.eval()
