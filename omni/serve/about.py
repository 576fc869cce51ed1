"""What a system is: its parts, its held-out figures, and held-out samples to try it with."""

from dataclasses import dataclass, field
from pathlib import Path

from omni.base.console import say
from omni.base.errors import UserError
from omni.chat import OmniModel
from omni.data import media
from omni.report.html import format_metric
from omni.report.run_data import Run

SAMPLES = 8  # of each held-out set
MAX_BYTES = 10_000_000  # a larger medium of a sample is not offered
KINDS = {".png": "image/png", ".jpg": "image/jpeg", ".jpeg": "image/jpeg", ".webp": "image/webp",
         ".gif": "image/gif", ".bmp": "image/bmp", ".wav": "audio/wav", ".flac": "audio/flac",
         ".ogg": "audio/ogg", ".oga": "audio/ogg", ".opus": "audio/ogg", ".mp3": "audio/mpeg"}


@dataclass
class About:
    """What the page shows of a system. The browser gets all of it but `paths`."""

    name: str
    parts: list[dict] = field(default_factory=list)
    figures: list[dict] = field(default_factory=list)
    samples: list[dict] = field(default_factory=list)
    paths: list[list[str]] = field(default_factory=list)  # the media of each sample


def about(system: OmniModel, ckpt: str) -> About:
    """The facts about a system; with figures and samples if `ckpt` is in the output folder of its run."""
    path = Path(ckpt).resolve()
    folder = path if path.is_dir() else path.parent
    facts = About(folder.name or "omni", _parts(system))
    if not (folder / "metrics.jsonl").is_file():
        say(f"{folder} holds no metrics.jsonl, so the page shows no held-out figures and samples")
        return facts
    try:
        run = Run.read(folder)
    except UserError as err:
        say(f"the page shows no held-out figures and samples: {err}")
        return facts
    if run.epochs:
        row = run.epochs[-1]
        counts = row.get("counts", {})
        facts.figures = [{"name": name, "value": format_metric(name, row[name]), "samples": counts.get(name),
                          "swapped": format_metric(name, row["swapped"][name])
                          if name in row.get("swapped", {}) else None} for name in run.metric_names()]
    for source, examples in run.examples.items():
        chosen = [e for e in examples if e.get("why", "random") == "random" and _at_hand(e)][:SAMPLES]
        for example in chosen:
            facts.samples.append({
                "source": source, "before": example.get("before", []), "question": example["question"],
                "reference": example["reference"], "images": len(example["images"]),
                "audios": len(example["audios"])})
            facts.paths.append([*example["images"], *example["audios"]])
    return facts


def _at_hand(example: dict) -> bool:
    """Whether all media of an example are there, and in a form that browsers show."""
    return all(0 < media.size(path) <= MAX_BYTES and Path(path).suffix.lower() in KINDS
               for path in (*example["images"], *example["audios"]))


def read_medium(path: str) -> tuple[str, bytes]:
    """Content type and bytes of a sample's medium, a file or a piece of one."""
    content, _ = media.head(media.source(path), MAX_BYTES)
    return KINDS[Path(path).suffix.lower()], content


def _parts(system: OmniModel) -> list[dict]:
    named = (("Thinker", system.thinker), ("audio encoder", system.audio_encoder),
             ("vision encoder", system.vision_encoder))
    parts = [{"name": name, "kind": type(module).__name__, "layers": module.arch.layers,
              "width": module.arch.width, "parameters": sum(p.numel() for p in module.parameters())}
             for name, module in named if module is not None]
    rest = sum(p.numel() for p in system.parameters()) - sum(part["parameters"] for part in parts)
    return [*parts, {"name": "projectors", "kind": "Projector", "parameters": rest}]
