"""Draws held-out samples with a trained system's answers: the picture at the top of the README.

    python -m omni.report.figure --ckpt checkpoints/omni_sft_tiny/omni_final.pt --out data/answers.png
"""

import argparse
import textwrap

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont

from omni.base.console import command
from omni.chat import OmniModel, system_evaluator
from omni.data import audio, image
from omni.data.mixture import read_mix
from omni.data.sample import AUDIO, IMAGE, Sample
from omni.eval.grading import correct, normalise_words

CELL, MEDIA = 236, 180  # width of a cell and side of its picture, in pixels
CELL_HEIGHT, COLUMNS = MEDIA + 150, 5
INK, RIGHT, WRONG, PAPER = (28, 30, 36), (20, 120, 60), (190, 40, 40), (250, 250, 248)  # RGB


def draw_samples(samples: list[Sample], count: int, seed: int) -> list[Sample]:
    """`count` samples at random, so that none is chosen because of its answer."""
    numbers = np.random.default_rng(seed).choice(len(samples), size=min(count, len(samples)), replace=False)
    return [samples[i] for i in sorted(numbers)]


def spectrogram(path: str) -> Image.Image:
    """A clip as its log-mel spectrogram: time to the right, low frequencies at the bottom."""
    mel = audio.log_mel(audio.mel_power(audio.load(path)))
    shade = ((mel.T.flip(0) + 2) / 5).clamp(0, 1)
    rgb = torch.stack([shade ** 2 * 250, shade * 170 + 20, 90 + shade * 120], dim=-1)
    return Image.fromarray(rgb.byte().numpy()).resize((MEDIA + 30, MEDIA // 2), Image.Resampling.BICUBIC)


def draw_cell(sheet: Image.Image, x: int, y: int, sample: Sample, answer: str) -> None:
    """One sample: its media, the question, the answer, and the reference if the answer is wrong."""
    pen, top = ImageDraw.Draw(sheet), y + 10
    question = sample.messages[-2][1].replace(IMAGE, "").replace(AUDIO, "").strip()
    question = question or "(the question is spoken)"
    for path in sample.images:
        side = MEDIA - (MEDIA // 2 + 6) * bool(sample.audios)
        sheet.paste(image.load_rgb(path).resize((side, side)), (x + 10, top))
        top += side + 6
    for path in sample.audios:
        sheet.paste(spectrogram(path), (x + 10, top))
        top += MEDIA // 2 + 6
    top = y + MEDIA + 18
    right = correct(answer, sample.answer) or normalise_words(answer) == normalise_words(sample.answer)
    lines = [(text, INK) for text in textwrap.wrap(question, 31)[:2]]
    lines += [(text, RIGHT if right else WRONG) for text in textwrap.wrap("> " + answer, 31)[:3]]
    if not right:
        lines += [(text, INK) for text in textwrap.wrap("was: " + sample.answer, 31)[:2]]
    for text, color in lines:
        pen.text((x + 10, top), text, color, font=ImageFont.load_default(14))
        top += 18


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m omni.report.figure", description=__doc__.splitlines()[0])
    parser.add_argument("--ckpt", required=True, help="omni_final.pt or omni_best.pt of a run")
    parser.add_argument("--out", required=True, help="the PNG to write")
    parser.add_argument("--seed", type=int, default=0, help="which samples are drawn")
    args = parser.parse_args(arguments)
    system = OmniModel.load(args.ckpt)
    sets: dict[tuple[bool, bool], list[Sample]] = {}
    for samples in read_mix(system.config).val.values():
        for sample in samples:
            if len(sample.images) <= 1 and len(sample.audios) <= 1:
                sets.setdefault((bool(sample.images), bool(sample.audios)), []).append(sample)
    rows = [draw_samples(sets[kinds], COLUMNS, args.seed)
            for kinds in ((True, False), (False, True), (True, True)) if kinds in sets]
    sheet = Image.new("RGB", (CELL * COLUMNS, CELL_HEIGHT * len(rows)), PAPER)
    evaluator = system_evaluator(system)
    for row, samples in enumerate(rows):
        for column, (sample, answer) in enumerate(zip(samples, evaluator.answers(samples), strict=True)):
            draw_cell(sheet, CELL * column, CELL_HEIGHT * row, sample, answer)
    sheet.save(args.out)
    print(f"wrote {args.out}")


if __name__ == "__main__":
    command(main)
