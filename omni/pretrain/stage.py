"""What stages A, B and C have in common."""

from collections.abc import Callable
from typing import TypeVar

import numpy as np
from torch import nn
from tqdm import tqdm

from omni.base.config import PretrainConfig, build
from omni.base.errors import MediaError, UserError
from omni.data import manifest
from omni.data.sample import Sample
from omni.model.load import KINDS, load_encoder

T = TypeVar("T")
# Keys of a config that only some stages use.
SOME_KEYS = ("arch", "vocab_size", "reading_share", "speech_pieces", "max_length", "decoder", "start",
             "head_learning_rate", "thinker", "photographs", "audio_encoder", "clips")


def bucketed(lengths, batch_size: int, rng: np.random.Generator) -> list[list[int]]:
    """Random batches of sample numbers with similar lengths: shuffled, then sorted within 30 batches."""
    order = rng.permutation(len(lengths))
    window = 30 * batch_size
    batches = []
    for start in range(0, len(order), window):
        part = sorted(order[start:start + window], key=lambda i: lengths[i])
        batches += [part[i:i + batch_size] for i in range(0, len(part), batch_size)]
    return [batches[i] for i in rng.permutation(len(batches))]


class Stage:
    """A model, its samples and its loss. `kind` is the kind of checkpoint that it writes."""

    kind: str
    uses: set[str]  # which of SOME_KEYS
    model: nn.Module
    train: list
    lengths: list[int]
    before: dict  # the checkpoint of `start`, if `first_encoder` took one of ours; else {}

    def __init__(self, config: PretrainConfig):
        self.config, self.before, default = config, {}, PretrainConfig()
        for key in SOME_KEYS:
            if key not in self.uses and getattr(config, key) != getattr(default, key):
                raise UserError(f'"{key}" is not used by the stage {config.stage}: leave it out')

    def read(self, paths: str | list[str]) -> list[Sample]:
        """The samples of one manifest or of several."""
        paths = [paths] if isinstance(paths, str) else paths
        return [sample for path in paths for sample in
                manifest.read(path, allow_outside_paths=self.config.allow_outside_paths).check(0.05).samples]

    def usable(self, paths: str | list[str], fits: Callable[[Sample], bool], need: str) -> list[Sample]:
        """The samples of manifests that the stage can use. A line says how many are skipped."""
        samples = self.read(paths)
        kept = [sample for sample in samples if fits(sample)]
        if len(kept) < len(samples):
            print(f"{paths}: {len(samples) - len(kept)} of {len(samples)} samples are skipped: "
                  f"the stage {self.config.stage} needs {need}")
        return kept

    def first_encoder(self, *kinds: type[nn.Module]) -> nn.Module:
        """The encoder to train: a new one of the config's `arch`, or `start`, if it is of these kinds."""
        config = self.config
        if not config.start:
            encoder, arch = next(iter(KINDS[self.kind].values()))
            return encoder(build(arch, config.arch, "arch"))
        if config.arch:
            raise UserError('"start" is an encoder with its own shape: leave "arch" out')
        encoder, self.before = load_encoder(config.start, self.kind)
        if not isinstance(encoder, kinds):
            raise UserError(f"{config.start}: a {type(encoder).__name__}, which the stage {config.stage} "
                            'can\'t train; choose another "start"')
        return encoder

    def load_media(self, samples: list[Sample], what: str,
                   load: Callable[[Sample], T]) -> list[tuple[Sample, T]]:
        """Each sample with what `load` makes of its media. Samples whose media can't be read are skipped.

        UserError if none is left.
        """
        loaded, skipped = [], []
        for sample in tqdm(samples, desc=what, mininterval=2, disable=None, leave=False):
            try:
                loaded.append((sample, load(sample)))
            except MediaError as err:
                skipped.append(f"{' '.join(sample.images + sample.audios)}: {err}")
        if skipped:
            print(f"{len(skipped)} of {len(samples)} {what} are skipped, the first of them {skipped[0]}")
        if not loaded:
            raise UserError(f"{what}: none can be used")
        return loaded

    def rng(self, epoch: int, number: int = -1) -> np.random.Generator:
        """Random numbers for one sample in one epoch, or for the order of the epoch (number -1)."""
        return np.random.default_rng([self.config.seed, epoch, number + 1])

    def batches(self, epoch: int) -> list[list[int]]:
        return bucketed(self.lengths, self.config.batch_size, self.rng(epoch))
