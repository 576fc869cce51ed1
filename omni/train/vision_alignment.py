"""What the vision projector is fitted to: the words of the answers about a picture.

Each square of patches tells one token of these words, or none. A picture has a token if any of its squares
tells it (noisy-or multiple-instance learning, as Fang et al. 2015 do with captions). Tokens are weighted by
their inverse document frequency (Spaerck Jones 1972), since what is said of every picture is no information.
"""

from collections import Counter
from collections.abc import Sequence

import torch
from torch import nn

from omni.base.errors import UserError
from omni.data.sample import Sample
from omni.model.omni import OmniNetwork
from omni.model.projector import merge_patches
from omni.train.features import FeatureStore
from omni.train.word_scores import WordScores, blank_token

LEAST = 10  # pictures that a token is said of; rarer tokens are ignored
LEAST_LOG = 1e-6  # keeps logarithms of 1 - p finite


class Pictures:
    """Pictures with the tokens of their answers. UserError if no token tells pictures apart."""

    key, projector, name = "vision_alignment_images", "vision_projector", "images"

    def __init__(self, model: OmniNetwork, samples: Sequence[Sample], features: FeatureStore):
        self.features, self.merge = features, model.vision_encoder.arch.merge
        said: dict[str, set[int]] = {}
        for sample in samples:
            if features.holds([(sample.images[0], 0)]):
                said.setdefault(sample.images[0], set()).update(
                    token for role, content in sample.messages if role == "assistant"
                    for token in model.tokenizer.encode(f" {content}"))
        counts = Counter(token for tokens in said.values() for token in tokens)
        counts.pop(blank_token(model.tokenizer), None)
        self.words = WordScores(model, (token for token, count in counts.items()
                                        if LEAST <= count < len(said)))
        if not self.words.tokens:
            raise UserError('"vision_alignment_images": no word is in the answers about at least '
                            f"{LEAST} training images, but not about all; set it to 0")
        number = self.words.number
        self.images = [(path, sorted(number[token] for token in tokens if token in number))
                       for path, tokens in said.items()]
        self.weights = torch.tensor([len(said) / counts[token] for token in self.words.tokens]).log()

    @staticmethod
    def medium(sample: Sample) -> str:
        """The path of the sample's only medium, if that is a picture; else ""."""
        return sample.images[0] if len(sample.images) == 1 and not sample.audios else ""

    def __len__(self) -> int:
        return len(self.images)

    def rows(self, numbers: Sequence[int]) -> list[torch.Tensor]:
        """The squares of patches of the images with these numbers: (S, width) each."""
        patches = torch.stack([self.features.image(self.images[i][0], 0) for i in numbers]).float()
        return list(merge_patches(patches, self.merge))

    def loss(self, projector: nn.Module, numbers: Sequence[int], rng: torch.Generator) -> torch.Tensor:
        """Weighted binary cross-entropy of the tokens, summed over them, per picture."""
        device = self.words.embeddings.device
        has = torch.zeros(len(numbers), len(self.words.tokens))
        for row, i in enumerate(numbers):
            has[row, self.images[i][1]] = 1
        told = self.words.log_probabilities(projector(torch.stack(self.rows(numbers)).to(device)))
        absent = log_of_rest(told[..., :-1]).sum(1)  # no square tells the token
        has, weights = has.to(device), self.weights.to(device)
        return -((has * log_of_rest(absent) + (1 - has) * absent) * weights).sum(1).mean()


def log_of_rest(log: torch.Tensor) -> torch.Tensor:
    """log(1 - p) of log(p); finite where p is 1."""
    return (-torch.expm1(log.clamp(max=-LEAST_LOG))).log()
