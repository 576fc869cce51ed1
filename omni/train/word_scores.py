"""How well projected features match the embeddings of a Thinker's tokens."""

from collections.abc import Iterable

import torch

from omni.data.tokenizer import Tokenizer
from omni.model.omni import OmniNetwork

VARIANCE = 0.25  # of a token's features around its embedding


def blank_token(tokenizer: Tokenizer) -> int:
    """The token whose embedding features without a word get, like those of silence."""
    return tokenizer.encode(" ")[0]


class WordScores:
    """Some tokens of a Thinker, numbered from 0, and their embeddings; the last number is the blank."""

    def __init__(self, model: OmniNetwork, tokens: Iterable[int]):
        self.tokens = sorted(set(tokens))
        self.number = {token: i for i, token in enumerate(self.tokens)}
        self.blank = len(self.tokens)
        table = model.thinker.embed_tokens.weight.detach().float()
        self.embeddings = table[[*self.tokens, blank_token(model.tokenizer)]]  # (tokens + 1, D)

    def log_probabilities(self, projected: torch.Tensor) -> torch.Tensor:
        """(..., D) -> (..., tokens + 1).

        A token's score is the log density of a normal distribution around its embedding, without the terms
        that all tokens share.
        """
        near = self.embeddings
        return ((projected @ near.T - near.square().sum(1) / 2) / VARIANCE).log_softmax(-1)

    def means(self, projected: torch.Tensor) -> torch.Tensor:
        """The mean of the embeddings, weighted by their probabilities: (..., D) -> (..., D)."""
        return self.log_probabilities(projected).exp() @ self.embeddings
