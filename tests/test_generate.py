"""Generation in batches with a cache, against one row at a time with everything computed anew."""

import torch
from reference import padded_hidden, unpacked
from toy import briefly_trained

from omni.model.generate import generate, stream_tokens


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


def test_bf16_generation_starts_like_fp32(toy, model, mixed):
    briefly_trained(model, toy)
    batch = toy.collator(model)(mixed, prompts=True)
    with torch.autocast("cpu", torch.bfloat16):
        half = generate(model, batch, 6)
    full = generate(model, batch, 6)
    assert sum(a[:1] == b[:1] for a, b in zip(half, full, strict=True)) >= len(mixed) - 1
