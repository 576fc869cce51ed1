"""Before training: a new audio projector is fitted to the Thinker's words, by the transcripts of clips.

A Thinker needs many clips before it can read the features of a random projector. Connectionist temporal
classification (CTC, Graves et al. 2006) finds which frame says which token. It doesn't run the Thinker, so a
clip takes some 5 ms in place of 140 (whisper-base and SmolLM2-135M on two cores).

CTC alone is not enough. It only asks that the right token scores best, so a frame need not resemble the
token's embedding: the cosine was 0.19, and the Thinker read nothing. So each frame is then fitted to the mean
of the embeddings, weighted by CTC's probabilities.
"""

import copy
import time
from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from omni.base.config import SFTConfig
from omni.base.console import progress, say
from omni.base.distributed import World
from omni.base.errors import UserError
from omni.data.mixture import Mix
from omni.data.sample import Sample, spread
from omni.model.loss import ctc_frames
from omni.model.omni import OmniNetwork
from omni.train import optim
from omni.train.features import FeatureStore

EPOCHS, MEAN_EPOCHS = 4, 3  # of CTC, and of the means
BATCH, RATE, WARMUP = 32, 1e-3, 50
VARIANCE = 0.25  # of a token's frames around its embedding
DROPPED = 0.5  # share of the features that are hidden from CTC, so that it does not memorise the clips
SILENCE = " "  # what frames without speech become


class Clip(NamedTuple):
    path: str
    tokens: list[int]  # of its transcript


def transcript(sample: Sample) -> str:
    """The words of a sample's only clip; "" if they are not known."""
    if len(sample.audios) != 1:
        return ""
    return sample.transcript or (sample.answer if sample.task == "asr" else "")


def align(model: OmniNetwork, mix: Mix, features: FeatureStore | None, config: SFTConfig, world: World,
          fitted: bool = False) -> None:
    """Fit the audio projector to `audio_alignment_clips` training clips, unless it is `fitted` already.

    Their features are kept from now on: a resumed run needs that too, to see the same bits. Does nothing in a
    dry run, which keeps no features. UserError if no clip has a transcript that fits in its frames.
    """
    if not config.audio_alignment_clips or features is None:
        return
    began = time.time()
    samples = [sample for source in mix.train.values() for sample in source if transcript(sample)]
    samples = spread(samples, min(config.audio_alignment_clips, len(samples)))
    features.add(samples, 1, "clips to align")
    clips = [Clip(sample.audios[0], model.tokenizer.encode(transcript(sample))) for sample in samples]
    clips = [clip for clip in clips if features.holds([(clip.path, 0)])
             and 0 < ctc_frames(clip.tokens) <= len(features.audio(clip.path, 0))]
    if not clips:
        raise UserError('"audio_alignment_clips": no training clip has a transcript that fits in its frames; '
                        'name the task of transcripts ("task": "asr"), or set it to 0')
    if fitted:
        return
    state, first, last = world.from_first(lambda: _fit(model, clips, features, config.seed))
    model.audio_projector.load_state_dict(state)
    say(f"audio projector fitted to the transcripts of {len(clips):,} clips in "
        f"{(time.time() - began) / 60:.1f} min: CTC loss {first:.2f} -> {last:.2f} per token")


def _fit(model: OmniNetwork, clips: Sequence[Clip], features: FeatureStore,
         seed: int) -> tuple[dict[str, torch.Tensor], float, float]:
    """The projector's new weights, and CTC's loss per token in the first and in the last epoch.

    A token's score is the log density of a normal distribution around its embedding, without the terms that
    all tokens share. After CTC the frames are fitted to the means (see above).
    """
    projector, table = model.audio_projector, model.thinker.embed_tokens.weight.detach().float()
    used = sorted({token for clip in clips for token in clip.tokens})
    number = {token: i for i, token in enumerate(used)}
    near = table[[*used, model.tokenizer.encode(SILENCE)[0]]]  # silence is CTC's blank, the last one
    rng = torch.Generator().manual_seed(seed)

    def scores(projector: nn.Module, frames: torch.Tensor) -> torch.Tensor:  # (..., width) -> (..., tokens)
        return (projector(frames) @ near.T - near.square().sum(1) / 2) / VARIANCE

    def ctc(chosen: list[Clip], frames: list[torch.Tensor]) -> torch.Tensor:
        hidden = torch.rand(len(chosen), 1, frames[0].shape[1], generator=rng) < DROPPED
        padded = (pad_sequence(frames, batch_first=True) * ~hidden / (1 - DROPPED)).to(table.device)
        targets = [number[token] for clip in chosen for token in clip.tokens]
        return F.ctc_loss(scores(projector, padded).log_softmax(-1).transpose(0, 1), torch.tensor(targets),
                          torch.tensor([len(rows) for rows in frames]),
                          torch.tensor([len(clip.tokens) for clip in chosen]), blank=len(used),
                          reduction="sum") / len(targets)

    def means(chosen: list[Clip], frames: list[torch.Tensor]) -> torch.Tensor:
        rows = torch.cat(frames).to(table.device)
        with torch.no_grad():
            wanted = scores(teacher, rows).softmax(-1) @ near
        return F.mse_loss(projector(rows), wanted) / near.var()

    losses = _train(projector, clips, features, ctc, EPOCHS, rng)
    teacher = copy.deepcopy(projector)
    _rescale(projector, torch.cat([features.audio(clip.path, 0).float() for clip in clips[:BATCH]]), near)
    _train(projector, clips, features, means, MEAN_EPOCHS, rng)
    per_epoch = len(losses) // EPOCHS
    state = {name: weight.cpu() for name, weight in projector.state_dict().items()}
    return state, sum(losses[:per_epoch]) / per_epoch, sum(losses[-per_epoch:]) / per_epoch


def _train(projector: nn.Module, clips: Sequence[Clip], features: FeatureStore,
           loss_of: Callable[[list[Clip], list[torch.Tensor]], torch.Tensor], epochs: int,
           rng: torch.Generator) -> list[float]:
    """Train on all clips for some epochs: the loss of each step. `loss_of` takes clips and their frames."""
    optimizer = optim.adamw([(projector, RATE)], 0.01, projector)
    batches, losses = -(-len(clips) // BATCH), []
    for step in progress(range(epochs * batches), desc="alignment", unit="step"):
        if step % batches == 0:
            order = torch.randperm(len(clips), generator=rng).tolist()
        chosen = [clips[i] for i in order[step % batches * BATCH:][:BATCH]]
        loss = loss_of(chosen, [features.audio(clip.path, 0).float() for clip in chosen])
        optim.set_lr(optimizer, optim.lr_factor(step, epochs * batches, WARMUP, 0.0))
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(projector.parameters(), 1.0)
        optimizer.step()
        losses.append(float(loss.detach()))
    optimizer.zero_grad()
    return losses


@torch.no_grad()
def _rescale(projector: nn.Module, frames: torch.Tensor, near: torch.Tensor) -> None:
    """Scale the projector's outputs to the length of embeddings."""
    factor = near.norm(dim=1).mean() / projector(frames.to(near.device)).norm(dim=-1).mean()
    projector.down_proj.weight *= factor
    projector.down_proj.bias *= factor
