"""A step never reads the value of a tensor in Python: on a GPU that waits for all queued work."""

import contextlib

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from omni.data.decoding import Decoder
from omni.model import cpu_block
from omni.model.static_decode import StaticDecoder
from omni.train import optim
from omni.train.features import FeatureStore

# Operations that return a value to Python, or whose output size depends on values.
WAITING = {"_local_scalar_dense", "nonzero", "nonzero_static", "masked_select", "unique_dim", "_unique2",
           "bincount", "is_nonzero", "equal"}
ASKING = ("item", "tolist", "nonzero", "__bool__", "__int__", "__float__", "__index__")


class NoWaiting(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        assert name not in WAITING, f"aten::{name}"
        if name in ("index", "index_put", "index_put_", "_index_put_impl_"):
            dtypes = {index.dtype for index in args[1] if index is not None}
            assert not dtypes & {torch.bool, torch.uint8}, f"aten::{name} by a mask"
        return func(*args, **(kwargs or {}))


@contextlib.contextmanager
def no_waiting():
    """Reading a tensor's value raises an AssertionError, in Python and inside operations."""
    def refuse(name):
        def asked(*_):
            raise AssertionError(f"Tensor.{name}")
        return asked
    with pytest.MonkeyPatch.context() as patch, NoWaiting():
        for name in ASKING:
            patch.setattr(torch.Tensor, name, refuse(name))
        yield


@pytest.mark.parametrize("ask", [
    lambda x: x.sum().item(), lambda x: x.tolist(), lambda x: x.nonzero(), lambda x: bool(x.sum()),
    lambda x: int(x.sum()), lambda x: float(x.sum()), lambda x: x[x > 0],
    lambda x: torch.masked_select(x, x > 0),
    lambda x: x.index_put((x > 0,), x.sum()), lambda x: torch.repeat_interleave(x.long().abs()).nonzero()])
def test_reading_a_value_is_noticed(ask):
    with no_waiting(), pytest.raises(AssertionError):
        ask(torch.randn(5))


def step(model, batch) -> None:
    loss, _ = model(batch)
    (loss / batch.answer_tokens).backward()


@pytest.mark.parametrize("blocks", ["fused blocks", "plain blocks"])
@pytest.mark.parametrize("media", ["encoded in the step", "frozen features"])
@pytest.mark.parametrize("source", ["text_only", "image_text", "audio_text", "image_audio_text", "mixed"])
def test_a_step_reads_no_value_of_a_tensor(toy, monkeypatch, source, media, blocks):
    if blocks == "plain blocks":
        monkeypatch.setattr(cpu_block, "fused", lambda *_: None)
    sources = ["text_only", "image_text", "audio_text", "image_audio_text"] if source == "mixed" else [source]
    samples = [sample for name in sources for sample in toy.samples(name)[:3]]
    model = toy.model(label_smoothing=0.1)
    store = None
    if media == "frozen features":
        store = FeatureStore(model, Decoder(toy.collator(model).reader, timeout=20), 1.0)
        store.add(samples, 1, "test")
    batch = toy.collator(model, store)(samples)
    with no_waiting():
        step(model, batch)
    assert model.thinker.norm.weight.grad is not None


def test_an_update_for_a_gpu_reads_no_value_of_a_tensor(toy):
    model = toy.model()
    batch = toy.collator(model)(toy.samples("text_only")[:3])
    update = optim.Update(optim.adamw([(model, 1e-3)], 0.01, model), 1.0, 3)
    update.waits = False
    before = model.thinker.norm.weight.detach().clone()
    for _ in range(2):
        loss, _ = model(batch)
        loss.backward()
        with no_waiting():
            update(loss.detach())
    assert not torch.equal(before, model.thinker.norm.weight)


@torch.no_grad()
def test_a_token_over_static_shapes_reads_no_value_of_a_tensor(model):
    decoder = StaticDecoder(model.thinker, 3, 8, torch.zeros(1))
    decoder.begin(torch.tensor([2, 1]))
    with no_waiting():
        first = decoder(torch.tensor([5, 6])).clone()
        second = decoder(torch.tensor([5, 6]))
    assert not torch.equal(first, second)
