"""The report: what it shows, that nothing escapes from it, that a browser opens it without a complaint."""

import contextlib
import html.parser
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from conftest import assert_user_error
from published import clip, picture, put

import sft_omni
from omni.errors import UserError
from omni.report import page
from omni.report.__main__ import main as report_main
from omni.report.html import POINTS, Run, chart, thin

BROWSER = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
EVIL = '<script>alert(1)</script>"\'><img src=x onerror=alert(1)>'


class Page(html.parser.HTMLParser):
    """What a page holds: tags with their attributes, the text, and whether every tag is closed."""

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


def test_the_report_shows_what_a_run_came_to(out):
    page = read(out / "report.html")
    for words in ("Training loss over steps", "Learning rate over steps", "Speed over steps", "2 of 2",
                  "before training", "epoch 2", "media swapped", "image_text/qa", "audio_text/wer", "wanted",
                  "samples drawn", "samples/s", "main memory", "Drawn at random", "reference:"):
        assert words in page.text, words
    assert page.count("svg") >= 7 and page.count("article") >= 20
    assert page.count("img") >= 10 and page.count("audio") >= 10
    for tag, attributes in page.tags:
        for name in ("src", "href"):
            assert attributes.get(name, "#").startswith(("data:", "#")), tag  # nothing from elsewhere
        assert tag not in ("script", "link", "iframe")
        assert tag != "img" or attributes["alt"]


def test_every_figure_has_its_count_before_and_after(out):
    run = Run.read(out)
    assert set(run.epochs[-1]["counts"]) == set(run.figures()) == set(run.before["counts"])
    assert run.epochs[-1]["counts"]["image_text/qa"] == 6
    assert [epoch for epoch, _ in run.figure("image_text/qa")] == [0, 1, 2]
    assert [epoch for epoch, _ in run.figure("image_text/qa", swapped=True)] == [1, 2]


def test_before_training_a_part_is_scored_taken_evenly(toy):
    from omni.eval.evaluate import Evaluator
    from omni.eval.scores import sample_counts
    model = toy.model()
    samples = {"text_only": toy.samples("text_only", "train")}
    scores = Evaluator(model, toy.collator(model), 4, 2, "fp32").score(samples, limit=5)
    assert set(sample_counts(scores).values()) == {4}  # each third of 12


def test_the_page_is_readable_while_the_run_goes_on(out, tmp_path):
    shutil.copytree(out, tmp_path / "run")
    lines = (out / "metrics.jsonl").read_text().splitlines(keepends=True)
    for count in (0, 1, 5, len(lines)):
        (tmp_path / "run" / "metrics.jsonl").write_text("".join(lines[:count]) + '{"event": "st')
        read(page.write(tmp_path / "run"))
    (tmp_path / "run" / "before.json").unlink()
    (tmp_path / "run" / "config.json").unlink()
    read(page.write(tmp_path / "run"))


def test_what_users_wrote_is_text_and_never_markup(toy, tmp_path):
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


@pytest.mark.parametrize("row", [{"event": "step"}, {"event": "epoch", "epoch": "one"}, {"event": "answers"},
                                 {"event": "answers", "samples": {"a": [7]}}])
def test_a_row_that_no_run_writes_is_one_line(out, tmp_path, row):
    shutil.copytree(out, tmp_path / "run")
    with open(tmp_path / "run" / "metrics.jsonl", "a") as f:
        f.write(json.dumps(row) + "\n")
    for folders in ([str(tmp_path / "run")], [str(tmp_path / "run"), str(out)]):
        with contextlib.suppress(UserError):  # or the report is as it can be
            page.main(folders)


def test_a_medium_that_is_gone_or_broken_is_told(out, tmp_path):
    shutil.copytree(out, tmp_path / "run")
    text = (tmp_path / "run" / "metrics.jsonl").read_text()
    (tmp_path / "run" / "metrics.jsonl").write_text(text.replace("val_0.png", "gone.png"))
    assert "gone.png: no such file" in read(page.write(tmp_path / "run")).text


def test_a_long_curve_is_drawn_as_means():
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


def test_a_folder_without_a_run_is_one_line(tmp_path, command):
    assert_user_error(command("-m", "omni.report", tmp_path), "metrics.jsonl")
    with pytest.raises(UserError, match="metrics.jsonl"):
        page.main([str(tmp_path), str(tmp_path)])


@pytest.mark.skipif(BROWSER is None, reason="no Chromium here to open the report with")
@pytest.mark.parametrize("size", ["1280,2000", "390,2000"])
@pytest.mark.parametrize("scheme", [0, 1])  # dark, light
def test_a_browser_opens_it_without_a_complaint(out, tmp_path, size, scheme):
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


def test_tensorboard_events_besides_where_it_is_installed(toy, tmp_path):
    pytest.importorskip("tensorboard", reason="tensorboard is not installed")
    out = train(toy, tmp_path, num_epochs=1)
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
    events = EventAccumulator(str(out / "tensorboard"))
    events.Reload()
    assert {"step/loss", "epoch/image_qa"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("step/loss")] == [1, 2, 3, 4, 5]
