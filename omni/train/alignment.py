"""Before training: new projectors are fitted to the Thinker's words.

A Thinker needs many samples before it can read the features of a random projector. What the projector
should give is known before: the words that are said in a clip (audio_alignment.py), or in the answers about a
picture (vision_alignment.py). This fit doesn't run the Thinker, so a clip takes some 5 ms in place of 140
(whisper-base and SmolLM2-135M on two cores).

If the audio encoder has a CTC head whose pieces are mostly words, each frame is fitted to the mean of the
pieces' embeddings, weighted by the head's probabilities. Otherwise there are two fits. The first makes the
right words score best. That isn't enough, since a feature need not resemble a word's embedding for that: for
clips the cosine was 0.19, and the Thinker read nothing. So the second brings each feature to the mean of the
embeddings, weighted by the probabilities of the first.
"""

import copy
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Protocol

import torch
from torch import nn
from torch.nn import functional as F

from omni.base.config import SFTConfig
from omni.base.console import progress, say
from omni.base.distributed import World
from omni.data.mixture import Mix
from omni.data.sample import Sample, spread
from omni.model.omni import OmniNetwork
from omni.train import optim
from omni.train.audio_alignment import Clips, heard, transcript
from omni.train.features import FeatureStore
from omni.train.vision_alignment import Pictures
from omni.train.word_scores import WordScores

EPOCHS, MEAN_EPOCHS = 4, 3  # of the fit to the right words, and of that to means of embeddings
HEARD_EPOCHS = 10  # of the fit to what a CTC head hears; after three its loss still falls
SILENCE = 0.1  # share of the silent features that this fit takes, since most features are silent
BATCH, RATE, WARMUP = 32, 1e-3, 50
Teacher = Callable[[torch.Tensor], torch.Tensor]  # features (S, width) -> what they should become (S, D)


class Media(Protocol):
    """Clips or pictures with what is known about their words."""

    key: str  # of the config: how many
    projector: str  # of the model
    name: str
    words: WordScores

    @staticmethod
    def medium(sample: Sample) -> str:
        """The path of the sample's medium; "" if it has none, or several, or its words are not known."""

    def __len__(self) -> int: ...

    def rows(self, numbers: Sequence[int]) -> list[torch.Tensor]:
        """The features of the media with these numbers: (tokens, width) each."""

    def loss(self, projector: nn.Module, numbers: Sequence[int], rng: torch.Generator) -> torch.Tensor:
        """The loss of the first fit."""


def align(model: OmniNetwork, mix: Mix, features: FeatureStore | None, config: SFTConfig, world: World,
          fitted: bool = False) -> None:
    """Fit the projectors to `audio_alignment_clips` and `vision_alignment_images`, unless they are `fitted`.

    The features of these media are kept from now on: a resumed run needs that too, to see the same bits.
    Does nothing in a dry run, which keeps no features. UserError if no training sample tells the words of a
    medium.
    """
    if features is None:
        return
    for kind in (Clips, Pictures):
        count, began = getattr(config, kind.key), time.time()
        if not count:
            continue
        samples = [sample for source in mix.train.values() for sample in source if kind.medium(sample)]
        chosen = {*spread([*dict.fromkeys(map(kind.medium, samples))], count)}
        samples = [sample for sample in samples if kind.medium(sample) in chosen]
        features.add(samples, 1, f"{kind.name} to align")
        media, projector = kind(model, samples, features), getattr(model, kind.projector)
        if fitted:
            continue
        teacher = heard(model, config.audio_ckpt, [*map(transcript, samples)]) if kind is Clips else None
        state, first, last = world.from_first(partial(_fit, projector, media, teacher, config.seed))
        projector.load_state_dict(state)
        say(f"{kind.projector} fitted to the words of {len(media):,} {kind.name} in "
            f"{(time.time() - began) / 60:.1f} min: loss {first:.2f} -> {last:.2f}")


def _fit(projector: nn.Module, media: Media, teacher: Teacher | None,
         seed: int) -> tuple[dict[str, torch.Tensor], float, float]:
    """The projector's new weights, and the mean loss of the first fit in its first and in its last epoch.

    Without a `teacher`, which tells what features should become, there are two fits.
    """
    words, rng, fits = media.words, torch.Generator().manual_seed(seed), []
    device, variance = words.embeddings.device, words.embeddings.var()
    epochs, silence = (HEARD_EPOCHS, SILENCE) if teacher else (MEAN_EPOCHS, 1.0)
    if teacher is None:
        fits.append(_train(projector, len(media), media.loss, EPOCHS, rng))
        scores = copy.deepcopy(projector)

        def teacher(rows: torch.Tensor) -> torch.Tensor:
            return words.means(scores(rows))

    def means_loss(projector: nn.Module, numbers: Sequence[int], rng: torch.Generator) -> torch.Tensor:
        rows = torch.cat(media.rows(numbers)).to(device)
        with torch.no_grad():
            wanted = teacher(rows)
        said = (wanted - words.embeddings[words.blank]).square().mean(1) > 0.01 * variance
        kept = said | (torch.rand(len(rows), generator=rng) < silence).to(device)
        kept[0] = True  # at least one: the mean of none is not a number
        return F.mse_loss(projector(rows[kept]), wanted[kept]) / variance

    _rescale(projector, torch.cat(media.rows(range(min(BATCH, len(media))))), words)
    fits.append(_train(projector, len(media), means_loss, epochs, rng))
    first, last = fits[0][0], fits[0][-1]
    return {name: weight.cpu() for name, weight in projector.state_dict().items()}, first, last


def _train(projector: nn.Module, count: int,
           loss_of: Callable[[nn.Module, Sequence[int], torch.Generator], torch.Tensor], epochs: int,
           rng: torch.Generator) -> list[float]:
    """Train on `count` media for some epochs: the mean loss of each epoch."""
    optimizer = optim.adamw([(projector, RATE)], 0.01, projector)
    batches, losses = -(-count // BATCH), []
    for step in progress(range(epochs * batches), desc="alignment", unit="step"):
        if step % batches == 0:
            order = torch.randperm(count, generator=rng).tolist()
        loss = loss_of(projector, order[step % batches * BATCH:][:BATCH], rng)
        optim.set_lr(optimizer, optim.lr_factor(step, epochs * batches, WARMUP, 0.0))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(projector.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    optimizer.zero_grad()
    return [sum(losses[i:i + batches]) / batches for i in range(0, len(losses), batches)]


@torch.no_grad()
def _rescale(projector: nn.Module, rows: torch.Tensor, words: WordScores) -> None:
    """Scale the projector's outputs to the length of embeddings."""
    near = words.embeddings
    factor = near.norm(dim=1).mean() / projector(rows.to(near.device)).norm(dim=-1).mean()
    projector.down_proj.weight *= factor
    projector.down_proj.bias *= factor
