"""The Thinker's blocks compiled, against the plain ones; what can't be compiled falls back with one line."""

import pytest
import torch

from omni.base.config import SFTConfig, ThinkerArch
from omni.base.distributed import World
from omni.data.layout import packed_layout
from omni.model import compiled, cpu_block, lora
from omni.model.thinker import Thinker

CPU = torch.device("cpu")


@pytest.fixture(autouse=True)
def plain_blocks(monkeypatch):
    """As on a GPU: no fused blocks."""
    monkeypatch.setattr(cpu_block, "fused", lambda *_: None)
    torch._dynamo.reset()
    with torch._dynamo.config.patch(suppress_errors=False):
        yield


def thinker(**changes) -> Thinker:
    torch.manual_seed(0)
    arch = ThinkerArch(vocab_size=50, width=32, layers=2, heads=4, kv_heads=2, head_dim=8, mlp_width=48)
    return Thinker(arch, **changes)


def gradients(model: Thinker, lengths: list[int], bf16: bool = False) -> list[torch.Tensor]:
    """The hidden states of random rows, and the gradients of all trained weights."""
    generator = torch.Generator().manual_seed(len(lengths))
    layout = packed_layout(lengths, 5)
    ids = torch.randint(50, (len(layout.rows),), generator=generator)
    keep = torch.arange(0, sum(lengths), 2)
    model.zero_grad()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        states = model.hidden(model.embed(ids), layout, keep)
    states.float().square().sum().backward()
    return [states.detach(), *(p.grad for p in model.parameters() if p.requires_grad)]


@pytest.mark.parametrize("adapters, again", [(False, False), (True, True)], ids=["full", "LoRA, again"])
def test_compiled_blocks_train_as_the_plain_ones(adapters, again):
    model = thinker(activation_checkpointing=again)
    if adapters:
        lora.add_adapters(model, 2, 4.0, ["q_proj", "down_proj"])
        for name, p in model.named_parameters():
            if "lora_B" in name:
                torch.nn.init.normal_(p)
    sizes = ([7, 12], [4, 9, 40])
    wanted = [gradients(model, lengths) for lengths in sizes]
    assert compiled.compile_blocks(model, CPU, "fp32", "aot_eager") == "blocks are compiled"
    for lengths, expected in zip(sizes, wanted, strict=True):
        for ours, theirs in zip(gradients(model, lengths), expected, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-5)


def test_under_autocast_too():
    model = thinker()
    wanted = gradients(model, [9, 20], bf16=True)
    assert compiled.compile_blocks(model, CPU, "bf16", "aot_eager") == "blocks are compiled"
    for ours, theirs in zip(gradients(model, [9, 20], bf16=True), wanted, strict=True):
        assert float((ours - theirs).norm()) <= 0.03 * float(theirs.norm())


def test_all_blocks_and_sizes_share_the_code():
    model, counter = thinker(), torch._dynamo.testing.CompileCounterWithBackend("aot_eager")
    compiled.compile_blocks(model, CPU, "fp32", counter)
    gradients(model, [7, 12])
    before = counter.frame_count
    for lengths in ([30], [4, 9, 40], [100, 3]):
        gradients(model, lengths)
    assert counter.frame_count == before <= 6


def test_without_gradients_blocks_run_as_they_are_written():
    model, counter = thinker(), torch._dynamo.testing.CompileCounterWithBackend("eager")
    compiled.compile_blocks(model, CPU, "fp32", counter)
    before = counter.frame_count
    with torch.no_grad():
        layout = packed_layout([5], 3)
        model.hidden(model.embed(torch.arange(8)), layout, cache=model.new_cache(2, 9, torch.zeros(1)))
    assert counter.frame_count == before


def wrong(graph, inputs):
    return lambda *values: tuple(value * 1.2 for value in graph(*values))


def broken(graph, inputs):
    raise ValueError("no such instruction\nmore")


@pytest.mark.parametrize("backend, words", [(wrong, "they differ by"), (broken, "BackendCompilerFailed")])
def test_code_that_fails_or_differs_is_not_used(backend, words):
    model = thinker()
    line = compiled.compile_blocks(model, CPU, "fp32", backend)
    assert line.startswith("blocks are not compiled") and words in line and "\n" not in line
    assert all(layer.compiled is None for layer in model.layers)


def test_small_thinkers_and_cpus_are_not_compiled_unless_asked(capsys):
    model = thinker()
    compiled.of_run(model, SFTConfig(), torch.device("cuda"), World())
    compiled.of_run(model, SFTConfig(), CPU, World())
    assert capsys.readouterr().out == ""
    compiled.of_run(model, SFTConfig(compile=True), CPU, World())
    assert "blocks are not compiled: on a CPU" in capsys.readouterr().out
    compiled.of_run(model, SFTConfig(compile=True, parallel="fsdp"), torch.device("cuda"), World(size=2))
    assert "blocks are not compiled: FSDP" in capsys.readouterr().out
