"""Generation: choosing the next token, and answers token by token with a KV cache."""

import math
from collections.abc import Callable, Iterator
from itertools import takewhile

import torch

from omni.data.batch import Batch
from omni.model.attention import DecodeLayout
from omni.model.layers import LayerCache
from omni.model.omni import OmniNetwork

MIN_TEMPERATURE = 1e-3  # logits divided by less may overflow


class Sampling:
    """Chooses the next token: greedy at temperature 0, else top-p (nucleus) sampling at `temperature`.

    Equal seeds give equal answers. ValueError if an argument is out of range.
    """

    def __init__(self, temperature: float = 0.0, top_p: float = 1.0, seed: int = 0):
        if temperature != 0 and not MIN_TEMPERATURE <= temperature < math.inf:
            raise ValueError(f"temperature must be 0 (greedy) or at least {MIN_TEMPERATURE:g}, "
                             f"not {temperature:g}")
        if not 0 < top_p <= 1:
            raise ValueError(f"top_p must be above 0 and at most 1, not {top_p:g}")
        self.temperature, self.top_p = temperature, top_p
        self.generator = torch.Generator().manual_seed(seed)

    def __call__(self, logits: torch.Tensor) -> torch.Tensor:
        """(B, V) -> (B,)."""
        if self.temperature == 0:
            return logits.argmax(-1)
        # Drawn on the CPU, so that a seed gives the same numbers on every device.
        probabilities, tokens = (logits.float().cpu() / self.temperature).softmax(-1).sort(descending=True)
        probabilities[probabilities.cumsum(-1) - probabilities >= self.top_p] = 0  # the likeliest is kept
        drawn = torch.multinomial(probabilities, 1, generator=self.generator)
        return tokens.gather(1, drawn)[:, 0].to(logits.device)


GREEDY = Sampling()


def generate(model: OmniNetwork, prompts: Batch, max_new_tokens: int) -> list[list[int]]:
    """Greedy answers to a batch of prompts: for each the ids before its first end token."""
    answers = torch.stack(list(stream_tokens(model, prompts, max_new_tokens)), dim=1).tolist()
    ends = {*model.tokenizer.ends}
    return [list(takewhile(lambda token: token not in ends, ids)) for ids in answers]


@torch.no_grad()  # under inference_mode autocast would cast each weight again at each use
def stream_tokens(model: OmniNetwork, prompts: Batch, max_new_tokens: int,
                  choose: Callable[[torch.Tensor], torch.Tensor] = GREEDY) -> Iterator[torch.Tensor]:
    """The next token of each prompt (B,), step by step, until every answer has ended or is at its limit.

    Prompts are processed once, then each step adds one token per row to the cache. `choose` maps logits
    (rows, V) to tokens (rows,). When half of the rows have ended they are dropped, since they cost as much as
    the others. A row that has ended yields an end token again. Embeddings that stand for no token are never
    chosen.
    """
    thinker, end, ends, B = model.thinker, model.tokenizer.end, model.tokenizer.ends, prompts.samples
    lengths = prompts.layout.cu_seqlens.diff()[:B].long()
    all_ends = lengths.new_tensor(ends) if len(ends) > 1 else None
    unfilled = model.tokenizer.unfilled(thinker.arch.vocab_size)
    unfilled = None if unfilled is None else unfilled.to(lengths.device)
    longest = int(lengths.max())
    embeds = model.embed(prompts)
    cache = thinker.new_cache(B + 1, longest + max_new_tokens, embeds)  # one more row for the padding
    hidden = thinker.hidden(embeds, prompts.layout, prompts.answers, cache)  # (B, D)
    cache = [LayerCache(layer.keys[:B], layer.values[:B]) for layer in cache]
    prompt_of_row = torch.arange(B, device=lengths.device)
    ended = torch.zeros(B, dtype=torch.bool, device=lengths.device)
    for step in range(max_new_tokens):
        logits = thinker.logits(hidden)
        token = choose(logits if unfilled is None else logits.masked_fill(unfilled, -math.inf))
        yield lengths.new_full((B,), end).index_copy(0, prompt_of_row, token)
        ended |= token == end if all_ends is None else torch.isin(token, all_ends)
        left = len(ended) - int(ended.sum())
        if not left:
            return
        if left <= len(ended) // 2:
            stay = ~ended
            prompt_of_row, token, lengths, ended = (x[stay] for x in (prompt_of_row, token, lengths, ended))
            cache = [LayerCache(layer.keys[stay], layer.values[stay]) for layer in cache]
        layout = DecodeLayout(lengths + step, reach=longest + step + 1)
        hidden = thinker.decode(thinker.embed(token), cache, layout)
