"""The state that a run keeps between steps, that only rank 0 writes, and the pass over media before training.
"""

import os
import sys

import pytest
import torch

from omni.base.config import SFTConfig
from omni.base.distributed import World
from omni.base.errors import MediaError
from omni.data.decoding import Decoder
from omni.data.mixture import Mix
from omni.train import features
from omni.train.features import FeatureStore, one_thread_less, unusable_media
from omni.train.metrics import MetricsFile
from omni.train.run_dir import RunDir
from omni.train.state import EpochTotals, TrainState


def test_totals_add_up_losses_and_counts():
    totals = EpochTotals()
    assert totals.mean_loss == 0
    totals.add(torch.tensor(6.0), {"a": [1, 2], "b": [0, 0]})
    totals.add(torch.tensor(3.0), {"a": [1, 1], "c": [2, 3]})
    assert totals.by_source == {"a": [2, 3], "b": [0, 0], "c": [2, 3]}
    assert totals.answer_tokens == 6 and totals.mean_loss == 1.5


def test_bad_steps_at_the_end_are_not_part_of_a_checkpoint():
    state = TrainState()
    state.add_step(torch.tensor(2.0), {"a": [1, 2]})
    for _ in range(2):
        state.add_bad_step()
        state.totals = EpochTotals()  # the epoch ends between two bad steps
    assert (state.step, state.bad_steps_in_a_row) == (3, 2)
    content = state.content()
    assert content["step"] == 1 and content["sums"]["mix"] == {"a": [1, 2]}
    state.add_step(torch.tensor(5.0), {"a": [2, 2]})
    assert state.bad_steps_in_a_row == 0 and state.content()["sums"]["mix"] == {"a": [2, 2]}


def test_a_state_is_restored_from_the_content_of_a_checkpoint():
    content = {"step": 7, "sums": {"loss": torch.tensor(3.0, dtype=torch.float64), "tokens": 4,
                                   "mix": {"a": [2, 4]}}}
    state = TrainState.from_content({**content, "model": {}})
    assert (state.step, state.totals.answer_tokens, state.totals.by_source) == (7, 4, {"a": [2, 4]})
    assert state.content() == content


def test_the_shares_of_a_mix_with_removed_and_new_sources_and_without_draws():
    mix = Mix(train={"kept": [None] * 4, "new": [None]}, weights={"kept": 3.0, "new": 1.0})
    totals = EpochTotals(by_source={"kept": [6, 10], "left": [2, 30], "new": [0, 0]})
    shares = totals.mix_shares(mix, epoch=1)
    assert shares["kept"] == {"wanted": 0.75, "samples": 0.75, "tokens": 0.25, "passes": 3.0}
    assert shares["left"] == {"wanted": 0.0, "samples": 0.25, "tokens": 0.75}
    assert shares["new"] == {"wanted": 0.25, "samples": 0.0, "tokens": 0.0, "passes": 0.0}
    assert EpochTotals().mix_shares(mix, 0) == {}
    assert EpochTotals(by_source={"left": [0, 0]}).mix_shares(mix, 0)["left"]["samples"] == 0


class Rank1(World):
    """Rank 1 of 2 without a process group: it receives [] from rank 0."""

    def from_first(self, make):
        return []


WATCHED: list[list] = []  # while it holds a list, file operations are added to that list
CHANGES = ("os.rename", "os.remove", "os.mkdir", "os.truncate", "os.link", "os.symlink")


def audit(event: str, arguments: tuple) -> None:
    if WATCHED and (event in CHANGES or (event == "open" and arguments[2] & (os.O_WRONLY | os.O_RDWR))):
        WATCHED[-1].append((event, arguments[0]))


def test_a_rank_other_than_0_opens_nothing_for_writing(toy, tmp_path):
    """Every method that writes a file of a run, called directly."""
    sys.addaudithook(audit)
    world, config, model = Rank1(1, 2), SFTConfig(), toy.model()
    run_dir, metrics = RunDir(tmp_path, world), MetricsFile(tmp_path, world)
    (tmp_path / "step_000009.pt").write_text("")
    optimizer = torch.optim.AdamW(model.thinker.parameters())
    found = []
    WATCHED.append(found)
    try:
        run_dir.claim(False, False)
        run_dir.open(False, True, config)
        run_dir.write_skipped([{"source": "a"}])
        run_dir.steps.save(TrainState(), model, optimizer, config, {})
        run_dir.save_system("omni_best.pt", model, config, {})
        metrics.add("step", step=1, loss=1.0)
        metrics.rewind(0)
    finally:
        WATCHED.pop()
    assert found == [] and [p.name for p in tmp_path.iterdir()] == ["step_000009.pt"]


def clips_and_decoder(toy):
    samples = toy.samples("audio_text")
    return samples, Decoder(toy.collator(toy.model()).reader, 20)


@pytest.mark.parametrize("takes", [1, 2, 5])
def test_the_length_of_a_clip_is_that_of_its_longest_training_take(toy, takes):
    samples, decoder = clips_and_decoder(toy)
    assert unusable_media(samples, takes, decoder, "test") == {}
    longest = {path: max(len(decoder.reader.mel(path, take)) for take in range(takes))
               for sample in samples for path in sample.audios}
    assert decoder.frames == longest
    cached = Decoder(decoder.reader, 20)
    FeatureStore(toy.model(), cached, 1.0).add(samples, takes, "test")
    assert cached.frames == longest, "with and without the cache, the same samples are too long"


def test_a_shorter_length_never_replaces_a_longer_one(toy):
    samples, decoder = clips_and_decoder(toy)
    unusable_media(samples, 5, decoder, "training")
    longest = dict(decoder.frames)
    unusable_media(samples, 1, decoder, "held out")
    assert decoder.frames == longest


class Failing:
    """A decoder that fails after `good` media."""

    def __init__(self, decoder: Decoder, good: int):
        self.decoder, self.reader, self.frames, self.good = decoder, decoder.reader, {}, good

    def read(self, requests):
        for number, medium in enumerate(self.decoder.read(requests)):
            if number == self.good:
                raise RuntimeError("the decoder broke")
            yield medium


@pytest.mark.parametrize("good", [0, 1])
def test_the_number_of_threads_is_restored_after_an_error(toy, monkeypatch, good):
    monkeypatch.setattr(features, "GROUP", 1)
    samples, decoder = clips_and_decoder(toy)
    torch.set_num_threads(2)
    try:
        with pytest.raises(RuntimeError, match="the decoder broke"):
            FeatureStore(toy.model(), Failing(decoder, good), 1.0).add(samples, 1, "test")
        assert torch.get_num_threads() == 2
        with pytest.raises(MediaError), one_thread_less():
            assert torch.get_num_threads() == 1
            raise MediaError("as decoding raises it")
        assert torch.get_num_threads() == 2
    finally:
        torch.set_num_threads(1)
