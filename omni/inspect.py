"""How a source reads, told in lines: its first samples, its lengths in tokens, its problems."""

import argparse
from collections import Counter
from collections.abc import Iterator

from PIL import Image
from tqdm import tqdm

from omni import checkpoint
from omni.config import AudioArch, SFTConfig, VisionArch, build
from omni.config_file import load_config
from omni.console import command
from omni.data import audio, image, manifest, media
from omni.data.sample import Sample
from omni.data.tokenizer import Tokenizer, audio_tokens, image_tokens
from omni.errors import MediaError

BINS, BAR = 8, 40  # of the histogram: its rows, and the width of the longest in characters


class Ruler:
    """Measures samples as the parts of `config` would read them; only tokenizer and shapes are loaded."""

    def __init__(self, config: SFTConfig):
        def part(path: str, kind: str) -> dict:
            return checkpoint.load(path, kind, "name the parts of your run with --config")

        self.tokenizer = Tokenizer(part(config.thinker_ckpt, "thinker")["tokenizer"])
        hearing, seeing = part(config.audio_ckpt, "audio_encoder"), part(config.vision_ckpt, "vision_encoder")
        self.hearing = build(AudioArch, hearing["arch"], config.audio_ckpt)
        self.seeing = build(VisionArch, seeing["arch"], config.vision_ckpt)
        self.sizes: dict[str, tuple[str, int]] = {}  # medium -> (its size as a person reads it, its tokens)
        self.bad: dict[str, str] = {}  # medium -> why it can't be used

    def measure(self, samples: list[Sample]) -> None:
        """Decode every medium once, as a run does before it trains."""
        paths = dict.fromkeys((p, is_image) for s in samples for kind, is_image in
                              ((s.images, True), (s.audios, False)) for p in kind)
        for path, is_image in tqdm(paths, desc="reading media", mininterval=2, disable=None, leave=False):
            try:
                self.sizes[path] = self._picture(path) if is_image else self._clip(path)
            except MediaError as err:
                self.bad[path] = str(err)

    def _picture(self, path: str) -> tuple[str, int]:
        image.load(path, self.seeing.image_size)
        with media.only_media_errors("a picture", path), \
                Image.open(media.source(path), formats=image.FORMATS) as picture:
            return f"{picture.width}x{picture.height}", image_tokens(self.seeing)

    def _clip(self, path: str) -> tuple[str, int]:
        samples = len(audio.load(path))
        return f"{samples / audio.SAMPLE_RATE:.1f} s", audio_tokens(self.hearing, audio.mel_frames(samples))

    def usable(self, sample: Sample) -> bool:
        return not any(path in self.bad for path in sample.images + sample.audios)

    def length(self, sample: Sample) -> int:
        """Tokens of a sample, media included."""
        images, audios = ([self.sizes[p][1] for p in paths] for paths in (sample.images, sample.audios))
        return len(self.tokenizer.chat(sample.messages, images, audios)[0])


def lines(source, config: SFTConfig, count: int) -> Iterator[str]:
    """The lines on a `manifest.Source`, `count` samples shown."""
    ruler = Ruler(config)
    ruler.measure(source.samples)
    usable = [s for s in source.samples if ruler.usable(s)]
    for number, sample in enumerate(source.samples[:count], 1):
        yield from _sample(number, sample, ruler)
    tasks = ", ".join(f"{n:,} {task}" for task, n in Counter(s.task for s in usable).most_common())
    yield f"tasks: {tasks or 'none'}"
    lengths = [ruler.length(s) for s in usable]
    yield from histogram(lengths)
    long = sum(length > config.max_length for length in lengths)
    if long:
        yield f"problem: {long:,} samples are longer than max_length {config.max_length} and lose their front"
    for reason, times in source.reasons().most_common():
        first = next(number for number, why in source.skipped if why == reason)
        yield f"problem: {times:,}x {reason} (first: {source.unit} {first})"
    for reason, times in Counter(ruler.bad.values()).most_common():
        first = next(path for path, why in ruler.bad.items() if why == reason)
        yield f"problem: {times:,}x {reason} (first: {first})"
    if len(usable) == len(source.samples) and not source.skipped and not long:
        yield "no problems"


def _sample(number: int, sample: Sample, ruler: Ruler) -> Iterator[str]:
    tokens = f"{ruler.length(sample)} tokens" if ruler.usable(sample) else "can't be used"
    yield f"sample {number}: {sample.task}, {tokens}"
    for i, (role, content) in enumerate(sample.messages):
        note = " (not trained on)" if i in sample.untrained else ""
        text = content if len(content) <= 200 else content[:200] + " ..."
        yield f"    {role}{note}: {text}".replace("\n", "⏎")
    for path in sample.images + sample.audios:
        yield f"    {path}: {ruler.bad[path] if path in ruler.bad else ruler.sizes[path][0]}"


def histogram(lengths: list[int]) -> Iterator[str]:
    """Lengths in tokens as rows of a text histogram."""
    if not lengths:
        return
    low, high = min(lengths), max(lengths)
    width = -(-(high - low + 1) // BINS)
    counts = Counter((length - low) // width for length in lengths)
    mean = sum(lengths) / len(lengths)
    yield f"length in tokens: {low} to {high}, {mean:.1f} on average"
    for row in range(max(counts) + 1):
        bar = "#" * -(-BAR * counts[row] // max(counts.values()))
        start = low + row * width
        yield f"    {start:5}-{start + width - 1:<5} {bar:{BAR}} {counts[row]:,}"


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m omni.inspect",
                                     description="Show how a source is read, without training.")
    parser.add_argument("path", help="a file or a folder, in any of the formats that a source may have")
    parser.add_argument("--question", default="", help="asked of samples that ask nothing themselves")
    parser.add_argument("--config", help="a config, for its parts, max_length and allow_outside_paths")
    parser.add_argument("--samples", type=int, default=3, help="how many to show (3)")
    args = parser.parse_args(arguments)
    config = load_config(args.config, SFTConfig) if args.config else SFTConfig()
    source = manifest.read(args.path, "", config.allow_outside_paths, args.question)
    print(manifest.told([source]))
    for line in lines(source, config, args.samples):
        print(line)


if __name__ == "__main__":
    command(main)
