"""Generation: choosing the next token, and answers token by token with a KV cache."""

import math
from collections.abc import Callable, Iterator
from itertools import takewhile

import torch

from omni.data.batch import Batch
from omni.model import static_decode
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
LOOK = 8  # tokens after which to check whether all answers have ended


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
    (rows, V) to tokens (rows,). A row that has ended yields an end token again. Embeddings that stand for no
    token are never chosen.
    """
    lengths = prompts.layout.cu_seqlens.diff()[:prompts.samples].long()
    unfilled = model.tokenizer.unfilled(model.thinker.arch.vocab_size)
    unfilled = None if unfilled is None else unfilled.to(lengths.device)

    def next_token(logits: torch.Tensor) -> torch.Tensor:
        return choose(logits if unfilled is None else logits.masked_fill(unfilled, -math.inf))
    decode = _static if static_decode.worth_it(lengths.device) else _dynamic
    yield from decode(model, prompts, lengths, max_new_tokens, next_token, _Ends(model, lengths.device))


class _Ends:
    """Which rows have ended."""

    def __init__(self, model: OmniNetwork, device: torch.device):
        self.end, ends = model.tokenizer.end, model.tokenizer.ends
        self.all = torch.tensor(ends, device=device) if len(ends) > 1 else None

    def __call__(self, token: torch.Tensor) -> torch.Tensor:
        """(B,) -> (B,) bool."""
        return token == self.end if self.all is None else torch.isin(token, self.all)


def _dynamic(model, prompts, lengths, max_new_tokens, next_token, ends) -> Iterator[torch.Tensor]:
    """When half of the rows have ended they are dropped, since they cost as much as the others."""
    thinker, B, longest = model.thinker, prompts.samples, int(lengths.max())
    embeds = model.embed(prompts)
    cache = thinker.new_cache(B + 1, longest + max_new_tokens, embeds)  # one more row for the padding
    hidden = thinker.hidden(embeds, prompts.layout, prompts.answers, cache)  # (B, D)
    cache = [LayerCache(layer.keys[:B], layer.values[:B]) for layer in cache]
    prompt_of_row = torch.arange(B, device=lengths.device)
    ended = torch.zeros(B, dtype=torch.bool, device=lengths.device)
    for step in range(max_new_tokens):
        token = next_token(thinker.logits(hidden))
        yield lengths.new_full((B,), ends.end).index_copy(0, prompt_of_row, token)
        ended |= ends(token)
        left = len(ended) - int(ended.sum())
        if not left:
            return
        if left <= len(ended) // 2:
            stay = ~ended
            prompt_of_row, token, lengths, ended = (x[stay] for x in (prompt_of_row, token, lengths, ended))
            cache = [LayerCache(layer.keys[stay], layer.values[stay]) for layer in cache]
        layout = DecodeLayout(lengths + step, reach=longest + step + 1)
        hidden = thinker.decode(thinker.embed(token), cache, layout)


def _static(model, prompts, lengths, max_new_tokens, next_token, ends) -> Iterator[torch.Tensor]:
    """No row is dropped. Whether all have ended is checked every few tokens, since that waits for the GPU."""
    thinker, B = model.thinker, prompts.samples
    embeds = model.embed(prompts)
    decoder = static_decode.decoder_for(thinker, B + 1, int(lengths.max()) + max_new_tokens, embeds)
    decoder.begin(lengths)
    logits = thinker.logits(thinker.hidden(embeds, prompts.layout, prompts.answers, decoder.cache))
    ended = torch.zeros(B, dtype=torch.bool, device=lengths.device)
    for step in range(max_new_tokens):
        token = next_token(logits).masked_fill(ended, ends.end)
        yield token
        ended |= ends(token)
        looks = B == 1 or (step + 1) % LOOK == 0  # an answer that is streamed is read anyway
        if step + 1 == max_new_tokens or (looks and bool(ended.all())):
            return
        logits = decoder(token)
