"""Folders and tars as sources: Kaldi, pairs of a medium and a text, folders of classes, WebDataset."""

import pytest
from published import clip, picture, put, tar
from test_datasets import read, transcripts

from omni.base.errors import MediaError, UserError
from omni.data import audio, manifest


@pytest.fixture
def folder(tmp_path):
    put(tmp_path, {"wav/c.wav": clip()})
    return tmp_path


def test_kaldi(folder):
    """Kaldi: wav.scp and text, with or without segments; commands are not run."""
    put(folder, {"k/wav.scp": "r1 ../wav/c.wav\nr2 sox x.sph -t wav - |\nr3\t/etc/x.wav\n",
                 "k/text": "r1 go on\nr2 no\nr3 x\nr4 none\n"})
    source = manifest.read(str(folder / "k"), allow_outside_paths=True)
    assert transcripts(source.samples) == ["go on"] and len(source.skipped) == 3
    assert "nothing is run" in source.skipped[0][1]
    put(folder, {"s/wav.scp": "r1 c.wav\n", "s/c.wav": clip(2.0),
                 "s/segments": "u1 r1 0.0 0.5\nu2 r1 0.5 2.0\n",
                 "s/text": "u1 go\nu2 on and on\n"})
    for path in ("s", "s/text", "s/wav.scp"):
        samples = read(folder / path)
        assert transcripts(samples) == ["go", "on and on"]
        assert [len(audio.load(s.audios[0])) for s in samples] == [8000, 24000]


def test_folders_of_pairs(folder):
    put(folder, {"p/1/x.jpg": picture("red", "JPEG"), "p/1/x.txt": "a red field\n", "p/2/y.wav": clip(),
                 "p/2/y.txt": "go on",
                 "p/README.txt": "about", "p/.DS_Store": "", "p/2/._y.wav": "x"})
    first, second = read(folder / "p")
    assert (first.answer, first.task, second.answer, second.task) == ("a red field", "qa", "go on", "asr")
    put(folder, {"p/2/z.wav": clip(), "p/2/w.txt": "lost"})
    source = manifest.read(str(folder / "p"))
    assert len(source.samples) == 2 and [reason for _, reason in source.skipped] == [
        "no image or clip beside its text", "no text beside it"]
    put(folder, {"v/txt/p1/a.txt": "hello", "v/wav/p1/a.flac": clip(form="FLAC")})  # VCTK
    assert transcripts(read(folder / "v")) == ["hello"]


def test_speech_commands(folder):
    """Speech Commands: clips in folders of the word that is said, and _background_noise_."""
    put(folder, {"sc/yes/1.wav": clip(), "sc/no/2.wav": clip(), "sc/_background_noise_/n.wav": clip(),
                 "sc/testing_list.txt": "yes/1.wav\n", "sc/README.md": "x"})
    source = manifest.read(str(folder / "sc"), question="Which word is said?")
    assert [(s.answer, s.task) for s in source.samples] == [("no", "qa"), ("yes", "qa")]
    assert source.samples[0].messages[0] == ("user", "<audio>Which word is said?")
    assert [reason for _, reason in source.skipped] == ["in _background_noise_, which is no class"]


@pytest.mark.parametrize("files, answers", [
    (["train/cat/1.png", "test/dog/2.png"], ["dog", "cat"]), (["cat/1.png", "hot_dog/2.png"],
                                                              ["cat", "hot dog"]),
    (["train/cat/images/1.png", "train/dog/images/2.png"], ["cat", "dog"]),
    (["images/cat/1.png", "images/dog/2.png"], ["cat", "dog"]), (["train/1.png", "val/x/2.png"], ["x"])])
def test_the_class_of_an_image_is_not_its_split(folder, files, answers):
    put(folder, {f"set/{name}": picture() for name in files})
    source = manifest.read(str(folder / "set"), question="What?")
    assert [s.answer for s in source.samples] == answers
    assert len(source.samples) + len(source.skipped) == len(files)


def test_folders_that_name_no_class_are_refused(folder):
    put(folder, {"set/images/1.png": picture(), "set/images/2.png": picture(), "tab/img/1.png": picture(),
                 "tab/labels.csv": "file,label\nimg/1.png,x\n"})
    with pytest.raises(UserError, match="which name no class"):
        manifest.read(str(folder / "set"), question="What?")
    with pytest.raises(UserError, match="name the table to read: labels.csv"):
        manifest.read(str(folder / "tab"), question="What?")


def test_tars_of_images_and_classes(folder):
    """WebDataset as published: .jpg and .cls; macOS adds ._ files; a picture may be missing."""
    tar(folder / "c.tar", {"0.jpg": picture("red", "JPEG"), "0.cls": "7", "1.jpg": picture("blue", "JPEG"),
                           "1.cls": "3"})
    samples = read(folder / "c.tar", question="Which class?")
    assert [s.answer for s in samples] == ["7", "3"] and samples[0].messages[0][1] == "<image>Which class?"
    tar(folder / "m.tar", {"._0.jpg": b"x", "._0.txt": "junk", "0.jpg": picture("red", "JPEG"),
                           "0.txt": "red",
                           "1.txt": "its picture is missing", "__MACOSX/._2.txt": "x", "./.DS_Store": "x"})
    source = manifest.read(str(folder / "m.tar"))
    assert [s.answer for s in source.samples] == ["red"]
    assert source.skipped == [(2, "no image or clip beside its text")]


def test_a_member_of_a_tar_with_an_unknown_ending_is_refused_or_named(folder):
    tar(folder / "u.tar", {"0.sphere": clip(), "0.txt": "hi", "1.sphere": clip(), "1.txt": "you"})
    with pytest.raises(UserError, match=r'"sphere" looks like a medium .*"columns": \{"audio": "sphere"\}'):
        manifest.read(str(folder / "u.tar"))
    tar(folder / "n.tar", {"0.jpg": picture("red", "JPEG"), "0.npy": b"123", "0.txt": "red"})
    source = manifest.read(str(folder / "n.tar"))
    assert source.samples[0].answer == "red" and source.unread == {"npy": 1}
    tar(folder / "a.tar", {"0.m4a": b"123", "0.txt": "hi"})
    (sample,) = manifest.read(str(folder / "a.tar")).samples
    with pytest.raises(MediaError, match="not readable as sound"):
        audio.load(sample.audios[0])
