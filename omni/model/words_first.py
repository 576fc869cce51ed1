"""The order of a clip's features for a language model: one for each word, then silence."""

import torch
from torch import nn


class WordsFirst(nn.Linear):
    """The CTC head of an audio encoder (Graves et al. 2006), used to reorder features; it is never trained.

    A language model copies a text by looking up what followed a word. Silence between the words and further
    features of the same word hide that. CTC compression (Gaido et al. 2021) drops them. Here silence moves
    behind the words, and further features become silence. So a clip's length still tells how many there are.
    """

    def __init__(self, width: int, outputs: int):
        super().__init__(width, outputs)
        self.requires_grad_(False)

    def forward(self, features: torch.Tensor, lengths: torch.Tensor) -> torch.Tensor:
        """Features (C, S, width) in the new order. Those beyond a clip's length (C,) stay behind it.

        Silence is where the head's last output, CTC's blank, is the largest. In a run of features with the
        same other output, the most probable one is kept. The rest become copies of the most probable silence.
        """
        steps = torch.arange(features.shape[1], device=features.device)
        inside = steps < lengths[:, None]  # (C, S)
        chances = super().forward(features).float().softmax(-1).masked_fill(~inside[..., None], -1.0)
        chance, heard = chances.max(-1)
        spoken = inside & (heard != self.out_features - 1)
        word = spoken & (steps == _most_probable(chance, heard))
        silence = features.take_along_dim(chances[..., -1].argmax(1)[:, None, None], 1)  # (C, 1, width)
        features = torch.where((spoken & ~word)[..., None], silence, features)
        order = torch.where(word, 0, 1).masked_fill(~inside, 2).argsort(dim=1, stable=True)
        return features.gather(1, order[..., None].expand_as(features))


def _most_probable(chance: torch.Tensor, heard: torch.Tensor) -> torch.Tensor:
    """The index of the first feature with the largest `chance` in each feature's run of equal `heard`.

    All are (C, S).
    """
    run = (heard[:, 1:] != heard[:, :-1]).cumsum(1)
    run = torch.cat((torch.zeros_like(heard[:, :1]), run), 1)  # the number of each feature's run
    best = torch.full_like(chance, -1.0).scatter_reduce(1, run, chance, "amax").gather(1, run)
    size = chance.shape[1]
    at = torch.arange(size, device=chance.device).expand_as(heard).masked_fill(chance < best, size)
    return torch.full_like(heard, size).scatter_reduce(1, run, at, "amin").gather(1, run)
