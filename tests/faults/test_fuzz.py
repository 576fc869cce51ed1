"""Any content of a manifest, config or checkpoint is accepted or refused with a one-line UserError."""

import json
import os
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from omni.base import checkpoint
from omni.base.config import AudioArch, SFTConfig, ThinkerArch, VisionArch
from omni.base.config_file import load_config, mix_entry
from omni.base.distributed import ALONE
from omni.base.errors import UserError
from omni.data import manifest
from omni.model.audio_encoder import AudioEncoder
from omni.model.thinker import Thinker
from omni.model.vision_encoder import VisionEncoder
from omni.train.step_checkpoints import CHECKPOINT_KEYS, StepCheckpoints

odd = st.one_of(st.none(), st.booleans(), st.integers(-2 ** 70, 2 ** 70), st.floats(), st.text(max_size=20),
                st.sampled_from(["", "\0", "..", "/", "<image>", "<audio>", "NaN", "a" * 300]))
tree = st.recursive(odd, lambda inner: st.one_of(
    st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=12), inner, max_size=4)), max_leaves=12)
keys = st.sampled_from(list(SFTConfig.__dataclass_fields__))
config = st.dictionaries(st.one_of(keys, st.text(max_size=12)), tree, max_size=6)
paths = st.sampled_from(["a.png", "../a.png", "/etc/passwd", "no", "a\0", "."])
media = st.one_of(st.lists(paths, max_size=3), tree)
message = st.fixed_dictionaries({}, optional={
    "role": st.one_of(st.sampled_from(["user", "assistant", "system"]), tree),
    "content": st.one_of(st.sampled_from(["x", "<image>", "<image><audio>", ""]), tree)})
entry = st.one_of(tree, st.fixed_dictionaries({}, optional={
    "messages": st.one_of(st.lists(message, max_size=4), tree), "images": media, "audios": media,
    **dict.fromkeys(["task", "text", "group", "transcript", "objects", "conversations", "input"], tree)}))


def fuzz(request, strategy, check) -> None:
    """Runs `check` on 25 examples, the same every time; on 2,000 with --full."""
    examples = 2_000 if request.config.getoption("--full") else 25

    @settings(max_examples=examples, deadline=10_000, derandomize=True, database=None,
              suppress_health_check=list(HealthCheck))
    @given(strategy)
    def run(value):
        try:
            check(value)
        except UserError as err:
            assert str(err) and "\n" not in str(err)
    run()


@pytest.fixture
def place(tmp_path) -> Path:
    """A folder for the test. Nothing may be written beside it."""
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.png").write_bytes(b"x")
    yield tmp_path / "in"
    assert os.listdir(tmp_path) == ["in"]


def test_configs(request, place):
    def check(value):
        text = value if isinstance(value, bytes) else json.dumps(value).encode()
        (place / "c.json").write_bytes(text)
        made = load_config(str(place / "c.json"), SFTConfig)
        for name in made.data_mix:
            mix_entry(made, name)
    fuzz(request, st.one_of(config, st.binary(max_size=60), tree), check)


def test_overrides(request, place):
    (place / "c.json").write_text("{}")
    setting = st.one_of(st.text(max_size=30), st.builds("{}={}".format, keys, tree.map(json.dumps)),
                        st.builds("data_mix.{}={}".format, st.text(max_size=5), st.text(max_size=9)))
    fuzz(request, setting, lambda value: load_config(str(place / "c.json"), SFTConfig, [value]))


def test_manifests(request, place):
    def check(value):
        lines, raw = value
        text = "\n".join(json.dumps(line) for line in lines).encode()
        (place / "m.jsonl").write_bytes(text + b"\n" + raw)
        for allow in (False, True):
            source = manifest.read(str(place / "m.jsonl"), allow_outside_paths=allow)
            for sample in source.samples:
                paths = [Path(p) for p in sample.images + sample.audios]
                assert allow or all(p.is_relative_to(place.resolve()) for p in paths)
                assert sample.answer.strip()
            assert all(reason and "\n" not in reason for _, reason in source.skipped)
    raw = st.one_of(st.just(b""), st.binary(max_size=40))
    fuzz(request, st.tuples(st.lists(entry, max_size=5), raw), check)


tensors = st.sampled_from([torch.zeros(2), torch.tensor(1.5), torch.zeros(2, dtype=torch.bool)])
header = st.one_of(tree, tensors, st.dictionaries(st.one_of(st.integers(0, 9), st.text(max_size=3)), tensors))
PARTS = [(Thinker, ThinkerArch), (AudioEncoder, AudioArch), (VisionEncoder, VisionArch)]


def test_headers_of_parts(request, place):
    def check(value):
        (module, arch), changes, state = value
        checkpoint.save(place / "a.pt", "part", {"arch": changes, "state": state})
        checkpoint.build_part(module, arch, checkpoint.load(place / "a.pt", "part", ""), "part", "a.pt")
    fields = st.sampled_from(sorted({f for _, arch in PARTS for f in arch.__dataclass_fields__}))
    numbers = st.one_of(st.integers(-2, 2 ** 18), st.sampled_from([0, 8, 12.5, 32, 2 ** 18, 2 ** 40]), header)
    fuzz(request, st.tuples(st.sampled_from(PARTS), st.dictionaries(fields, numbers, max_size=5),
                            st.dictionaries(st.text(max_size=9), header, max_size=3)), check)


def test_headers_of_steps(request, place):
    folder = StepCheckpoints(place, ALONE)

    def check(value):
        checkpoint.save(place / "a.pt", "step", value)
        content = folder._load(place / "a.pt")
        assert all(isinstance(content[key], kind) for key, kind in CHECKPOINT_KEYS.items())
        folder._compare(place / "a.pt", content, SFTConfig(), {"thinker_ckpt": "1 byte"}, [])
    sums = st.fixed_dictionaries({}, optional={"loss": header, "tokens": header, "mix": header})
    inner = st.dictionaries(st.one_of(st.text(max_size=9), st.integers(0, 9)), header, max_size=3)
    good = {key: inner if kind is dict else st.integers(0, 99) for key, kind in CHECKPOINT_KEYS.items()}
    some = st.fixed_dictionaries({}, optional=dict.fromkeys(CHECKPOINT_KEYS, header))
    fuzz(request, st.one_of(st.fixed_dictionaries(good | {"sums": sums}), some), check)


def test_bytes_of_a_checkpoint(request, place):
    checkpoint.save(place / "a.pt", "part", {"arch": {}, "state": {"x": torch.zeros(30)}})
    good = (place / "a.pt").read_bytes()

    def check(value):
        spot, new, cut = value
        (place / "a.pt").write_bytes((good[:spot] + new + good[spot + len(new):])[:cut])
        if (place / "a.pt").read_bytes() != good:
            with pytest.raises(UserError):
                checkpoint.load(place / "a.pt", "part", "")
    fuzz(request, st.tuples(st.integers(0, len(good) - 1), st.binary(max_size=20),
                            st.one_of(st.none(), st.integers(0, len(good)))), check)
