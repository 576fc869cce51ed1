"""`python -m omni.evaluate`: the figures of an epoch on any source, and every answer beside its reference."""

import json
import shutil

import pytest
from conftest import assert_user_error
from test_run import rows, train

from omni.base.errors import UserError
from omni.evaluate import main
from omni.export import export


@pytest.fixture(scope="module")
def run(toy, tmp_path_factory):
    return train(toy, tmp_path_factory.mktemp("run"), eval_samples=None, num_epochs=1)


@pytest.mark.parametrize("source", ["image_text", "audio_text", "text_only"])
def test_the_figures_are_those_of_the_run(toy, run, source, capsys, tmp_path):
    data = toy.root / "data" / source / "val.jsonl"
    main(["--ckpt", str(run / "omni_final.pt"), "--data", str(data), "--json", "--swapped",
          "--out", str(tmp_path / "answers.jsonl")])
    found = json.loads(capsys.readouterr().out)
    (epoch,) = rows(run, "epoch")
    names = {name.replace(source, "val"): name for name in epoch if name.startswith(f"{source}/")}
    assert names and all(found[own] == pytest.approx(epoch[name], rel=0.02) for own, name in names.items())
    assert {name: found["counts"][name] for name in names} == dict.fromkeys(names, 6)
    answers = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
    assert sorted(row["reference"] for row in answers) == sorted(s.answer for s in toy.samples(source, "val"))
    assert {"question", "answer", "right", "task", "images", "audios", "cut"} <= answers[0].keys()
    assert bool(found["swapped"]) == (source != "text_only")


def test_it_is_printed_as_after_an_epoch_from_any_format(toy, run, tmp_path, capsys):
    shutil.copy(toy.root / "data" / "image_text" / "val_0.png", tmp_path)
    table = tmp_path / "pictures.csv"
    table.write_text("file,question,answer\nval_0.png,What color?,red\nval_0.png,What shape?,circle\n")
    main(["--ckpt", str(run / "omni_best.pt"), "--data", str(table)])
    said = capsys.readouterr().out
    assert "2 samples: val_loss=" in said and "Image QA" in said and "media swapped" not in said


def test_an_exported_folder_is_scored_as_the_file_that_it_was_made_of(toy, run, tmp_path, capsys):
    export(str(run / "omni_final.pt"), tmp_path / "system")
    found = []
    for ckpt in (run / "omni_final.pt", tmp_path / "system"):
        capsys.readouterr()
        main(["--ckpt", str(ckpt), "--data", str(toy.root / "data" / "text_only" / "val.jsonl"), "--json"])
        found.append(json.loads(capsys.readouterr().out))
    assert {k: v for k, v in found[0].items() if k not in ("ckpt", "seconds")} == \
        {k: v for k, v in found[1].items() if k not in ("ckpt", "seconds")}


def test_what_cannot_be_scored_is_one_line_and_exit_code_2(toy, run, tmp_path, command, capsys):
    ckpt, data = str(run / "omni_final.pt"), str(tmp_path / "val.jsonl")
    given = ["--ckpt", ckpt, "--data", data]
    shutil.copytree(toy.root / "data" / "image_text", tmp_path, dirs_exist_ok=True)
    (tmp_path / "val_0.png").write_text("<html>")
    for wrong, words in ((["--max-new-tokens", "0"], "--max-new-tokens"), (["--out", data], "is an input"),
                         (["--out", str(tmp_path / "no" / "x")], "can't be written")):
        with pytest.raises(UserError, match=words):
            main([*given, *wrong])
    assert_user_error(command("-m", "omni.evaluate", *given), "1 of 6 samples can't be used: 1x not an image")
    main([*given, "--max-skipped", "0.5", "--json"])
    said = capsys.readouterr()
    found = json.loads(said.out)
    assert found["counts"]["image_qa"] == 5 and len(found["skipped"]) == 1
    assert "1 samples skipped" in said.err
