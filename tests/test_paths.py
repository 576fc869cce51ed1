"""Where sources and their media lie: lists and patterns of files, "media_dir", links, spellings of paths."""

import json
import os
import sys
from pathlib import Path

import pytest
from published import picture, put, write

from omni.base import paths
from omni.base.config import SFTConfig, build
from omni.base.config_file import load_config, mix_entry
from omni.base.errors import UserError
from omni.data import manifest
from omni.data import paths as media_paths
from omni.data.mixture import input_fingerprints, read_mix
from omni.data.skipped import reason_counts


def entry(image: str, answer: str = "red") -> dict:
    return {"image": image, "question": "What?", "answer": answer}


def images(source) -> list[str]:
    assert not source.skipped, source.skipped
    return [sample.images[0] for sample in source.samples]


@pytest.fixture
def folder(tmp_path):
    put(tmp_path, {"media/a.png": picture(), "media/deep/b.png": picture("blue")})
    return tmp_path


def test_media_dir_holds_the_media(folder):
    path = write(folder, "lists/m.jsonl", [entry("a.png"), entry(str(folder / "media/deep/b.png"))])
    source = manifest.read(path, media_dir=str(folder / "media"))
    assert images(source) == [str(folder / "media/a.png"), str(folder / "media/deep/b.png")]
    assert "leaves" in manifest.read(path, media_dir=str(folder / "lists")).skipped[1][1]
    with pytest.raises(UserError, match='none: no such folder; "media_dir" of a source names it'):
        manifest.read(path, media_dir=str(folder / "none"))


def test_a_missing_file_is_named_by_the_path_that_was_looked_for_and_counted_once(folder):
    path = write(folder, "m.jsonl", [entry("media/a.png"), entry("x.png"), entry("y.png")])
    source = manifest.read(path)
    assert [reason for _, reason in source.skipped] == [
        f'a file of "images" is missing: {folder / name}' for name in ("x.png", "y.png")]
    assert source.reasons() == {f'a file of "images" is missing: {folder / "x.png"}': 2}


def test_lists_and_patterns_are_read_in_order_and_problems_name_their_file(folder):
    for i, name in enumerate(("a-10.jsonl", "a-2.jsonl", "b.jsonl")):
        write(folder, name, [{"question": f"q{i}", "answer": "x"}, {"question": f"q{i}"}])
    source = manifest.read([str(folder / "b.jsonl"), str(folder / "a-*.jsonl")])
    assert [s.turns[1] for s in source.samples] == ["q2", "q0", "q1"]
    assert [line for line, _ in source.skipped] == ["b.jsonl:2", "a-10.jsonl:2", "a-2.jsonl:2"]
    assert source.kind.startswith("JSON lines, 3 files: ") and source.path.endswith("b.jsonl and 2 more")
    assert len(manifest.read(str(folder / "a-{2..2}.jsonl")).samples) == 1
    with pytest.raises(UserError, match=f"no file matches this pattern; it was looked for in {folder}"):
        manifest.read(str(folder / "c-*.jsonl"))
    put(folder, {"odd[1].jsonl": '{"question": "own", "answer": "x"}'})
    assert manifest.read(str(folder / "odd[1].jsonl")).samples[0].turns[1] == "own"


def test_columns_are_checked_over_all_files(folder):
    write(folder, "a.jsonl", [{"ask": "q", "answer": "x"}])
    write(folder, "b.jsonl", [{"question": "q", "answer": "x"}])
    assert len(manifest.read(str(folder / "?.jsonl"), columns={"question": "ask"}).samples) == 2


def test_a_mix_of_lists_is_read_and_fingerprinted(folder):
    for name in ("a", "b", "v"):
        entries = [{"question": f"{name}{i}", "answer": "x"} for i in range(3)]
        write(folder, f"{name}.jsonl", [*entries, {"x": 1}])
    source = {"weight": 1, "train": [str(folder / "a.jsonl"), str(folder / "b.jsonl")],
              "val": str(folder / "v.jsonl")}
    config = build(SFTConfig, {"data_mix": {"s": source}}, "here")
    mix = read_mix(config)
    assert len(mix.train["s"]) == 6 and sum(reason_counts(mix)["s"].values()) == 3
    prints = input_fingerprints(config, mix)
    assert prints["data_mix.s.train"].startswith("2 files, sha256 ")
    write(folder, "b.jsonl", [{"question": "other", "answer": "x"}])
    assert input_fingerprints(config, read_mix(config))["data_mix.s.train"] != prints["data_mix.s.train"]


@pytest.mark.parametrize("name", ["media/a.png", "media\\a.png", ".\\media/a.png", "file://HERE/media/a.png",
                                  "file:HERE/media/a.png", "file://localhostHERE/media/a%2Epng",
                                  "~/media/a.png"])
def test_paths_as_people_write_them(folder, monkeypatch, name):
    monkeypatch.setenv("HOME", str(folder))
    source = manifest.read(write(folder, "m.jsonl", [entry(name.replace("HERE", str(folder)))]))
    assert images(source) == [str(folder / "media/a.png")]
    monkeypatch.chdir(folder)
    for path in ("~/m.jsonl", f"file://{folder}/m.jsonl", ".\\m.jsonl"):
        assert len(manifest.read(path).samples) == 1


def test_a_file_address_of_windows_is_its_path():
    assert paths.local("file:///C:/data/a%20b.png") == "C:/data/a b.png"
    assert paths.local("FILE:///data/x") == "/data/x" and paths.local("filed/x") == "filed/x"


def test_paths_of_a_config_hold_from_the_working_folder_and_then_from_its_own(folder, monkeypatch):
    monkeypatch.setenv("HOME", str(folder / "home"))
    put(folder, {"work/here.jsonl": "", "work/both.jsonl": "", "set/both.jsonl": "", "set/own-1.jsonl": "",
                 "set/media/x": "", "home/h.jsonl": "", "set/c.json": json.dumps({
                     "thinker_ckpt": "org/name", "data_dir": "media", "data_mix": {
                         "a": {"weight": 1, "train": ["here.jsonl", "both.jsonl", "own-*.jsonl", "no.jsonl"],
                               "val": "~/h.jsonl", "media_dir": "media"}}})})
    monkeypatch.chdir(folder / "work")
    config = load_config("../set/c.json", SFTConfig)
    assert mix_entry(config, "a") == (
        1, ["here.jsonl", "both.jsonl", "../set/own-*.jsonl", "no.jsonl"], str(folder / "home/h.jsonl"))
    assert config.data_mix["a"]["media_dir"] == config.data_dir == "../set/media"
    assert config.thinker_ckpt == "org/name"


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_a_link_as_in_the_hubs_cache_keeps_its_media_beside_the_link(folder):
    repo = folder / "hub" / "datasets--a--b"
    put(repo, {"blobs/111": json.dumps(entry("img/x.png")), "blobs/222": picture()})
    put(folder, {"secret.png": picture()})
    snapshot = repo / "snapshots" / "c0ffee"
    (snapshot / "img").mkdir(parents=True)
    os.symlink("../../blobs/111", snapshot / "m.jsonl")
    os.symlink("../../../blobs/222", snapshot / "img" / "x.png")
    os.symlink(folder / "secret.png", snapshot / "img" / "y.png")
    assert images(manifest.read(str(snapshot / "m.jsonl"))) == [str(snapshot / "img" / "x.png")]
    for name in ("img/y.png", "../../blobs/222"):
        (repo / "blobs" / "111").write_text(json.dumps(entry(name)))
        assert "leaves" in manifest.read(str(snapshot / "m.jsonl")).skipped[0][1]


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
def test_any_linked_manifest_has_its_media_beside_the_link_or_else_beside_its_file(folder):
    write(folder, "set/m.jsonl", [entry("a.png", "x"), entry("b.png", "y")])
    put(folder, {"set/a.png": picture(), "set/b.png": picture(), "link/a.png": picture("blue")})
    os.symlink(folder / "set/m.jsonl", folder / "link/m.jsonl")
    found = images(manifest.read(str(folder / "link/m.jsonl")))
    assert found == [str(Path(folder, "link/a.png")), str(Path(folder, "set/b.png"))]


def test_listed_folders_give_the_paths_and_reasons_of_single_lookups(folder, monkeypatch, tmp_path_factory):
    """Where many files are looked up in a folder, its names are read at once."""
    outside = tmp_path_factory.mktemp("outside")
    put(outside, {"o.png": picture()})
    links = {"media/inside.png": "a.png", "media/whole.png": folder / "media/a.png",
             "media/two.png": "inside.png", "media/out.png": outside / "o.png", "media/loop.png": "loop.png",
             "media/broken.png": "none.png", "to_deep": "media/deep", "media/up.png": "../media/deep/b.png"}
    for name, target in links.items():
        os.symlink(target, folder / name)
    names = [*links, "media/a.png", "media/deep/b.png", "media/deep", "to_deep/b.png", "media/../media/a.png",
             "media/deep/../a.png", "media//a.png", "a", "b.png", "../x.png", "media/none.png", "", "media/",
             str(folder / "media/a.png"), str(outside / "o.png"), "media/A.png"]
    path = write(folder, "m.jsonl", [entry(name, f"{k}") for name in names for k in range(3)])
    found = []
    for listed_after in (10 ** 9, 1):
        monkeypatch.setattr(media_paths, "LISTED_AFTER", listed_after)
        for allowed in (False, True):
            source = manifest.read(path, allow_outside_paths=allowed)
            found.append((source.samples, source.skipped))
    assert found[:2] == found[2:] and len(found[0][0]) > 20 and len(found[0][1]) > 20


def test_the_system_is_asked_once_for_a_folder_of_many_files(folder, monkeypatch):
    put(folder, {f"many/{i}.png": b"" for i in range(media_paths.LISTED_AFTER * 2)})
    path = write(folder, "m.jsonl", [entry(f"many/{i}.png") for i in range(media_paths.LISTED_AFTER * 2)])
    asked, isfile = [], os.path.isfile
    monkeypatch.setattr(os.path, "isfile", lambda path: asked.append(path) or isfile(path))
    assert len(manifest.read(path).samples) == media_paths.LISTED_AFTER * 2
    assert len(asked) < media_paths.LISTED_AFTER + 50
