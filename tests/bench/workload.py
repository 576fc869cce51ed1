"""The model, data and steps that the benchmark trains, built from a config as `sft_omni.py` does."""

from dataclasses import dataclass

import torch

from omni.base.config import SFTConfig
from omni.base.config_file import load_config
from omni.data.collate import Collator
from omni.data.decoding import Decoder
from omni.data.loader import Schedule, StepDataset
from omni.data.media_reader import MediaReader
from omni.data.mixture import Mix, read_mix
from omni.data.sampler import WeightedSampler
from omni.model.load import load_for_training
from omni.model.omni import OmniNetwork
from omni.train import optim
from omni.train.features import FeatureStore


class DecodedReader(MediaReader):
    """A reader that decodes each medium once, so that training is measured and not the disk."""

    def __init__(self, *arguments):
        super().__init__(*arguments)
        self.kept: dict[tuple[str, str, int], torch.Tensor] = {}

    def pixels(self, path: str, take: int = 0) -> torch.Tensor:
        key = "pixels", path, take
        if key not in self.kept:
            self.kept[key] = super().pixels(path, take)
        return self.kept[key]

    def mel(self, path: str, take: int = 0) -> torch.Tensor:
        key = "mel", path, take
        if key not in self.kept:
            self.kept[key] = super().mel(path, take)
        return self.kept[key]


@dataclass
class Workload:
    """One way to train: its own copy of the model, and steps with frozen features or with decoded media."""

    config: SFTConfig
    model: OmniNetwork
    mix: Mix
    dataset: StepDataset

    @property
    def features(self) -> FeatureStore | None:
        return self.dataset.collate.features

    def optimizer(self) -> torch.optim.Optimizer:
        return optim.of_run(self.model, self.config)


def build(config_path: str, device: torch.device, cached: bool, samples_a_source: int | None = 400,
          reader_class: type[MediaReader] = DecodedReader) -> Workload:
    """A workload of the first samples of each source (None: all), with `cached` features or raw media."""
    config = load_config(config_path, SFTConfig, ["max_new_tokens=48"])  # as in the earlier figures
    model = load_for_training(config, device)
    mix = read_mix(config)
    for split in (mix.train, mix.val):
        for name in split:
            split[name] = split[name][:samples_a_source]
    reader = reader_class(model.vision_encoder.arch, model.audio_encoder.arch, config.seed)
    decoder = Decoder(reader, config.decode_timeout_s)
    features = FeatureStore(model, decoder, config.feature_cache_gb, config.precision) if cached else None
    if cached:
        for split, takes in ((mix.train, config.augment_takes), (mix.val, 1)):
            for name, samples in split.items():
                features.add(samples, takes, name)
    collate = Collator(model.tokenizer, reader, model.image_tokens, model.audio_encoder.lengths,
                       config.max_length, features)
    sizes = {name: len(samples) for name, samples in mix.train.items()}
    schedule = Schedule(config.samples_per_epoch or sum(sizes.values()), config.batch_size, config.num_epochs)
    dataset = StepDataset(mix, WeightedSampler(sizes, mix.weights, config.seed), schedule, collate,
                          config.augment_takes, config.gradient_accumulation_steps)
    return Workload(config, model, mix, dataset)
