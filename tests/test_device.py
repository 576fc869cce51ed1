"""Measurements of the machine, the choice of a device, and what a step needs from Apple's MPS.

There is no MPS here. Fake tensors that claim to be on a GPU show the types and devices of each operation.
They claim CUDA, as PyTorch lets them anywhere; its attention kernel, which MPS lacks, is hidden.
"""

import os
import subprocess
import sys
from dataclasses import fields, is_dataclass, replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from omni.base import device as device_module
from omni.base import machine
from omni.base.errors import UserError
from omni.model import attention, cpu_block
from omni.model.generate import stream_tokens
from omni.train import optim
from omni.train.interrupts import explain_out_of_memory
from omni.train.state import EpochTotals

MPS, GPU = torch.device("mps"), torch.device("cuda")


def test_peak_memory_is_that_of_the_process_itself():
    ballast = np.ones(200_000_000)  # 1.6 GB in the parent process, which must not be counted
    code = "from omni.base.device import peak_memory_gb; print(peak_memory_gb())"
    found = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert 0.05 < float(found.stdout) < ballast.nbytes / 2 ** 30


@pytest.mark.skipif(sys.platform != "linux" or device_module.CPU_HAS_BF16,
                    reason="reads the memory from /proc; with bf16 more compiled code is kept")
def test_clips_of_many_lengths_do_not_fill_the_memory():
    code = """if True:
        import torch
        import omni.base.device
        conv = torch.nn.Conv1d(80, 384, 3, stride=2)
        def memory():
            return int(open("/proc/self/status").read().partition("RssAnon:")[2].split()[0]) / 1024
        omni.base.device.choose_device("cpu")
        with torch.no_grad():
            for length in range(600, 680):
                conv(torch.zeros(32, 80, length))
                before = memory() if length == 610 else before if length > 610 else 0
        print(memory() - before)"""
    usual = {name: value for name, value in os.environ.items() if not name.startswith("ONEDNN")}
    found = subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.PIPE, env=usual)
    assert float(found.stdout) < 100


@pytest.fixture
def machine_with(monkeypatch):
    """Pretends that these devices are there, on this version of macOS."""
    def pretend(*kinds: str, macos: int = 14):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: "cuda" in kinds)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda: "mps" in kinds)
        monkeypatch.setattr(torch.backends.mps, "is_macos_or_newer", lambda major, _: macos >= major)
        monkeypatch.setattr(torch, "set_float32_matmul_precision", lambda _: None)
        monkeypatch.setattr(machine, "keep_freed_memory", lambda: None)
    return pretend


@pytest.mark.parametrize("kinds, chosen", [
    (("cuda", "mps"), "cuda"), (("cuda",), "cuda"), (("mps",), "mps"), ((), "cpu")])
def test_auto_takes_cuda_then_mps_then_the_cpu(machine_with, kinds, chosen):
    machine_with(*kinds)
    assert device_module.choose_device("auto").type == chosen
    for kind in ("cuda", "mps"):
        if kind in kinds:
            assert device_module.choose_device(kind).type == kind
        else:
            with pytest.raises(UserError, match=f'"device" is {kind}, but no such device.*"auto" or "cpu"'):
                device_module.choose_device(kind)


def test_ranks_do_not_share_mps(machine_with, monkeypatch):
    machine_with("mps")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert device_module.choose_device("auto").type == "cpu"
    with pytest.raises(UserError, match="ranks can't share it"):
        device_module.choose_device("mps")


@pytest.mark.parametrize("precision, macos, bf16", [
    ("auto", 14, True), ("auto", 13, False), ("fp32", 14, False), ("bf16", 14, True), ("bf16", 13, None)])
def test_mps_computes_in_bf16_where_it_can(machine_with, precision, macos, bf16):
    machine_with("mps", macos=macos)
    if bf16 is None:
        with pytest.raises(UserError, match="since macOS 14"):
            device_module.computes_in_bf16(MPS, precision)
    else:
        assert device_module.computes_in_bf16(MPS, precision) is bf16
        with device_module.autocast(MPS, precision):
            assert torch.is_autocast_enabled("mps") is bf16


def test_a_full_mps_is_explained_as_a_full_gpu_is_and_other_errors_pass():
    with pytest.raises(UserError, match="out of GPU memory in evaluation: lower it"):
        with explain_out_of_memory("lower it"):
            raise RuntimeError("MPS backend out of memory (MPS allocated: 8.99 GB)")
    with pytest.raises(RuntimeError, match="something else"), explain_out_of_memory("lower it"):
        raise RuntimeError("something else")


class NoDouble(TorchDispatchMode):
    """Refuses types that MPS lacks on a kind of device."""

    def __init__(self, kind: str):
        super().__init__()
        self.kind = kind

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in torch.utils._pytree.tree_leaves((args, kwargs, result)):
            if isinstance(tensor, torch.Tensor) and tensor.device.type == self.kind:
                assert tensor.dtype not in (torch.float64, torch.complex64, torch.complex128), \
                    f"{func} in {tensor.dtype}"
        return result


@pytest.fixture
def fake(monkeypatch):
    """Makes a fake of a tensor, or of all in a batch, on the CPU; `on_gpu` moves a model to the GPU."""
    monkeypatch.setattr(torch.cuda.amp.common, "amp_definitely_not_available", lambda: False)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda *_: True)
    monkeypatch.setattr(attention, "has_packed_kernel", lambda _: False)
    for name, value in (("__int__", 0), ("__bool__", True), ("__float__", 1.0)):  # of any fake tensor
        monkeypatch.setattr(torch.Tensor, name, lambda _, value=value: value)
    mode = FakeTensorMode()

    def copy(value):
        if isinstance(value, torch.Tensor):
            return mode.from_tensor(value.detach())
        if isinstance(value, tuple):
            return tuple(map(copy, value))
        if is_dataclass(value):
            return replace(value, **{f.name: copy(getattr(value, f.name)) for f in fields(value)})
        return value

    def on_gpu(model):
        for module in model.modules():
            for name, weight in module._parameters.items():
                if weight is not None:
                    faked = copy(weight)
                    with mode:
                        module._parameters[name] = nn.Parameter(faked.to(GPU), weight.requires_grad)
            assert not module._buffers
        return model
    return SimpleNamespace(mode=mode, copy=copy, on_gpu=on_gpu)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("frozen", [True, False])
def test_a_loss_needs_no_type_that_mps_lacks(toy, fake, mixed, precision, frozen):
    model = toy.model(label_smoothing=0.1, freeze_encoders=frozen, lora_rank=2 if frozen else 0)
    batch = fake.copy(toy.collator(model)(mixed))
    model = fake.on_gpu(model)
    with fake.mode, NoDouble("cuda"):
        with device_module.autocast(GPU, precision):
            loss, right = model(batch.to(GPU))
        assert loss.device.type == right.device.type == "cuda" and loss.dtype == torch.float32
        totals = EpochTotals()
        totals.add(float(loss), {"a": [1, 1]})
    assert totals.loss.device.type == "cpu" and totals.loss.dtype == torch.float64


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_a_step_needs_no_type_that_mps_lacks(toy, mixed, monkeypatch, precision):
    """A whole step on a CPU that goes the way of other devices: gradients, clipping, AdamW."""
    monkeypatch.setattr(cpu_block, "fused", lambda *_: None)
    monkeypatch.setattr(attention, "_dot_product", lambda q, k, v, mask, causal:
                        F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal))
    model = toy.model(label_smoothing=0.1, freeze_encoders=False)
    batch, optimizer = toy.collator(model)(mixed), optim.adamw([(model, 1e-3)], 0.01, model)
    before = model.thinker.norm.weight.detach().clone()
    with NoDouble("cpu"):
        with device_module.autocast(torch.device("cpu"), precision):
            loss, _ = model(batch)
        (loss / batch.answer_tokens).backward()
        assert optim.Update(optimizer, 1e-6, 1)(loss.detach())[2] == 1
    assert not torch.equal(before, model.thinker.norm.weight)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_an_answer_needs_no_type_that_mps_lacks(toy, fake, mixed, precision):
    model = toy.model().eval()
    prompts = fake.copy(toy.collator(model)(mixed, prompts=True))
    model = fake.on_gpu(model)
    with fake.mode, NoDouble("cuda"), device_module.autocast(GPU, precision):
        tokens = [*stream_tokens(model, prompts.to(GPU), 3)]
    assert [token.device.type for token in tokens] == ["cuda"] * 3


def test_a_type_that_mps_lacks_is_noticed(fake):
    with fake.mode, NoDouble("cuda"), pytest.raises(AssertionError, match="float64"):
        torch.ones(3, device=GPU).double()
