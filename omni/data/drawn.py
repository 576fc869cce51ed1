"""Media that are checked as they are drawn, for data too large to be read before the first step."""

import json
from collections import Counter
from collections.abc import Iterator
from copy import copy

import torch

from omni.base.console import say
from omni.base.errors import MediaError, UserError
from omni.data import skipped
from omni.data.decoding import Decoder, Request
from omni.data.loader import Step, StepDataset
from omni.data.mixture import Mix
from omni.data.sample import Sample
from omni.data.sampler import Draw

MOST_FIRST = 50_000  # training media that are read before the first step, with "check_media": "auto"
WINDOW = 64  # steps whose media are decoded in one go
JUDGED_AFTER = 200  # draws of a source, before max_skipped is applied to it


def checked_as_drawn(mix: Mix, choice: str) -> bool:
    """Whether training media are checked as they are drawn; `choice` is the config's `check_media`."""
    media = sum(len(s.images) + len(s.audios) for samples in mix.train.values() for s in samples)
    return choice == "drawn" or (choice == "auto" and media > MOST_FIRST)


class _Decoded:
    """A reader whose media were decoded before."""

    def __init__(self):
        self.media: dict[Request, torch.Tensor] = {}

    def pixels(self, path: str, take: int = 0) -> torch.Tensor:
        return self.media["pixels", path, take]

    def mel(self, path: str, take: int = 0) -> torch.Tensor:
        return self.media["mel", path, take]


class DrawnDataset(StepDataset):
    """Steps whose media are decoded ahead, in the decoder's processes.

    A sample that can't be used is replaced by the next one of its source that can. So what a step holds is a
    function of its draws and the data alone: the same for any number of ranks, and after a resume.
    """

    def __init__(self, dataset: StepDataset, decoder: Decoder, max_skipped: float):
        super().__init__(dataset.mix, dataset.sampler, dataset.schedule, copy(dataset.collate), dataset.takes,
                         dataset.micro_batches, dataset.world)
        self.decoder, self.max_skipped = decoder, max_skipped
        self.collate.reader = self._decoded = _Decoded()
        self._spare = Decoder(decoder.reader, decoder.timeout)  # for replacements: the other is busy
        self._chosen: dict[Draw, Sample] = {}
        self._drawn: Counter = Counter()  # draws of each source
        self._bad: dict[tuple[str, int], str] = {}  # (source, index) -> why a sample can't be used
        say("training images and clips are checked as they are drawn (check_media): one that can't be used "
            "is replaced by the next of its source")

    def steps(self, start: int, end: int, workers: int | str) -> Iterator[Step]:
        """Steps start..end-1; `workers` is ignored, since the decoder has its own processes.

        UserError if too many samples of a source can't be used.
        """
        for begin in range(start, end, WINDOW):
            plans = [[self.sampler[k] for k in self.schedule.draws(step)]
                     for step in range(begin, min(begin + WINDOW, end))]
            answers = self.decoder.read([request for draws in plans for draw in self._mine(draws)
                                         for request in self._requests(draw, self._first_choice(draw))])
            for draws in plans:
                self._decoded.media, self._chosen = {}, {}
                for draw in self._mine(draws):
                    sample = self._first_choice(draw)
                    media = [next(answers) for _ in self._requests(draw, sample)]
                    self._chosen[draw] = self._usable(draw, sample, media)
                yield self._step(draws)
            for _ in answers:  # all are taken: this lets the decoder's generator finish
                pass

    def all_skipped(self) -> list[dict]:
        rows = {json.dumps(row): row for rows in self.world.gather(self.mix.skipped) for row in rows}
        self.mix.skipped = list(rows.values())
        return self.mix.skipped

    def _mine(self, draws: list[Draw]) -> list[Draw]:
        """This rank's draws; the first of all if it has none."""
        return list(self.world.share(draws)) or draws[:1]

    def _first_choice(self, draw: Draw) -> Sample:
        return self.mix.train[draw.source][draw.index]

    def _requests(self, draw: Draw, sample: Sample) -> list[Request]:
        take = draw.passes % self.takes
        return [(method, path, take) for method, paths in (("pixels", sample.images), ("mel", sample.audios))
                for path in paths]

    def _usable(self, draw: Draw, sample: Sample, media: list[torch.Tensor | MediaError]) -> Sample:
        """`sample` if it can be used, else the next one of its source. Keeps the media of that one."""
        self._drawn[draw.source] += 1
        samples = self.mix.train[draw.source]
        for offset in range(len(samples)):
            index = (draw.index + offset) % len(samples)
            if offset:
                if (draw.source, index) in self._bad:
                    continue
                sample = samples[index]
                media = list(self._spare.read(self._requests(draw, sample)))
            reason = self._reason(draw, sample, media)
            if reason is None:
                self._decoded.media |= zip(self._requests(draw, sample), media, strict=True)
                return sample
            self._note(draw.source, index, sample, reason)
        raise UserError(f"source {draw.source}: none of its {len(samples)} samples can be used")

    def _reason(self, draw: Draw, sample: Sample, media: list) -> str | None:
        """Why a sample can't be used; None if it can. One whose prompt is cut is counted."""
        broken = next((medium for medium in media if isinstance(medium, MediaError)), None)
        if broken is not None:
            return str(broken)
        clips = media[len(sample.images):]
        frames = {path: len(mel) for path, mel in zip(sample.audios, clips, strict=True)}
        tokens, reason = self.collate.overlong(sample, frames)
        if tokens and reason is None:
            self.mix.cut[draw.source] = self.mix.cut.get(draw.source, 0) + 1
        return reason

    def _note(self, source: str, index: int, sample: Sample, reason: str) -> None:
        """Add a sample to the skipped ones. UserError if there are too many of its source."""
        if (source, index) in self._bad:
            return
        self._bad[source, index] = reason
        self.mix.skipped.append(skipped.row(source, "train", sample, reason))
        bad, drawn = sum(name == source for name, _ in self._bad), self._drawn[source]
        if drawn >= JUDGED_AFTER and bad > self.max_skipped * drawn:
            raise UserError(f"source {source}: {bad} of the {drawn} samples drawn so far can't be used, the "
                            f"last one because: {reason}. Fix them or raise max_skipped (now "
                            f"{self.max_skipped:g})")

    def _sample(self, draw: Draw) -> Sample:
        return self._chosen[draw]
