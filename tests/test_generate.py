"""Generation in batches with a cache, against one row at a time with everything computed anew."""

import foreign
import pytest
import torch
from reference import padded_hidden, unpacked
from toy import briefly_trained

from omni.base.config import ThinkerArch
from omni.data.batch import Batch
from omni.data.collate import Collator
from omni.data.sample import Sample
from omni.model import static_decode
from omni.model.generate import LOOK, Sampling, generate, stream_tokens
from omni.model.omni import OmniNetwork
from omni.model.thinker import Thinker


@pytest.fixture(params=["rows are dropped", "static shapes"], autouse=True)
def static(request, monkeypatch) -> bool:
    """Both ways to decode; on a CPU static shapes are computed without a graph."""
    monkeypatch.setattr(static_decode, "worth_it", lambda _: request.param == "static shapes")
    return request.param == "static shapes"


@torch.no_grad()
def slow_generate(model, batch, limit: int, choose=lambda logits: logits.argmax(-1)) -> list[int]:
    """One row without a cache: all of it is computed for each token."""
    embeds, ids = unpacked(batch.layout, model.embed(batch))[0][None], []
    for _ in range(limit):
        token = int(choose(model.thinker.logits(padded_hidden(model.thinker, embeds)[:, -1])))
        if token == model.tokenizer.end:
            break
        ids.append(token)
        embeds = torch.cat([embeds, model.thinker.embed_tokens.weight[token][None, None]], dim=1)
    return ids


def test_batched_generation_with_a_cache_equals_single_rows_without(toy, model, mixed):
    briefly_trained(model, toy)
    collate = toy.collator(model)
    slow = [slow_generate(model, collate([s], prompts=True), 12) for s in mixed]
    assert len({len(row) for row in slow}) > 1  # rows end at different steps
    assert generate(model, collate(mixed, prompts=True), 12) == slow
    assert [generate(model, collate([s], prompts=True), 12)[0] for s in mixed] == slow


@torch.no_grad()
def test_dropping_ended_rows_does_not_change_the_others(toy, model, mixed):
    for p in model.thinker.parameters():
        p.mul_(3)
    collate, end = toy.collator(model), model.tokenizer.end
    samples = mixed + toy.samples("text_only")[:7]

    def choose(logits):  # a sixth of the vocabulary ends an answer
        token = logits.argmax(-1)
        return torch.where(token % 6 == 0, end, token)

    slow = [slow_generate(model, collate([s], prompts=True), 12, choose) for s in samples]
    expected = [(ids + [end])[:12] for ids in slow]
    ends = sorted(map(len, expected))
    assert len(expected[2]) > 2  # the longest prompt, whose answer fills the cache
    assert ends[2] < ends[5] < ends[8] < ends[-1]  # half of the rows end, then half of the rest
    rows = torch.stack(list(stream_tokens(model, collate(samples, prompts=True), 12, choose)), 1).tolist()
    assert [row[:len(ids)] for row, ids in zip(rows, expected, strict=True)] == expected


@torch.no_grad()
def open_weights(ends=()) -> tuple[OmniNetwork, Batch]:
    """A small random model with a tokenizer of open weights, and three prompts."""
    torch.manual_seed(3)
    tokenizer = foreign.tokenizer("qwen3", ends)
    thinker = Thinker(ThinkerArch(vocab_size=foreign.ROWS, width=32, layers=2, heads=4, kv_heads=2,
                                  head_dim=8, mlp_width=64))
    for p in thinker.parameters():
        p.mul_(3)
    samples = [Sample(("user", text, "assistant", "")) for text in ("hello", "what is it", "one two")]
    return (OmniNetwork(tokenizer, thinker).eval(),
            Collator(tokenizer, None, 0, None, 256)(samples, prompts=True))


def test_an_embedding_that_stands_for_no_token_is_never_chosen():
    model, prompts = open_weights()
    tokens = len(model.tokenizer)
    with torch.no_grad():  # the likeliest rows are ones without a token
        model.thinker.embed_tokens.weight[tokens:] *= 100
    greedy = torch.stack(list(stream_tokens(model, prompts, 20)))
    assert 0 <= int(greedy.min()) and int(greedy.max()) < tokens and len(greedy.unique()) > 5
    for seed in range(5):
        drawn = torch.stack(list(stream_tokens(model, prompts, 20, Sampling(1.5, seed=seed))))
        assert int(drawn.max()) < tokens


def test_an_answer_ends_at_any_of_the_ends(static):
    model, prompts = open_weights()
    whole = torch.stack(list(stream_tokens(model, prompts, 20)), 1).tolist()
    assert all(len({*row}) > 4 for row in whole)
    ends = [row[3] for row in whole[:2]]  # of two of three rows, so that half of the rows are dropped
    model, prompts = open_weights(ends)
    assert model.tokenizer.ends == (model.tokenizer.end, *dict.fromkeys(ends))
    stops = {*model.tokenizer.ends}
    wanted = [row[:next((i for i, token in enumerate(row) if token in stops), 20)] for row in whole]
    assert max(map(len, wanted[:2])) <= 3
    assert generate(model, prompts, 20) == wanted
    rows = torch.stack(list(stream_tokens(model, prompts, 20)), 1)
    # Nothing is computed after the last end, as soon as that is seen.
    assert rows.shape[1] <= max(map(len, wanted)) + (LOOK if static else 1)


def test_bf16_generation_starts_like_fp32(toy, model, mixed):
    briefly_trained(model, toy)
    batch = toy.collator(model)(mixed, prompts=True)
    with torch.autocast("cpu", torch.bfloat16):
        half = generate(model, batch, 6)
    full = generate(model, batch, 6)
    assert sum(a[:1] == b[:1] for a, b in zip(half, full, strict=True)) >= len(mixed) - 1


def test_a_decoder_over_static_shapes_serves_other_prompts_and_newer_weights(toy, model, mixed, monkeypatch):
    """What earlier prompts left in its cache doesn't show, even if it was not finite."""
    collate = toy.collator(model)
    prompts = [collate(samples, prompts=True) for samples in (mixed, mixed[:2], mixed[::-1])]
    for _ in range(2):
        monkeypatch.setattr(static_decode, "worth_it", lambda _: False)
        wanted = [generate(model, batch, 9) for batch in prompts]
        monkeypatch.setattr(static_decode, "worth_it", lambda _: True)
        assert [generate(model, batch, 9) for batch in prompts] == wanted
        decoders = [*model.thinker.static_decoders.values()]
        assert len(decoders) <= 2 and all(decoder.graph is None for decoder in decoders)
        for decoder in decoders:
            for layer in decoder.cache:
                layer.values.fill_(float("nan"))
        briefly_trained(model, toy)  # in place


def test_decoders_for_moved_weights_are_dropped(model):
    def made(rows):
        return static_decode.decoder_for(model.thinker, rows, 10, torch.zeros(1))
    first = made(3)
    assert made(4) is first and made(40) is not first and len(model.thinker.static_decoders) == 2
    model.thinker.norm.weight.data = model.thinker.norm.weight.data.clone()
    assert made(3) is not first and len(model.thinker.static_decoders) == 1


def test_the_caches_that_are_kept_are_limited(model, monkeypatch):
    monkeypatch.setattr(static_decode, "MAX_KEPT", 3 * static_decode.decoder_for(
        model.thinker, 8, 10, torch.zeros(1)).nbytes)
    for rows in (16, 24, 32):
        static_decode.decoder_for(model.thinker, rows, 10, torch.zeros(1))
    assert [key[0] for key in model.thinker.static_decoders] == [32]
