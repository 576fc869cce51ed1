"""The report: its content, escaping of all text, and one-line errors for damaged files."""

import copy
import html.parser
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import assert_user_error
from published import clip, picture, put

import sft_omni
from omni.base.errors import UserError
from omni.eval.evaluate import Evaluator
from omni.eval.scores import sample_counts
from omni.report import run_report, sample_cards
from omni.report.__main__ import main as report_main
from omni.report.compare import compare
from omni.report.html import POINTS, chart, thin
from omni.report.run_data import Run

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = '<script>alert(1)</script>"\'><img src=x onerror=alert(1)>'


class Page(html.parser.HTMLParser):
    """The tags of a page with their attributes, its text, and the tags that are still open."""

    def __init__(self, text: str):
        super().__init__()
        self.tags, self.open, self.text = [], [], ""
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in ("meta", "br", "img"):
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text += data + " "

    def count(self, tag: str) -> int:
        return sum(name == tag for name, _ in self.tags)


def train(toy, folder: Path, **changes) -> Path:
    sft_omni.main(["--config", toy.write(folder, eval_samples=6, **changes)])
    return folder / "out"


@pytest.fixture(scope="module")
def out(toy, tmp_path_factory) -> Path:
    return train(toy, tmp_path_factory.mktemp("report"))


def read(path: Path) -> Page:
    page = Page(path.read_text(encoding="utf-8"))
    assert not page.open
    return page


def test_the_report_shows_the_results_of_a_run(out):
    page = read(out / "report.html")
    for words in ("Training loss over steps", "Learning rate over steps", "Speed over steps", "2 of 2",
                  "before training", "epoch 2", "media swapped", "image_text/qa", "audio_text/wer", "wanted",
                  "samples drawn", "samples/s", "main memory", "Drawn at random", "reference:"):
        assert words in page.text, words
    assert page.count("svg") >= 7 and page.count("article") >= 20
    assert page.count("img") >= 10 and page.count("audio") >= 10
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("data:", "#")), tag  # loads nothing
        assert tag not in ("script", "link", "iframe")
        assert tag != "img" or attributes["alt"]


def test_every_metric_has_its_sample_count_before_and_after(out):
    run = Run.read(out)
    assert set(run.epochs[-1]["counts"]) == set(run.metric_names()) == set(run.before["counts"])
    assert run.epochs[-1]["counts"]["image_text/qa"] == 6
    assert [epoch for epoch, _ in run.metric_curve("image_text/qa")] == [0, 1, 2]
    assert [epoch for epoch, _ in run.metric_curve("image_text/qa", swapped=True)] == [1, 2]


def test_before_training_evenly_spaced_samples_are_scored(toy):
    model = toy.model()
    samples = {"text_only": toy.samples("text_only", "train")}
    scores = Evaluator(model, toy.collator(model), 4, 2, "fp32").score(samples, limit=5)
    assert set(sample_counts(scores).values()) == {4}  # every third of 12


def test_the_report_can_be_written_during_a_run(out, tmp_path):
    shutil.copytree(out, tmp_path / "run")
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    for count in (0, 1, 5, len(lines)):
        (tmp_path / "run" / "metrics.jsonl").write_text("".join(lines[:count]) + '{"event": "st')
        read(run_report.write(tmp_path / "run"))
    (tmp_path / "run" / "before.json").unlink()
    (tmp_path / "run" / "config.json").unlink()
    read(run_report.write(tmp_path / "run"))


def test_text_from_users_is_escaped(toy, tmp_path):
    data = tmp_path / "data"
    put(data, {"a.png": picture(), "b.wav": clip()})
    talk = [{"role": role, "content": EVIL} for role in ("system", "user", "assistant")]
    rows = [{"messages": talk, "images": ["a.png"], "audios": ["b.wav"]}] * 4
    put(data, {"m.jsonl": "".join(json.dumps(row) + "\n" for row in rows)})
    path = str(data / "m.jsonl")
    evil = "<b>x</b>"
    out = train(toy, tmp_path, num_epochs=1, samples_per_epoch=4,
                data_mix={evil: {"weight": 1, "train": path, "val": path}})
    text = (out / "report.html").read_text()
    assert "<script" not in text and "<b>x</b>" not in text and "onerror" in read(out / "report.html").text
    assert all("onerror" not in attributes for _, attributes in read(out / "report.html").tags)


DEEP = "[" * 100_000
DAMAGE = {  # name -> the damaged content of a whole file
    "empty": lambda content: b"", "cut": lambda content: content[:len(content) // 3],
    "one byte": lambda content: content[:1], "not UTF-8": lambda content: b"\xff\xfe" + content,
    "odd bytes": lambda content: content[:40] + b"\x80\x00" + content[40:],
    "a number": lambda content: b"7\n", "null": lambda content: b"null\n", "a list": lambda content: b"[1]\n",
    "a text": lambda content: b'"x"\n', "an empty object": lambda content: b"{}\n",
    "a huge number": lambda content: b'{"event": ' + b"9" * 5000 + b"}\n",
    "nested": lambda content: DEEP.encode(), "closed": lambda content: (DEEP + "]" * len(DEEP)).encode(),
    "nested objects": lambda content: b'{"a":' * 400 + b"1" + b"}" * 400,
    "binary": lambda content: bytes(range(256))}
HARMLESS = {("metrics.jsonl", "empty"), ("metrics.jsonl", "cut"), ("metrics.jsonl", "one byte"),  # a new run
            ("config.json", "an empty object"), ("before.json", "an empty object")}


@pytest.mark.parametrize("compared", [False, True])
@pytest.mark.parametrize("name", ["config.json", "before.json", "metrics.jsonl"])
def test_a_damaged_file_is_a_user_error_that_names_it(out, tmp_path, name, compared):
    for kind, damage in DAMAGE.items():
        folder = shutil.copytree(out, tmp_path / kind.replace(" ", "_"))
        (folder / name).write_bytes(damage((out / name).read_bytes()))
        folders = [str(out), str(folder), "--out", str(tmp_path / "both.html")] if compared else [str(folder)]
        if (name, kind) in HARMLESS:
            report_main(folders)
            continue
        with pytest.raises(UserError) as caught:
            report_main(folders)
        assert str(folder / name) in str(caught.value) and "; " in str(caught.value), kind


@pytest.mark.parametrize("name", ["config.json", "before.json", "metrics.jsonl"])
def test_the_command_ends_with_one_line_and_exit_code_2(out, tmp_path, command, name):
    folder = shutil.copytree(out, tmp_path / "run")
    (folder / name).write_bytes(b"\x80" + (out / name).read_bytes())
    for folders in ([folder], [out, folder])[:2 if name == "config.json" else 1]:
        assert_user_error(command("-m", "omni.report", *folders), str(folder / name), "not UTF-8")


def places(value, path=()):
    """The path to every value in nested lists and objects; of a list, to its first item alone."""
    yield path
    inner = {0: value[0]} if isinstance(value, list) and value else value
    for key, item in inner.items() if isinstance(inner, dict) else ():
        yield from places(item, (*path, key))


def test_a_value_of_a_wrong_type_is_a_user_error_or_harmless(out, tmp_path, monkeypatch):
    """Replaces each value of config.json, of before.json and of one row of each event."""
    monkeypatch.setattr(sample_cards, "audio_tag", lambda path: f"{path}")  # encoding clips takes long
    monkeypatch.setattr(sample_cards, "image_tag", lambda path: f"{path}")
    folder, refused = shutil.copytree(out, tmp_path / "run"), 0
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    first = {row["event"]: row for row in rows}
    assert first.keys() == {"step", "epoch", "answers"}
    sets = first["answers"]["samples"]
    first["answers"]["samples"] = {name: examples[:1] for name, examples in sets.items()}
    wrong = [None, True, -7, 10 ** 400, 1e308, 1e17, float("nan"), float("inf"), "x\0\ud800", [], [[1]], {},
             {"a/b": "c"}]
    for name, value in [("config.json", json.loads((out / "config.json").read_text())),
                        ("before.json", json.loads((out / "before.json").read_text())),
                        *(("metrics.jsonl", row) for row in first.values())]:
        whole = (out / name).read_text()
        for path in list(places(value))[1:40]:
            for other in wrong:
                changed = inner = copy.deepcopy(value)
                for key in path[:-1]:
                    inner = inner[key]
                inner[path[-1]] = other
                text = json.dumps(changed)
                lines = [json.dumps(row) for row in first.values() if row is not value]
                (folder / name).write_text(text if name != "metrics.jsonl" else "\n".join([*lines, text, ""]))
                try:
                    run = Run.read(folder)
                except UserError as err:
                    assert "\n" not in str(err) and str(folder / name) in str(err)
                    refused += 1
                    continue
                run_report.build(run)
                compare([run, run])
        (folder / name).write_text(whole)
    assert refused > 500


def test_a_damaged_medium_of_an_example_is_shown_with_the_reason(toy, tmp_path):
    data, copied = toy.root / "data", tmp_path / "medium"
    for path, tag in ((data / "image_text" / "val_0.png", sample_cards.image_tag),
                      (data / "audio_text" / "val_1.wav", sample_cards.audio_tag)):
        assert "data:" in tag(str(path))
        for kind, damage in DAMAGE.items():
            copied.write_bytes(damage(path.read_bytes()))
            assert ("data:" not in tag(str(copied)) and "medium: " in tag(str(copied))) or kind == "odd bytes"
        for odd in ("", "\0", "\ud800", str(tmp_path), "x" * 9999, f"{path}@{'9' * 30}+5/a.png"):
            assert "data:" not in tag(odd)


def test_a_missing_medium_is_named(out, tmp_path):
    shutil.copytree(out, tmp_path / "run")
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    (tmp_path / "run" / "metrics.jsonl").write_text(text.replace("val_0.png", "gone.png"))
    assert "gone.png: no such file" in read(run_report.write(tmp_path / "run")).text


def test_a_long_curve_is_drawn_as_means_of_its_pieces():
    curve = [(x, float(x % 2)) for x in range(10_000)]
    assert len(thin(curve)) <= POINTS and all(0.4 < y < 0.6 for _, y in thin(curve))
    assert chart("none", {"a": []}) == "" and "<svg" in chart("one", {"a": [(1, 2.0)]})


def test_runs_are_compared_side_by_side(toy, out, tmp_path, capsys):
    other = train(toy, tmp_path, learning_rate=1e-3, num_epochs=1)
    report_main([str(out), str(other), "--out", str(tmp_path / "both.html")])
    page = read(tmp_path / "both.html")
    assert "learning_rate" in page.text and "0.003" in page.text and "0.001" in page.text
    assert "batch_size" not in page.text  # the same in both
    assert "out (1)" in page.text and "image_text/qa over epochs" in page.text
    assert "both.html" in capsys.readouterr().out


def test_a_folder_without_a_run_is_a_user_error(tmp_path, command):
    assert_user_error(command("-m", "omni.report", tmp_path), "metrics.jsonl")
    with pytest.raises(UserError, match="metrics.jsonl"):
        report_main([str(tmp_path), str(tmp_path)])


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here to open the report with")
@pytest.mark.parametrize("size", ["1280,2000", "390,2000"])
@pytest.mark.parametrize("scheme", [0, 1])  # dark, light
def test_a_browser_shows_the_report_without_errors(out, tmp_path, size, scheme):
    picture = tmp_path / "page.png"
    done = subprocess.run(
        [BROWSER, "--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage",
         f"--user-data-dir={tmp_path / 'profile'}", "--enable-logging=stderr", f"--window-size={size}",
         f"--blink-settings=preferredColorScheme={scheme}", f"--screenshot={picture}",
         (out / "report.html").as_uri()], capture_output=True, text=True, timeout=120)
    assert "CONSOLE" not in done.stderr, done.stderr[-2000:]
    from PIL import Image
    corner = Image.open(picture).convert("L").getpixel((3, 3))
    assert corner < 60 if scheme == 0 else corner > 200


def test_tensorboard_events_are_written_if_it_is_installed(toy, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    out = train(toy, tmp_path, num_epochs=1)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert {"step/loss", "epoch/image_qa"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("step/loss")] == [1, 2, 3, 4, 5]
