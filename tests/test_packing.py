"""Packed rows: the slot of each token, what it attends to, and the number of bucket sizes."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import rows, slices

from omni.data.batch import IGNORE
from omni.data.layout import BIN, bucket, packed_layout
from omni.data.packing import pack, pad_index
from omni.model.attention import gather

LENGTHS = st.lists(st.one_of(st.integers(1, 60), st.integers(1, 300)), min_size=1, max_size=9)
PAD = 7


@given(LENGTHS, st.integers(1, 40))
@settings(deadline=None, max_examples=60)
def test_every_token_has_its_slot_and_attends_to_its_own_past(lengths, padding):
    layout = packed_layout(lengths, padding)
    bins = layout.bins
    tokens = [(row, place) for row, length in enumerate(lengths) for place in range(length)]
    N = len(tokens) + padding
    assert layout.rows.tolist() == [row for row, _ in tokens] + [len(lengths)] * padding
    assert layout.positions.tolist() == [place for _, place in tokens] + [0] * padding
    assert [part.stop - part.start for part in slices(layout)] == lengths
    assert layout.cu_seqlens.dtype == torch.int32 and int(layout.cu_seqlens[-1]) == N
    assert layout.max_seqlen == max(*lengths, padding)
    # A token's slot holds that token; the padding shares the slot of its last token.
    held = bins.token_of_slot[bins.slot_of_token].tolist()
    assert held == [*range(len(tokens)), *[N - 1] * padding]
    empty = torch.ones(len(bins.token_of_slot), dtype=torch.bool).index_fill(0, bins.slot_of_token, False)
    assert (bins.token_of_slot[empty] == N - 1).all()
    begin = 0
    for group in bins.groups:
        for start in range(begin, begin + group.bins * group.length, group.length):
            inside, unused = (x[start:start + group.length].tolist() for x in (bins.token_of_slot, empty))
            seen = torch.ones(group.length, group.length, dtype=torch.bool).tril() if group.mask is None \
                else group.mask[(start - begin) // group.length, 0]
            for slot in (slot for slot in range(group.length) if not unused[slot]):
                found = [inside[key] for key in seen[slot].nonzero()[:, 0].tolist()]
                token = inside[slot]
                assert found == [*range(token - int(layout.positions[token]), token + 1)]
        begin += group.bins * group.length
    assert begin == len(bins.token_of_slot)
    for group in bins.groups[:-1]:  # those of long rows
        assert group.mask is None and group.length > BIN
    shared, needed = bins.groups[-1], sum(n for n in [*lengths, 1] if n <= BIN)
    assert shared.length <= BIN and (shared.bins == 1 or shared.bins * shared.length < 2 * needed)


@given(st.integers(0, 2 ** 20), LENGTHS)
@settings(deadline=None, max_examples=20)
def test_gathering_equals_indexing(seed, lengths):
    torch.manual_seed(seed)
    layout = packed_layout(lengths, 3)
    bins = layout.bins
    x = torch.randn(len(layout.positions), 3, requires_grad=True)
    weight = torch.randn(len(bins.token_of_slot), 3)
    weight[torch.ones(len(weight), dtype=torch.bool).index_fill(0, bins.slot_of_token, False)] = 0
    gathered, indexed = gather(x, bins.token_of_slot, bins.slot_of_token), x[bins.token_of_slot]
    assert torch.equal(gathered, indexed)
    true = len(layout.rows) - 3
    assert torch.equal(*(torch.autograd.grad((y * weight).sum(), x)[0][:true] for y in (gathered, indexed)))


SAMPLES = st.lists(st.lists(st.tuples(st.integers(0, 99), st.booleans()), min_size=1, max_size=70),
                   min_size=1, max_size=6)


@given(SAMPLES)
@settings(deadline=None)
def test_a_batch_holds_its_rows_and_the_indices_of_its_answers(samples):
    given_rows = [([token for token, _ in sample], [token if known else IGNORE for token, known in sample])
                  for sample in samples]
    batch = pack(given_rows, PAD)
    assert rows(batch) == given_rows
    N, true = len(batch.ids), sum(map(len, samples))
    assert true < N == bucket(N, 16)
    assert (batch.ids[true:] == PAD).all() and (batch.labels[true:] == IGNORE).all()
    answers = (batch.labels != IGNORE).nonzero()[:, 0].tolist()
    assert batch.answer_tokens == len(answers) and batch.samples == len(samples)
    assert list(batch.answer_counts) == [sum(known for _, known in sample) for sample in samples]
    assert batch.answers.tolist() == answers + [N - 1] * (len(batch.answers) - len(answers))


def test_the_answer_index_of_a_prompt_is_its_last_token():
    batch = pack([([1, 2, 3], [IGNORE] * 3), ([4], [IGNORE])], PAD, prompts=True)
    assert batch.answers.tolist() == [2, 3] and batch.answer_tokens == 0


def test_more_tokens_than_features_are_an_error():
    with pytest.raises(ValueError, match="5 tokens for 4 features"):
        pad_index(torch.arange(5), 4, 100)


@pytest.mark.parametrize("per_octave", [4, 8, 16])
@given(size=st.integers(1, 10 ** 6))
def test_bucket_sizes_are_few_and_add_little_padding(per_octave, size):
    up = bucket(size, per_octave)
    assert size <= up < size + max(32, size / per_octave) and bucket(up, per_octave) == up and up % 32 == 0
    assert len({bucket(n, per_octave) for n in range(1025, 2049)}) == per_octave
