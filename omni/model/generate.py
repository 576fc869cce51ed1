"""How the next token is chosen from its logits."""

import math

import torch


class Sampling:
    """Greedy at temperature 0. Else drawn from the softmax at `temperature`, out of the fewest likeliest
    tokens whose probabilities add up to `top_p`; equal seeds give equal answers.
    """

    def __init__(self, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0):
        if not 0 <= temperature < math.inf:
            raise ValueError(f"temperature must be 0 (greedy) or more, and {temperature:g} was given")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, and {top_p:g} was given")
        self.temperature, self.top_p = temperature, top_p
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, V) -> (B,)."""
        if self.temperature == 0:
            return logits.argmax(-1)
        # Drawn on the CPU: the same numbers on every device.
        shares, tokens = (logits.float().cpu() / self.temperature).softmax(-1).sort(descending=True)
        shares[shares.cumsum(-1) - shares >= self.top_p] = 0  # the likeliest one always stays
        drawn = torch.multinomial(shares, 1, generator=self.generator)
        return tokens.gather(1, drawn)[:, 0].to(logits.device)


GREEDY = Sampling()
