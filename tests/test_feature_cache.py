"""Features on the disk: computed once for all runs, never wrong, never in the way."""

import multiprocessing
import os
import pickle
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from omni.base import checkpoint
from omni.base.errors import UserError
from omni.data.decoding import Decoder
from omni.train import feature_cache, features
from omni.train.feature_cache import FeatureCache, Key, shards
from omni.train.features import FeatureStore
from sft_omni import main


def key(number: int) -> Key:
    return Key.of(str(number).encode())


def feature(number: int, rows: int = 3) -> torch.Tensor:
    return torch.full((rows, 8), float(number)).half()


def filled(root, numbers, encoder="enc", limit=1e9) -> FeatureCache:
    cache = FeatureCache(root, encoder, limit)
    for number in numbers:
        cache.add(key(number), feature(number), frames=number)
    cache.flush()
    return cache


@settings(max_examples=25, deadline=None)
@given(st.lists(st.lists(st.tuples(st.integers(0, 40), st.integers(1, 5)), max_size=12), max_size=5))
def test_what_is_added_is_found_again_by_any_process(tmp_path_factory, batches):
    root, wanted = tmp_path_factory.mktemp("root"), {}
    for batch in batches:
        cache = FeatureCache(root, "enc", 1e9)
        for number, rows in batch:
            cache.add(key(number), feature(number, rows), frames=rows)
            wanted.setdefault(number, rows)  # the first one stays
        cache.flush()
    cache = FeatureCache(root, "enc", 1e9)
    for number, rows in wanted.items():
        assert cache.intact(key(number)) and torch.equal(cache.read(key(number)), feature(number, rows))
        assert cache.size(key(number)) == (rows * 16, rows)
    assert not cache.intact(key(99)) and cache.find(key(99)) is None
    with pytest.raises(KeyError):
        cache.read(key(99))


@pytest.mark.skipif(sys.platform != "linux", reason="reads the memory of mapped files from /proc")
def test_features_that_were_read_do_not_count_as_memory(tmp_path):
    def mapped_mb() -> float:
        status = Path("/proc/self/status").read_text()
        return sum(int(status.partition(f"{kind}:")[2].split()[0]) for kind in ("RssFile", "RssShmem")) / 1024

    cache = FeatureCache(tmp_path, "enc", 1e9)
    for number in range(256):
        cache.add(key(number), torch.full((1024, 128), float(number)).half())
    cache.flush()
    before = mapped_mb()
    for number in range(256):  # 64 MB
        assert cache.intact(key(number)) and cache.read(key(number))[7, 8] == number
    assert mapped_mb() < before + 8


def test_keys_with_the_same_first_half_are_told_apart(tmp_path):
    cache = FeatureCache(tmp_path, "enc", 1e9)
    keys = [Key(7, low) for low in (3, 1, 2)]
    for number, one in enumerate(keys):
        cache.add(one, feature(number))
    cache.flush()
    assert [int(cache.read(one)[0, 0]) for one in keys] == [0, 1, 2]
    assert cache.find(Key(7, 4)) is None


@pytest.mark.parametrize("damage", ["cut", "empty", "tail", "table"])
def test_a_damaged_shard_is_dropped_and_made_anew(tmp_path, damage, capsys):
    filled(tmp_path, range(5))
    (path, _), = shards(tmp_path)
    content = bytearray(path.read_bytes())
    if damage == "cut":
        content = content[:len(content) // 2]
    elif damage == "empty":
        content = b""
    else:
        content[-1 if damage == "tail" else -80] ^= 1
    path.write_bytes(content)
    cache = FeatureCache(tmp_path, "enc", 1e9)
    assert not cache.intact(key(1)) and not path.exists() and "damaged" in capsys.readouterr().out
    assert filled(tmp_path, range(5)).intact(key(1))


def test_a_damaged_feature_is_noticed_before_it_is_used(tmp_path):
    filled(tmp_path, range(5))
    (path, _), = shards(tmp_path)
    content = bytearray(path.read_bytes())
    content[3 * 16 + 5] ^= 1  # in the second feature
    path.write_bytes(content)
    cache = FeatureCache(tmp_path, "enc", 1e9)
    assert cache.intact(key(0)) and not cache.intact(key(1))
    assert not path.exists() and not cache.intact(key(0)), "the whole shard is dropped"


def test_a_half_written_shard_is_never_read(tmp_path):
    (tmp_path / "enc").mkdir()
    half = tmp_path / "enc" / "abc.tmp"
    half.write_bytes(b"half")
    assert filled(tmp_path, [1]).intact(key(1)) and half.exists(), "one that is read is dropped as damaged"


def test_the_least_recently_used_shards_go_first(tmp_path):
    for number in range(4):
        filled(tmp_path, [number], encoder=f"enc{number % 2}")
        (path, _), = [pair for pair in shards(tmp_path) if pair[1].st_mtime > 1e9]
        os.utime(path, (1000 + number, 1000 + number))
    used = FeatureCache(tmp_path, "enc0", 1e9)
    assert used.intact(key(0))  # the oldest is used again
    size = sum(stat.st_size for _, stat in shards(tmp_path))
    filled(tmp_path, [9], encoder="enc0", limit=size)
    left = FeatureCache(tmp_path, "enc0", 1e9)
    assert left.find(key(0)) is not None and left.find(key(9)) is not None
    assert FeatureCache(tmp_path, "enc1", 1e9).find(key(1)) is None  # it was the oldest then


def _write(root, first: int) -> None:
    for number in range(first, first + 20):
        filled(root, [number % 30])


def test_several_processes_may_write_at_once(tmp_path):
    fork = multiprocessing.get_context("fork")
    children = [fork.Process(target=_write, args=(tmp_path, first)) for first in (0, 5, 10)]
    for child in children:
        child.start()
    for child in children:
        child.join()
    assert all(child.exitcode == 0 for child in children)
    cache = FeatureCache(tmp_path, "enc", 1e9)
    assert all(torch.equal(cache.read(key(number)), feature(number)) for number in range(30))


def test_a_folder_that_cannot_be_written_is_a_user_error(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="feature_cache_dir"):
        FeatureCache(tmp_path / "file", "enc", 1e9)


def store_of(toy, tmp_path, **changes) -> FeatureStore:
    model = toy.model()
    settings = {"limit_gb": 1.0, "folder": str(tmp_path / "cache")} | changes
    return FeatureStore(model, Decoder(toy.collator(model).reader, 20), **settings)


def test_a_second_run_decodes_and_encodes_nothing(toy, tmp_path, monkeypatch):
    samples = toy.samples("image_audio_text") + toy.samples("audio_text")
    first = store_of(toy, tmp_path)
    first.add(samples, 2, "test")
    second = store_of(toy, tmp_path)
    asked = []
    read = second.decoder.read
    monkeypatch.setattr(second.decoder, "read", lambda requests: asked.extend(requests) or read(requests))
    copied = shutil.copytree(tmp_path / "cache", tmp_path / "copy" / "cache")
    assert second.add(samples, 2, "test") == {} and asked == []
    assert second.decoder.frames == first.decoder.frames and second.bytes == first.bytes > 0
    for path, take in [(s.audios[0], t) for s in samples for t in range(2)]:
        assert torch.equal(first.audio(path, take), second.audio(path, take))
    elsewhere = store_of(toy, copied.parent)
    assert elsewhere.add(samples, 2, "test") == {} and elsewhere.bytes == first.bytes


def test_features_are_known_by_content_take_and_encoder(toy, tmp_path):
    sample = toy.samples("image_text")[0]
    store = store_of(toy, tmp_path)
    store.add([sample], 2, "test")
    path = sample.images[0]
    assert not torch.equal(store.image(path, 0), store.image(path, 1))
    same = str(shutil.copy(path, tmp_path / "another_name.png"))
    assert store._key(path, 0) == store._key(same, 0) and store._key(path, 1) != store._key(same, 1)
    other = toy.model()
    with torch.no_grad():
        next(other.vision_encoder.parameters()).add_(1e-3)
    changed = FeatureStore(other, store.decoder, 1.0, folder=str(tmp_path / "cache"))
    assert changed.caches["vision"].folder != store.caches["vision"].folder
    assert changed.caches["audio"].folder == store.caches["audio"].folder


def test_media_beyond_the_limit_are_encoded_in_the_step(toy, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(features, "GROUP", 2)
    monkeypatch.setattr(features, "WINDOW", 1)
    samples = toy.samples("image_text")
    whole = store_of(toy, tmp_path)
    whole.add(samples, 1, "test")
    part = store_of(toy, tmp_path / "b", limit_gb=whole.bytes * 0.5 / 2 ** 30)
    capsys.readouterr()
    assert part.add(samples, 1, "test") == {}
    said = capsys.readouterr().out
    assert "exceeds feature_cache_gb" in said and "encoded in each step" in said
    paths = [sample.images[0] for sample in samples]
    kept = [path for path in paths if part.holds([(path, 0)])]
    assert 0 < len(kept) < len(paths)
    model = toy.model()
    batch = toy.collator(model, part)(samples)
    assert batch.pixels is not None and batch.image_features is None
    inside = toy.collator(model, part)([s for s in samples if s.images[0] in kept])
    assert inside.pixels is None and inside.image_features is not None
    torch.testing.assert_close(model(batch)[0], model(toy.collator(model)(samples))[0])


def test_workers_can_look_features_up(toy, tmp_path):
    store = store_of(toy, tmp_path)
    samples = toy.samples("audio_text")
    store.add(samples, 1, "test")
    copy = pickle.loads(pickle.dumps(store))
    path = samples[0].audios[0]
    assert copy.model is None and torch.equal(copy.audio(path, 0), store.audio(path, 0))


def weights(folder) -> dict:
    content = checkpoint.load(folder / "out" / "omni_final.pt", "omni", "")
    return content["thinker"]["state"] | content["projectors"]


@pytest.mark.parametrize("share", [1.0, 0.6])
def test_a_warm_run_equals_a_cold_one_to_the_bit(toy, tmp_path, monkeypatch, share):
    """Also if only a part of the features is kept, or if some of those that were kept are lost."""
    monkeypatch.setattr(features, "GROUP", 4)
    monkeypatch.setattr(features, "WINDOW", 1)
    monkeypatch.setattr(feature_cache, "SHARD", 4000)
    changes = {"feature_cache_dir": str(tmp_path / "cache"), "feature_cache_gb": 1.0}
    main(["--config", toy.write(tmp_path / "cold", **changes)])
    total = sum(stat.st_size for _, stat in shards(tmp_path / "cache"))
    if share < 1:
        shutil.rmtree(tmp_path / "cache")
        changes["feature_cache_gb"] = share * total / 2 ** 30
        main(["--config", toy.write(tmp_path / "cold", **changes), "--overwrite"])
    main(["--config", toy.write(tmp_path / "warm", **changes)])
    for path, _ in shards(tmp_path / "cache")[::2]:
        path.unlink()
    main(["--config", toy.write(tmp_path / "lost", **changes)])
    cold = weights(tmp_path / "cold")
    for other in ("warm", "lost"):
        found = weights(tmp_path / other)
        assert all(torch.equal(tensor, found[name]) for name, tensor in cold.items()), other


def test_the_cache_is_shown_and_emptied_by_a_command(tmp_path, command):
    filled(tmp_path, range(3))
    shown = command("-m", "omni.cache", "--dir", tmp_path)
    assert shown.returncode == 0 and "1 encoders, 1 files" in shown.stdout and "enc" in shown.stdout
    assert "deleted 1 files" in command("-m", "omni.cache", "--dir", tmp_path, "--empty").stdout
    assert shards(tmp_path) == []
    assert "0 files" in command("-m", "omni.cache", "--dir", tmp_path / "nowhere").stdout


def test_records_have_no_gaps():
    assert feature_cache.RECORD.itemsize == sum(feature_cache.RECORD[n].itemsize
                                                for n in feature_cache.RECORD.names)
    assert np.dtype("<u8").itemsize * 3 + 16 == feature_cache.RECORD.itemsize
