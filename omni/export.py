"""Export a trained system as a folder of safetensors that other programs read.

    python -m omni.export --ckpt checkpoints/omni_sft_tiny/omni_final.pt --out FOLDER

`FOLDER/thinker` is a language model as `transformers` loads it, with its tokenizer and chat template, so vLLM
and llama.cpp's converter take it too. The encoders, the projectors and omni.json lie beside it. Together they
are the whole system: `OmniModel.load(FOLDER)` and `python -m omni.chat --ckpt FOLDER` read it back.
"""

import argparse
from pathlib import Path

from omni.base import checkpoint
from omni.base.console import command, say
from omni.base.errors import UserError
from omni.model import exported

README = """# {name}

A Thinker that reads text, images and sound, made by μOmni.

| file | what |
|---|---|
| `thinker/` | the language model, with tokenizer and chat template: `AutoModelForCausalLM.from_pretrained` |
| `audio_encoder.safetensors`, `vision_encoder.safetensors` | the encoders |
| `projectors.safetensors` | from the encoders' features to the Thinker's embeddings |
| `omni.json` | the shapes of all parts, the config and the figures of the run |

The whole system answers with `python -m omni.chat --ckpt FOLDER` in μOmni; as a language model alone,
`thinker/` is read by `transformers`, vLLM and llama.cpp's `convert_hf_to_gguf.py`.

## Made of

{parts}

## Held-out figures of its run

{figures}
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", required=True, help="omni_final.pt or omni_best.pt of a run")
    parser.add_argument("--out", required=True, help="the folder to write; it must not exist yet")
    args = parser.parse_args()
    export(args.ckpt, Path(args.out))


def export(path: str, folder: Path) -> None:
    """Write the system in the checkpoint `path` to a new `folder`. UserError if one can't be used."""
    if folder.exists():
        raise UserError(f"{folder}: is there already; choose a new folder")
    content = checkpoint.load(path, "omni", "a run of sft_omni.py writes it: omni_final.pt, omni_best.pt")
    exported.write(content, folder)
    config, metrics = content["config"], content["metrics"]
    keys = ["system_ckpt"] if config.get("system_ckpt") else ["thinker_ckpt", "audio_ckpt", "vision_ckpt"]
    parts = "\n".join(f"- {key}: `{config.get(key)}`" for key in keys)
    figures = "\n".join(f"- {key}: {value:.4f}" for key, value in metrics.items()
                        if isinstance(value, float)) or "None: the run ended before an evaluation."
    checkpoint.save_text(folder / "README.md", README.format(name=folder.resolve().name, parts=parts,
                                                             figures=figures))
    size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
    say(f"wrote {folder}: {size / 1e6:,.1f} MB; {folder / 'thinker'} is the language model alone")


if __name__ == "__main__":
    command(main)
