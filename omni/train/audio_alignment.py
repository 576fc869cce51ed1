"""What the audio projector is fitted to: the words that are said in clips.

Connectionist temporal classification (CTC, Graves et al. 2006) finds which frame says which token of the
transcripts. An encoder of stage B was trained with a CTC head. If the pieces of that head are mostly whole
words, it is used, and nothing has to be found.
"""

from collections.abc import Callable, Sequence

import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.rnn import pad_sequence

from omni.base import checkpoint, hub
from omni.base.errors import UserError
from omni.data.sample import Sample
from omni.data.speech_pieces import SpeechPieces
from omni.model.loss import ctc_frames
from omni.model.omni import OmniNetwork
from omni.train.features import FeatureStore
from omni.train.word_scores import WordScores, blank_token

DROPPED = 0.5  # share of the features that are hidden, so that the clips are not memorised
MOST_PIECES = 1.25  # of a head per token: a Thinker knows words, but must learn to read shorter pieces


def transcript(sample: Sample) -> str:
    """The words of a sample's only clip; "" if they are not known."""
    if len(sample.audios) != 1:
        return ""
    return sample.transcript or (sample.answer if sample.task == "asr" else "")


def heard(model: OmniNetwork, place: str,
          texts: Sequence[str]) -> Callable[[torch.Tensor], torch.Tensor] | None:
    """A function from an audio encoder's frames (S, width) to what its CTC head hears in them (S, D).

    That is the mean of the pieces' embeddings, weighted by their probabilities; CTC's blank has the embedding
    of silence. None if the checkpoint at `place` has no head for frames of this width, or if its pieces of
    `texts` are much shorter than the Thinker's tokens.
    """
    path = hub.locate(place)
    content = {} if path.is_dir() else checkpoint.load(path, ("audio_encoder", "omni"), "")
    head = content.get("ctc_head")
    if head is None or head["weight"].shape[1] != model.audio_encoder.token_width:
        return None
    pieces, tokenizer = SpeechPieces.of(content["pieces"]), model.tokenizer
    count = sum(len(tokenizer.encode(text)) for text in texts)
    if sum(len(pieces.encode(text)) for text in texts) > MOST_PIECES * count:
        return None
    table = model.thinker.embed_tokens.weight.detach().float()
    tokens = [tokenizer.encode(pieces.text(piece)) for piece in range(len(pieces))]
    embeddings = torch.stack([table[some].mean(0) for some in (*tokens, [blank_token(tokenizer)])])
    weight, bias = (head[name].float().to(table.device) for name in ("weight", "bias"))
    return lambda frames: F.linear(frames, weight, bias).softmax(-1) @ embeddings


class Clips:
    """Clips with the tokens of their transcripts. UserError if no clip has frames enough for them."""

    key, projector, name = "audio_alignment_clips", "audio_projector", "clips"

    def __init__(self, model: OmniNetwork, samples: Sequence[Sample], features: FeatureStore):
        self.features = features
        known = [(sample.audios[0], model.tokenizer.encode(transcript(sample))) for sample in samples]
        self.clips = [(path, tokens) for path, tokens in known if features.holds([(path, 0)])
                      and 0 < ctc_frames(tokens) <= len(features.audio(path, 0))]
        if not self.clips:
            raise UserError('"audio_alignment_clips": no training clip has a transcript that fits in its '
                            'frames; name the task of transcripts ("task": "asr"), or set it to 0')
        self.words = WordScores(model, (token for _, tokens in self.clips for token in tokens))

    @staticmethod
    def medium(sample: Sample) -> str:
        """The path of the sample's only clip, if its words are known; else ""."""
        return sample.audios[0] if transcript(sample) else ""

    def __len__(self) -> int:
        return len(self.clips)

    def rows(self, numbers: Sequence[int]) -> list[torch.Tensor]:
        """The frames of the clips with these numbers: (S, width) each."""
        return [self.features.audio(self.clips[i][0], 0).float() for i in numbers]

    def loss(self, projector: nn.Module, numbers: Sequence[int], rng: torch.Generator) -> torch.Tensor:
        """CTC's loss per token of the transcripts."""
        frames, tokens = self.rows(numbers), [self.clips[i][1] for i in numbers]
        hidden = torch.rand(len(frames), 1, frames[0].shape[1], generator=rng) < DROPPED
        padded = pad_sequence(frames, batch_first=True) * ~hidden / (1 - DROPPED)
        scores = self.words.log_probabilities(projector(padded.to(self.words.embeddings.device)))
        targets = [self.words.number[token] for row in tokens for token in row]
        return F.ctc_loss(scores.transpose(0, 1), torch.tensor(targets),
                          torch.tensor([len(rows) for rows in frames]),
                          torch.tensor([len(row) for row in tokens]), blank=self.words.blank,
                          reduction="sum") / len(targets)
