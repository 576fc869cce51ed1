"""Texts and file names as other systems write them: line ends, encodings, case, Windows' paths; two lints."""

import ast
import json
import ntpath
import re
import subprocess
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from conftest import ROOT

from omni.base.config import AudioArch, SFTConfig, VisionArch
from omni.base.config_file import load_config
from omni.data import manifest, media
from omni.data.media_reader import MediaReader

CODE = [ROOT / "sft_omni.py", *sorted([*(ROOT / "omni").rglob("*.py"), *(ROOT / "data").glob("*.py")])]
# What Windows or macOS lacks. Only omni/base/machine.py may name it.
MISSING = {"fcntl", "resource", "msvcrt", "fork", "register_at_fork", "alarm", "setitimer", "SIGALRM",
           "O_DIRECTORY", "posix_fadvise", "sched_getaffinity", "get_context", "setsid", "getuid", "uname",
           "sysconf", "mkfifo", "platform", "windll"}
RESERVED = re.compile(r'[<>:"|?*\\\x00-\x1f]|[ .]$|^(con|prn|aux|nul|com\d|lpt\d)(\.|$)', re.I)


def lines_of(toy, source: str) -> list[dict]:
    path = toy.root / "data" / source / "train.jsonl"
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def tables(toy) -> dict[str, str]:
    """The same samples in every format that has lines."""
    rows = lines_of(toy, "image_text")
    answers = [row["messages"][1]["content"] for row in rows]
    questions = [row["messages"][0]["content"].replace("<image>", "").strip() for row in rows]
    triples = [*zip([row["images"][0] for row in rows], questions, answers, strict=True)]
    header = ("image", "question", "answer")
    return {"a.jsonl": "".join(json.dumps(row) + "\n" for row in rows), "a.json": json.dumps(rows, indent=2),
            "a.csv": "\n".join(",".join(row) for row in [header, *triples]),
            "a.tsv": "".join("\t".join(row) + "\n" for row in [header, *triples])}


@pytest.mark.parametrize("name", ["a.jsonl", "a.json", "a.csv", "a.tsv"])
@pytest.mark.parametrize("change", [lambda text: text.replace("\n", "\r\n").encode(),
                                    lambda text: b"\xef\xbb\xbf" + text.replace("\n", "\r\n").encode()])
def test_line_ends_and_a_mark_of_windows_change_no_sample(toy, name, change):
    folder, text = toy.root / "data" / "image_text", tables(toy)[name]
    found = []
    for content in (text.encode(), change(text)):
        (folder / name).write_bytes(content)
        found.append(manifest.read(str(folder / name)))
        (folder / name).unlink()
    assert found[0].samples == found[1].samples and len(found[0].samples) == 12
    assert not found[0].skipped and not found[1].skipped


def test_an_ljspeech_table_of_windows(toy):
    folder = toy.root / "data" / "audio_text"
    (folder / "wavs").mkdir(exist_ok=True)
    (folder / "wavs" / "c.wav").write_bytes((folder / "train_1.wav").read_bytes())
    samples = []
    for end in (b"\n", b"\r\n"):
        (folder / "metadata.csv").write_bytes(b"c|One two.|one two" + end)
        samples.append(manifest.read(str(folder / "metadata.csv")).samples)
        (folder / "metadata.csv").unlink()
    assert samples[0] == samples[1] and samples[0][0].answer == "one two"


def test_a_config_with_the_line_ends_of_windows(toy, tmp_path):
    text = json.dumps(toy.config, indent=1).replace("{", "{ // a comment", 1)
    for name, content in (("a", text), ("b", text.replace("\n", "\r\n"))):
        (tmp_path / f"{name}.json").write_bytes(content.encode())
    first, second = (load_config(str(tmp_path / f"{name}.json"), SFTConfig) for name in "ab")
    assert first == second


def test_names_that_differ_only_in_case_are_different_media(toy, tmp_path):
    pictures = [s.images[0] for s in toy.samples("image_text")][:2]
    for name, picture in zip(("Cat.png", "cat.png"), pictures, strict=True):
        (tmp_path / name).write_bytes(Path(picture).read_bytes())
    if len(list(tmp_path.iterdir())) == 1:
        pytest.skip("this file system can't hold both")
    rows = [{"image": name, "question": "What?", "answer": "x"} for name in ("Cat.png", "cat.png")]
    (tmp_path / "m.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    first, second = (s.images[0] for s in manifest.read(str(tmp_path / "m.jsonl")).samples)
    reader = MediaReader(VisionArch(image_size=32), AudioArch())
    assert not torch.equal(reader.pixels(first), reader.pixels(second))
    assert reader.rng(first, 1).random() != reader.rng(second, 1).random()


def test_a_take_and_a_split_do_not_depend_on_the_system(monkeypatch):
    """Nor on the folder that the data lies in."""
    reader = MediaReader(None, None)
    wanted = reader.rng("/data/img/cat.png", 3).random()
    assert manifest._relative("/data/img/cat.png", Path("/data")) == "img/cat.png"
    windows = SimpleNamespace(path=ntpath, sep="\\")
    monkeypatch.setattr(media, "os", windows)
    monkeypatch.setattr(manifest, "os", windows)
    for path in (r"C:\Users\me\data\img\cat.png", "D:/img/cat.png", r"\\server\share\cat.png",
                 r"C:\tars\a.tar@512+99/cat.png"):
        assert reader.rng(path, 3).random() == wanted, path
    assert manifest._relative(r"C:\data\img\cat.png", r"C:\data") == "img/cat.png"
    assert manifest._relative(r"D:\img\cat.png", r"C:\data") == r"D:\img\cat.png"


def test_every_file_of_the_repository_can_be_checked_out_on_any_system():
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=True).stdout
    names = listed.decode("utf-8").split("\0")[:-1]
    assert len(names) > 100
    for name in names:
        assert len(name) < 120 and not any(RESERVED.search(part) for part in name.split("/")), name
    assert not [name for name, count in Counter(map(str.casefold, names)).items() if count > 1]


def calls(path: Path) -> list[ast.Call]:
    tree = ast.parse(path.read_text(encoding="utf-8"))
    return [node for node in ast.walk(tree) if isinstance(node, ast.Call)]


def without_encoding(call: ast.Call) -> bool:
    """Whether a call opens a text in the encoding of the system, which is cp1252 on many Windows."""
    function = call.func
    name = function.id if isinstance(function, ast.Name) else getattr(function, "attr", "")
    keywords = {keyword.arg: keyword.value for keyword in call.keywords}
    if "encoding" in keywords:
        return False
    if name in ("read_text", "write_text"):
        return True
    if name in ("run", "Popen", "check_output"):
        return "text" in keywords or "universal_newlines" in keywords
    if name != "open":
        return False
    plain = isinstance(function, ast.Name)  # open(path, mode); else Path.open(mode), or not of a text at all
    mode = keywords.get("mode", ([*call.args, ast.Constant("r")][1:] if plain else [*call.args, None])[0])
    if isinstance(mode, ast.Constant):
        return isinstance(mode.value, str) and not {*mode.value} & {"b", ":"}
    return plain or mode is None


@pytest.mark.parametrize("code, found", [
    ("open(p)", 1), ("open(p, 'w')", 1), ("open(p, mode)", 1), ("p.open()", 1), ("p.open('a')", 1),
    ("p.read_text()", 1), ("run(c, text=True)", 1), ("open(p, 'rb')", 0), ("open(p, encoding='utf-8')", 0),
    ("p.open('wb')", 0), ("p.write_text(t, encoding='utf-8')", 0), ("os.open(p, 0)", 0),
    ("Image.open(p)", 0), ("tarfile.open(p, 'r:')", 0), ("run(c)", 0)])
def test_a_text_without_an_encoding_is_noticed(code, found):
    assert without_encoding(ast.parse(code).body[0].value) == bool(found)


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_text_is_opened_with_its_encoding(path):
    assert [f"line {call.lineno}" for call in calls(path) if without_encoding(call)] == []


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_python_3_10_can_read_and_run_it(path):
    """What later versions have, among what was once used here."""
    ast.parse(path.read_text(encoding="utf-8"), feature_version=(3, 10))
    for call in calls(path):
        name = ast.unparse(call.func)
        assert name not in ("sys.exception", "hashlib.file_digest"), f"line {call.lineno}: {name}"
        if name.endswith((".from_bytes", ".to_bytes")):
            assert len(call.args) + len(call.keywords) >= 2, f"line {call.lineno}: no order of bytes"


@pytest.mark.parametrize("path", CODE, ids=lambda path: str(path.relative_to(ROOT)))
def test_what_a_system_lacks_is_named_in_one_place(path):
    if path.name == "machine.py":
        return
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        names = {getattr(node, "attr", None), *(alias.name for alias in getattr(node, "names", [])
                                               if isinstance(alias, ast.alias))}
        assert not names & MISSING, f"line {node.lineno}: {names & MISSING}"
        if isinstance(node, ast.Constant) and isinstance(node.value, str):
            assert not node.value.startswith("/proc"), f"line {node.lineno}"
