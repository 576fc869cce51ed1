"""Packed tokens, and blocks as one autograd function, against the padded batch and the plain modules."""

import gc

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omni.config import ThinkerArch
from omni.data.packing import BIN, STEP, Packing, Take, rounded_up
from omni.model import cpu_block
from omni.model.layers import rope_table
from omni.model.thinker import Thinker

WIDTH = 16
LENGTHS = st.lists(st.one_of(st.integers(1, 60), st.integers(1, 300)), min_size=1, max_size=9)


def thinker(qk_norm: bool = True, kv_heads: int = 2) -> Thinker:
    made = Thinker(ThinkerArch(vocab_size=20, width=WIDTH, layers=2, heads=4, kv_heads=kv_heads, head_dim=4,
                               mlp_width=24, qk_norm=qk_norm)).double()
    for name, p in made.named_parameters():
        p.data.uniform_(0.5, 2) if "norm" in name else p.data.mul_(8)  # attention that prefers some keys
    return made


def pack(packing: Packing, embeds: torch.Tensor) -> torch.Tensor:
    """(B, T, D) -> (N, D)."""
    true = embeds[packing.rows, packing.true(packing.positions)]
    return torch.cat((true, true.new_ones(packing.spare, true.shape[1])))


@given(LENGTHS)
@settings(deadline=None, max_examples=60)
def test_every_token_has_its_place_and_sees_its_own_past(lengths):
    packing = Packing.of(torch.tensor(lengths))
    places = [(b, t) for b, length in enumerate(lengths) for t in range(length)]
    N = len(packing.positions)
    assert packing.rows.tolist() == [b for b, _ in places]
    assert packing.ends().tolist() == [i for i, (b, t) in enumerate(places) if t == lengths[b] - 1]
    assert packing.positions.tolist() == [t for _, t in places] + [0] * packing.spare
    assert N == len(places) + packing.spare == rounded_up(N) and packing.spare > 0
    assert packing.there[packing.here].tolist() == [*range(len(places)), *[N - 1] * packing.spare]
    rows = [b for b, _ in places] + [-1] * packing.spare
    repeated = torch.ones(len(packing.there), dtype=torch.bool).index_fill(0, packing.here, False)
    assert (packing.there[repeated] == N - 1).all()
    begin = 0
    for group in packing.groups:
        for start in range(begin, begin + group.bins * group.length, group.length):
            tokens, padding = (x[start:start + group.length].tolist() for x in (packing.there, repeated))
            seen = torch.ones(group.length, group.length, dtype=torch.bool).tril() if group.mask is None \
                else group.mask[(start - begin) // group.length, 0]
            for q in (q for q in range(group.length) if not padding[q]):
                found = [tokens[k] for k in seen[q].nonzero()[:, 0].tolist()]
                position = int(packing.positions[tokens[q]])
                assert found == [*range(tokens[q] - position, tokens[q] + 1)]
                assert {rows[n] for n in found} == {rows[tokens[q]]}
        begin += group.bins * group.length
    assert begin == len(packing.there)
    for group in packing.groups[:-1]:  # long rows: less than twice what they need
        assert group.mask is None and group.length > BIN
    shared = packing.groups[-1]
    needed = sum(n for n in [*lengths, 1] if n <= BIN)
    assert shared.length <= BIN and (shared.bins == 1 or shared.bins * shared.length < 2 * needed)


@given(st.integers(0, 2 ** 20), LENGTHS)
@settings(deadline=None, max_examples=20)
def test_taking_equals_indexing(seed, lengths):
    torch.manual_seed(seed)
    packing = Packing.of(torch.tensor(lengths))
    x = torch.randn(len(packing.positions), 3, requires_grad=True)
    weight = torch.randn(len(packing.there), 3)
    weight[torch.ones(len(weight), dtype=torch.bool).index_fill(0, packing.here, False)] = 0
    taken, indexed = Take.apply(x, packing.there, packing.here), x[packing.there]
    assert torch.equal(taken, indexed)
    true = len(packing.rows)
    assert torch.equal(*(torch.autograd.grad((y * weight).sum(), x)[0][:true] for y in (taken, indexed)))
    parts = packing.binned(x)
    assert [part.shape[:2] for part in parts] == [(g.bins, g.length) for g in packing.groups]
    assert torch.equal(packing.unbinned(parts)[:true], x[:true])


@given(st.integers(1, 10 ** 6))
def test_sizes_are_few_and_little_is_spare(size):
    up = rounded_up(size)
    assert size <= up < size + max(STEP, size / 16) and up % STEP == 0 and rounded_up(up) == up
    assert len({rounded_up(n) for n in range(1024, 2048)}) <= 33


@pytest.mark.parametrize("way", ["plain", "cpu_block"])
@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("kv_heads", [4, 2, 1])
@pytest.mark.parametrize("lengths", [[1], [7, 30, 9, 60, 33], [64] * 4, [5, 140, 17, 200, 131, 128, 270]])
def test_packed_tokens_are_those_of_the_padded_batch(way, qk_norm, kv_heads, lengths, monkeypatch):
    """States that are asked for, and gradients of weights and embeddings."""
    torch.manual_seed(0)
    if way == "plain":
        monkeypatch.setattr(cpu_block, "serves", lambda *_: False)
    model, lengths = thinker(qk_norm, kv_heads), torch.tensor(lengths)
    embeds = torch.randn(len(lengths), int(lengths.max()), WIDTH, dtype=torch.float64, requires_grad=True)
    packing = Packing.of(lengths)
    asked = torch.randperm(len(packing.rows))[:40]
    weight = torch.randn(len(asked), WIDTH, dtype=torch.float64)
    padded = model.hidden(embeds)[packing.rows, packing.true(packing.positions)][asked]
    spare = torch.full((3,), len(packing.positions) - 1)  # as many as a size met before needs
    packed = model.hidden(pack(packing, embeds), packing, torch.cat((asked, spare)))[:-3]
    leaves = [embeds, *model.layers.parameters(), model.norm.weight]
    whole, ours = (torch.autograd.grad((states * weight).sum(), leaves) for states in (padded, packed))
    torch.testing.assert_close(packed, padded, rtol=1e-4, atol=1e-5)  # attention is float32 on CPUs
    for a, b in zip(ours, whole, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-4, atol=1e-4 * float(b.abs().max()) + 1e-5)


@pytest.mark.parametrize("qk_norm", [True, False])
@pytest.mark.parametrize("kept", [None, [0, 3, 7, 31, 31]])
def test_the_gradient_of_a_block_is_that_of_its_differences(qk_norm, kept):
    torch.manual_seed(0)
    model = thinker(qk_norm)
    packing = Packing.of(torch.tensor([5, 2, 4]))
    x = torch.randn(len(packing.positions), WIDTH, dtype=torch.float64, requires_grad=True)
    table = tuple(t.double() for t in rope_table(packing.positions, 4))
    plan = cpu_block.Plan.of(packing, model.arch, table, torch.float64)
    keep = None if kept is None else torch.tensor(kept)
    layer = model.layers[0]
    names, values = zip(*layer.named_parameters(), strict=True)
    seen = packing.positions.new_tensor(range(len(packing.rows))) if keep is None else slice(3)

    def block(x, *values):
        changed = {f"layer.{name}": value for name, value in zip(names, values, strict=True)}
        return torch.func.functional_call(_Fused(layer, plan, keep), changed, (x,))[seen]
    assert torch.autograd.gradcheck(block, (x, *values), fast_mode=True)


class _Fused(torch.nn.Module):
    def __init__(self, layer, plan, keep):
        super().__init__()
        self.layer, self.plan, self.keep = layer, plan, keep

    def forward(self, x):
        return cpu_block.block(self.layer, x, self.plan, self.keep)


@pytest.mark.parametrize("way", ["plain", "cpu_block"])
def test_a_sample_depends_on_no_neighbour(way, monkeypatch):
    """To the bit, as long as the sizes are the same: masked scores are exactly 0 after the softmax."""
    torch.manual_seed(0)
    if way == "plain":
        monkeypatch.setattr(cpu_block, "serves", lambda *_: False)
    model, lengths = thinker(), torch.tensor([20, 31, 150, 12, 140])
    packing = Packing.of(lengths)
    embeds = torch.randn(len(lengths), 150, WIDTH, dtype=torch.float64)
    owner = packing.rows
    before = model.hidden(pack(packing, embeds), packing)[:len(owner)]
    for row in range(len(lengths)):
        changed = embeds.clone()
        changed[row] += 3
        after = model.hidden(pack(packing, changed), packing)[:len(owner)]
        assert torch.equal(after[owner != row], before[owner != row])
        assert not torch.isclose(after[owner == row], before[owner == row]).all(-1).any()


@pytest.mark.parametrize("way", ["plain", "cpu_block"])
@torch.no_grad()
def test_the_cache_gives_the_hidden_states_of_the_whole(way, monkeypatch):
    """A packed prompt, then token by token."""
    torch.manual_seed(0)
    if way == "plain":
        monkeypatch.setattr(cpu_block, "serves", lambda *_: False)
    model, lengths = thinker(), torch.tensor([20, 1, 150, 12])
    packing, longest = Packing.of(lengths), int(lengths.max())
    embeds = torch.randn(len(lengths), longest + 4, WIDTH, dtype=torch.float64)
    cache = model.new_cache(len(lengths), longest + 4, embeds)
    ends = model.hidden(pack(packing, embeds), packing, packing.ends(), cache)
    rows = torch.arange(len(lengths))
    got = [ends, *(model.extend(embeds[rows, lengths + t], cache, lengths + t, longest + t + 1)
                   for t in range(4))]
    whole = model.hidden(embeds)
    for t, states in enumerate(got):
        torch.testing.assert_close(states, whole[rows, lengths - 1 + t], rtol=1e-4, atol=1e-4)


def test_bf16_is_near_fp32_and_as_near_as_the_plain_blocks(monkeypatch):
    torch.manual_seed(0)
    model, lengths = thinker().float(), torch.tensor([20, 31, 150, 12, 140])
    packing = Packing.of(lengths)
    x = pack(packing, torch.randn(len(lengths), 150, WIDTH))

    def gradients(bf16: bool):
        with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
            states = model.hidden(x, packing)[:len(packing.rows)]
        return torch.cat([g.flatten() for g in torch.autograd.grad(states.square().sum(),
                                                                   [*model.layers.parameters()])])
    exact, ours = gradients(False), gradients(True)
    monkeypatch.setattr(cpu_block, "serves", lambda *_: False)
    plain = gradients(True)
    errors = [float((g - exact).norm() / exact.norm()) for g in (ours, plain)]
    assert errors[0] < 0.05 and errors[0] < 2 * errors[1] + 1e-3, errors


def live_bytes() -> int:
    gc.collect()
    tensors = [x for x in gc.get_objects() if issubclass(type(x), torch.Tensor)]
    return sum({t.untyped_storage().data_ptr(): t.untyped_storage().nbytes() for t in tensors}.values())


def test_under_checkpointing_a_block_keeps_nothing_of_its_own():
    """What autograd is told to save is left to it; anything else on the context would stay."""
    model, packing = thinker(), Packing.of(torch.tensor([128] * 8))
    x = torch.randn(len(packing.positions), WIDTH, dtype=torch.float64)
    model.activation_checkpointing = True
    before = live_bytes()
    states = model.hidden(x, packing)
    shared = packing.groups[-1]
    one_block = 4 * shared.bins * shared.length ** 2 * 8  # bytes of what its heads attend to
    assert live_bytes() - before < one_block / 2
    states.sum().backward()


def test_rows_too_long_to_keep_what_they_attend_to_take_the_plain_way():
    packing = Packing.of(torch.tensor([3, cpu_block.LONGEST + 1]))
    x = torch.zeros(len(packing.positions), WIDTH)
    assert not cpu_block.serves(x, packing) and not cpu_block.serves(x, None)
    assert cpu_block.serves(x, Packing.of(torch.tensor([3, cpu_block.LONGEST])))
