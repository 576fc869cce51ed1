"""Shows how a source is read: its first samples, a histogram of lengths in tokens, and all problems.

    python -m omni.inspect PATH
"""

import argparse
from collections import Counter
from collections.abc import Iterator

from tqdm import tqdm

from omni.base.config import SFTConfig
from omni.base.config_file import COLUMNS, TASKS, load_config
from omni.base.console import command
from omni.base.errors import MediaError, UserError
from omni.data import audio, image, manifest, skipped
from omni.data.collate import Collator
from omni.data.media_reader import MediaReader
from omni.data.mixture import Mix
from omni.data.sample import Sample
from omni.data.tokenizer import audio_tokens, image_tokens
from omni.model.load import load

BINS, BAR = 8, 40  # of the histogram: its number of rows, and the characters of its longest bar


class SampleMeter:
    """Measures the media and the tokens of samples as a run with `config` would."""

    def __init__(self, config: SFTConfig):
        model = load(config, report=lambda line: None)
        self.tokenizer, self.takes = model.tokenizer, config.augment_takes
        self.audio_arch, self.vision_arch = model.audio_encoder.arch, model.vision_encoder.arch
        self.reader = MediaReader(self.vision_arch, self.audio_arch, config.seed)
        self.collate = Collator(self.tokenizer, self.reader, model.image_tokens, model.audio_encoder.lengths,
                                config.max_length)
        self.frames: dict[str, int] = {}  # clip -> mel frames of its longest take
        self.sizes: dict[str, tuple[str, int]] = {}  # path -> (size for display, tokens)
        self.unusable: dict[str, str] = {}  # path -> reason

    def measure(self, samples: list[Sample]) -> None:
        """Decode every medium once, as a run does before training."""
        paths = dict.fromkeys((path, is_image) for s in samples
                              for paths, is_image in ((s.images, True), (s.audios, False)) for path in paths)
        for path, is_image in tqdm(paths, desc="reading media", mininterval=2, disable=None, leave=False):
            try:
                self.sizes[path] = self._image(path) if is_image else self._clip(path)
            except MediaError as err:
                self.unusable[path] = str(err)

    def _image(self, path: str) -> tuple[str, int]:
        picture = image.load_rgb(path)
        return f"{picture.width}x{picture.height}", image_tokens(self.vision_arch)

    def _clip(self, path: str) -> tuple[str, int]:
        samples = len(audio.load(path))
        frames = self.reader.plain_frames(samples)
        self.frames[path] = max(self.reader.frames(path, take, frames) for take in range(self.takes))
        tokens = audio_tokens(self.audio_arch, frames)
        return f"{samples / audio.SAMPLE_RATE:.1f} s", tokens

    def usable(self, sample: Sample) -> bool:
        return not any(path in self.unusable for path in sample.images + sample.audios)

    def length(self, sample: Sample) -> int:
        """Tokens of a usable sample, media included."""
        images, audios = ([self.sizes[p][1] for p in paths] for paths in (sample.images, sample.audios))
        return len(self.tokenizer.chat(sample.messages, images, audios)[0])


def lines(source, config: SFTConfig, count: int) -> Iterator[str]:
    """The lines to print about a `manifest.Source`, with its first `count` samples."""
    meter = SampleMeter(config)
    meter.measure(source.samples)
    usable = [s for s in source.samples if meter.usable(s)]
    for number, sample in enumerate(source.samples[:count], 1):
        yield from _sample(number, sample, meter)
    notes = list(source.lines())
    yield from (f"note: {line}" for line in notes)
    tasks = ", ".join(f"{n:,} {task}" for task, n in Counter(s.task for s in usable).most_common())
    yield f"tasks: {tasks or 'none'}"
    lengths = [meter.length(s) for s in usable]
    yield from histogram(lengths)
    mix = Mix(train={source.name: usable}, val={source.name: []})
    skipped.drop_overlong(mix, meter.collate, meter.frames)  # as a run does it
    long = skipped.problem_lines(mix)
    yield from (f"problem: {line}" for line in long)
    yield from (f"note: {line}" for line in skipped.piece_lines(mix))
    for reason, times in source.reasons().most_common():
        first = next(number for number, why in source.skipped if why == reason)
        yield f"problem: {times:,}x {reason} (first: {source.unit} {first})"
    for reason, times in Counter(meter.unusable.values()).most_common():
        first = next(path for path, why in meter.unusable.items() if why == reason)
        yield f"problem: {times:,}x {reason} (first: {first})"
    lost = len(source.skipped) + len(source.samples) - len(usable) + len(mix.skipped)
    total = len(source.samples) + len(source.skipped)
    if lost > config.max_skipped * total:
        yield (f"problem: a run refuses this source: {lost:,} of {total:,} samples can't be used, and "
               f"max_skipped is {config.max_skipped:g}")
    if len(usable) == len(source.samples) and not source.skipped and not long and not notes:
        yield "no problems"


def _sample(number: int, sample: Sample, meter: SampleMeter) -> Iterator[str]:
    tokens = f"{meter.length(sample)} tokens" if meter.usable(sample) else "can't be used"
    yield f"sample {number}: {sample.task}, {tokens}"
    for i, (role, content) in enumerate(sample.messages):
        note = " (not trained on)" if i in sample.untrained else ""
        text = content if len(content) <= 200 else content[:200] + " ..."
        yield f"    {role}{note}: {text}".replace("\n", "⏎")
    for path in sample.images + sample.audios:
        yield f"    {path}: {meter.unusable[path] if path in meter.unusable else meter.sizes[path][0]}"


def histogram(lengths: list[int]) -> Iterator[str]:
    """The lines of a text histogram of lengths in tokens; no lines if there are no lengths."""
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


def columns_of(settings: list[str]) -> dict[str, list[str]]:
    """["audio=wav", "ignore=a"] -> {"audio": ["wav"], "ignore": ["a"]}, as a source's "columns"."""
    columns: dict[str, list[str]] = {}
    for setting in settings:
        role, equals, key = setting.partition("=")
        if role not in COLUMNS or not equals or not key:
            raise UserError(f"--columns {setting}: write it as ROLE=KEY; roles: {', '.join(COLUMNS)}")
        columns.setdefault(role, []).append(key)
    return columns


def add_reading_options(parser: argparse.ArgumentParser) -> None:
    """The options that say how a source is read."""
    parser.add_argument("--media-dir", default="", help="where the media are that the file names")
    parser.add_argument("--question", default="", help="the question of samples that have none")
    parser.add_argument("--task", default="", choices=TASKS,
                        help="the task of samples that name none")
    parser.add_argument("--columns", default=[], action="append", metavar="ROLE=KEY",
                        help="what a key is, such as audio=audio_filepath or ignore=notes; may be repeated")


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m omni.inspect",
                                     description="Show how a source is read, without training.")
    parser.add_argument("path", help="a file, a folder or a pattern, as a source may have it")
    add_reading_options(parser)
    parser.add_argument("--config", help="a config, for its parts, max_length and allow_outside_paths")
    parser.add_argument("--samples", type=int, default=3, help="how many samples to show (default: 3)")
    args = parser.parse_args(arguments)
    config = load_config(args.config, SFTConfig) if args.config else SFTConfig()
    columns = columns_of(args.columns)
    source = manifest.read(args.path, "", config.allow_outside_paths, args.question, columns, args.task,
                           args.media_dir)
    print(manifest.summary_line([source]))
    for line in lines(source, config, args.samples):
        print(line)


if __name__ == "__main__":
    command(main)
