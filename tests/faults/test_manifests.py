"""Malformed manifests: only bad lines are skipped, and reports show manifest content as plain text."""

import json
import os
import time

import pytest
from test_run import rows, train
from toy import conversation

from omni.base.errors import UserError
from omni.data import manifest
from omni.report import run_report
from omni.train.metrics import MetricsFile


def write(toy, tmp_path, lines: list[str | dict], **changes) -> dict:
    """The settings of a text-only mix whose training manifest holds `lines`."""
    text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    (tmp_path / "train.jsonl").write_text(text, encoding="utf-8", newline="")
    source = {"weight": 1, "train": str(tmp_path / "train.jsonl"),
              "val": str(toy.root / "data" / "text_only" / "val.jsonl")}
    return {"data_mix": {"text_only": source}, **changes}


GOOD = [conversation(f"What is {n}?", f"It is {n}.") for n in range(40)]


def test_a_long_prompt_loses_its_start_but_never_its_answer_and_is_counted(toy, tmp_path, capsys):
    lines = [*GOOD, conversation("the question " * 300 + "is red", "It is 7.")]
    out = train(toy, tmp_path, **write(toy, tmp_path, lines), num_epochs=1, max_length=64)
    assert "source text_only: 1 samples are longer than max_length" in capsys.readouterr().out
    assert rows(out, "epoch")[0]["cut"] == {"text_only": 1}


def test_samples_that_cannot_be_cut_are_skipped_with_a_reason(toy, tmp_path):
    lines = [*GOOD, conversation("What?", "word " * 300)]
    out = train(toy, tmp_path / "a", **write(toy, tmp_path, lines), num_epochs=1, max_length=64)
    assert rows(out, "epoch")[0]["skipped"] == {"text_only": {"its answer alone exceeds max_length": 1}}
    with pytest.raises(UserError, match="its media exceed max_length"):
        train(toy, tmp_path / "b", num_epochs=1, max_length=16, data_mix={"image_audio_text": 1})


def test_carriage_returns_duplicates_and_blank_lines_are_accepted(toy, tmp_path):
    lines = [json.dumps(line) + "\r" for line in GOOD] + ["", " \r", json.dumps(GOOD[0])]
    source = manifest.read(write(toy, tmp_path, lines)["data_mix"]["text_only"]["train"])
    assert len(source.samples) == 41 and not source.skipped


def test_only_the_broken_line_in_the_middle_is_skipped(toy, tmp_path):
    lines = [*GOOD[:20], '{"messages": [{"role": "user", "cont', *GOOD[20:]]
    out = train(toy, tmp_path, **write(toy, tmp_path, lines), num_epochs=1)
    (row,) = map(json.loads, (out / "skipped.jsonl").read_text().splitlines())
    assert row == {"source": "text_only", "split": "train", "line": 21, "reason": "not valid JSON"}


@pytest.mark.parametrize("content, words", [
    (b"", ["0 of"]), (b"\n\n", ["0 of"]), (b"\xff\xfe{\0}\0", ["UTF-8"]), (b"\x80\n", ["UTF-8"]),
    (b"{\n" * 50, ["50 of", "not valid JSON", "line 1"]), (b"\0" * 100, ["1 of", "not valid JSON"]),
    (b'{"messages": [{"role": "assistant", "content": "x"}]}\n' * 9, ["9 of", "turns must go"]),
    (b'{"messages": [{"role": "user", "content": "<image>x"}, {"role": "assistant", "content": "y"}]}\n',
     ["1 <image> placeholders for 0 files"]),
    (b'{"messages": [], "images": []}\n', ["no \"messages\""]), (b"[1, 2]\n" * 3, ["not a JSON object"])])
def test_an_unusable_manifest_ends_the_run_with_a_one_line_error(toy, tmp_path, content, words):
    config = write(toy, tmp_path, [])
    (tmp_path / "train.jsonl").write_bytes(content)
    with pytest.raises(UserError) as caught:
        train(toy, tmp_path, **config)
    message = str(caught.value)
    assert "train.jsonl" in message and "\n" not in message
    assert all(word in message for word in words), message


def test_a_manifest_that_is_no_regular_file_is_refused_at_once(tmp_path):
    os.mkfifo(tmp_path / "pipe.jsonl")
    for path in (tmp_path / "pipe.jsonl", "/dev/zero", tmp_path):
        with pytest.raises(UserError, match="can't open"):
            manifest.read(str(path))


@pytest.mark.parametrize("path", ["../outside.png", "/etc/hostname", "a/../../outside.png", "link.png"])
def test_paths_that_leave_the_folder_are_refused_unless_allowed(toy, tmp_path, path):
    inside = tmp_path / "set"
    (inside / "a").mkdir(parents=True)
    outside = tmp_path / "outside.png"
    outside.write_bytes((toy.root / "data" / "image_text" / "train_0.png").read_bytes())
    (inside / "link.png").symlink_to(outside)
    (inside / "m.jsonl").write_text(json.dumps(conversation("<image>What?", "x", images=[path])))
    ((_, reason),) = manifest.read(str(inside / "m.jsonl")).skipped
    assert "leaves the manifest's folder (allow_outside_paths permits it)" in reason
    assert manifest.read(str(inside / "m.jsonl"), allow_outside_paths=True).samples


def test_only_the_line_of_50_mb_is_skipped(tmp_path):
    with open(tmp_path / "m.jsonl", "w") as file:
        file.write(json.dumps(conversation("x" * 50_000_000, "y")) + "\n" + json.dumps(GOOD[0]) + "\n")
    begun = time.monotonic()
    source = manifest.read(str(tmp_path / "m.jsonl"))
    assert time.monotonic() - begun < 10
    assert len(source.samples) == 1 and "longer than" in source.skipped[0][1]


def test_many_lines(tmp_path, full):
    """A million with --full. Prints the time per line, which must not grow with their number."""
    count = 1_000_000 if full else 20_000
    with open(tmp_path / "m.jsonl", "w") as file:
        file.writelines(json.dumps(conversation(f"What is {n}?", f"{n}")) + "\n" for n in range(count))
    begun = time.monotonic()
    source = manifest.read(str(tmp_path / "m.jsonl"))
    seconds = time.monotonic() - begun
    assert len(source.samples) == count and not source.skipped
    print(f"{count} lines in {seconds:.1f} s, {seconds / count * 1e6:.0f} µs a line")


EVIL = "<script>alert(1)</script>"


def test_the_report_shows_manifest_content_as_plain_text(toy, tmp_path):
    evil = conversation(EVIL, f"'\"><img src=x onerror=alert(1)>{EVIL}", group=EVIL)
    (tmp_path / "val.jsonl").write_text(json.dumps(evil) + "\n" + json.dumps(GOOD[0]))
    mix = {EVIL: {"weight": 1, "train": str(toy.root / "data" / "text_only" / "train.jsonl"),
                  "val": str(tmp_path / "val.jsonl")}}
    out = train(toy, tmp_path, data_mix=mix, num_epochs=1)
    page = (out / "report.html").read_text(encoding="utf-8")
    assert "<script" not in page and "<img src=x" not in page and "&lt;script&gt;" in page


def test_the_report_escapes_answers_and_folder_names(tmp_path):
    shown = {"question": EVIL, "answer": EVIL, "reference": EVIL, "right": False,
             "images": [f"/tmp/{EVIL}.png"], "audios": []}
    folder = tmp_path / "<b>run"
    folder.mkdir()
    metrics = MetricsFile(folder)
    metrics.add("epoch", epoch=1, loss=1.0, **{f"{EVIL}/acc": 0.5}, swapped={},
                mix={EVIL: {"wanted": 1.0, "samples": 1.0, "tokens": 1.0, "passes": 1.0}})
    metrics.add("answers", epoch=1, samples={EVIL: [shown]})
    html = run_report.write(folder).read_text(encoding="utf-8")
    assert "<script" not in html and "<b>run" not in html
