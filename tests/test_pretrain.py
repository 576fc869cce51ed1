"""Stages A, B and C on toy data: each writes a part that loads, and trains on the right targets."""

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from omni.base import checkpoint
from omni.base.config import AudioArch, PretrainConfig, ThinkerArch, VisionArch, build
from omni.base.config_file import load_config
from omni.base.errors import UserError
from omni.data import image
from omni.model.audio_encoder import AudioEncoder
from omni.model.thinker import Thinker
from omni.model.vision_encoder import VisionEncoder
from omni.pretrain.__main__ import STAGES, run
from omni.pretrain.audio_encoder import AudioStage
from omni.pretrain.stage import SOME_KEYS
from omni.pretrain.thinker import ThinkerStage
from omni.pretrain.vision_boxes import BoxStage, average_precision, shared
from omni.pretrain.vision_encoder import COLOR_WORDS, VisionStage, competing_word_loss

ROOT = Path(__file__).resolve().parent.parent
TINY = {"width": 24, "layers": 1, "heads": 2, "mlp_width": 32}


def config(toy, tmp_path, stage: str, **more) -> PretrainConfig:
    source = {"thinker": "text_only", "audio": "audio_text", "vision": "image_text",
              "vision_boxes": "image_text", "audio_projector": "audio_text",
              "vision_projector": "image_text"}[stage]
    values = {"stage": stage, "train": str(toy.root / "data" / source / "train.jsonl"),
              "val": str(toy.root / "data" / source / "val.jsonl"), "output": str(tmp_path / f"{stage}.pt"),
              "num_epochs": 2, "batch_size": 4, "warmup_steps": 1, "precision": "fp32", "device": "cpu",
              **{key: size for key, size in (("vocab_size", 330), ("speech_pieces", 40))
                 if key in STAGES[stage].uses}, **more}
    return build(PretrainConfig, values, "toy")


def decoder_of(stage: str) -> dict:
    return {"decoder": TINY | {"kv_heads": 2, "head_dim": 8}} if stage == "vision" else {}


@pytest.mark.parametrize("stage, kind, module, arch, shape", [
    ("thinker", "thinker", Thinker, ThinkerArch, {"width": 32, "layers": 1, "heads": 2, "kv_heads": 1,
                                                  "head_dim": 8, "mlp_width": 32}),
    ("audio", "audio_encoder", AudioEncoder, AudioArch, {**TINY, "frames_per_second": 25.0}),
    ("vision", "vision_encoder", VisionEncoder, VisionArch, {**TINY, "image_size": 32, "patch_size": 8})])
def test_a_stage_writes_a_part_that_loads(toy, tmp_path, capsys, stage, kind, module, arch, shape):
    figures = run(config(toy, tmp_path, stage, arch=shape, **decoder_of(stage)))
    assert figures and all(np.isfinite(v) for v in figures.values())
    content = checkpoint.load(tmp_path / f"{stage}.pt", kind, "")
    part, line = checkpoint.build_part(module, arch, content, kind, "toy")
    assert "0 missing, 0 unexpected, 0 mis-shaped" in line and content["metrics"] == figures
    assert "epoch 2/2" in capsys.readouterr().out


@pytest.mark.parametrize("stage", ["thinker", "audio", "vision"])
def test_a_stage_is_reproducible_to_the_bit(toy, tmp_path, stage):
    shape = {**TINY, "head_dim": 8, "kv_heads": 2} if stage == "thinker" else TINY
    if stage == "vision":
        shape = {**TINY, "image_size": 32, "patch_size": 8}
    states = []
    for name in ("one", "two"):
        run(config(toy, tmp_path / name, stage, arch=shape, num_epochs=1, **decoder_of(stage)))
        states.append(torch.load(tmp_path / name / f"{stage}.pt", weights_only=True)["state"])
    assert all(torch.equal(states[0][k], states[1][k]) for k in states[0])


def test_the_answer_of_a_reading_sample_is_its_text(toy, tmp_path):
    texts = ("the red cat sleeps", "two dogs run", "a bird sings now")
    lines = [{"text": t, "kind": "spoken"} for t in texts]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    shape = {"width": 16, "layers": 1, "heads": 2, "kv_heads": 1, "head_dim": 8, "mlp_width": 16}
    stage = ThinkerStage(config(toy, tmp_path, "thinker", train=str(tmp_path / "t.jsonl"),
                                val=str(tmp_path / "t.jsonl"), arch=shape))
    words = {word for line in lines for word in line["text"].split()}
    for i in range(40):
        ids, labels = stage.speech.reading(stage.rng(0, i))
        turn = len(ids) - 1 - ids[::-1].index(stage.tok.ids["<|assistant|>"])
        answer = stage.tok.decode(ids[turn:])
        assert answer in [line["text"] for line in lines] or set(answer.split()) <= words
        assert stage.tok.audio in ids[:turn] and ids[-1] == stage.tok.end
        assert labels == [-100] * turn + ids[turn + 1:] + [-100]


@pytest.mark.parametrize("photograph", [False, True])
def test_a_box_moves_with_its_image(photograph):
    """`moved` says where `augment` puts a box: checked with a bright rectangle in the box."""
    mirrored = 0
    for seed in range(20):
        pixels = torch.full((3, 64, 64), -1.0)
        pixels[:, 20:36, 20:44] = 1.0
        placed = image.placement(np.random.default_rng(seed), photograph)
        mirrored += placed.mirrored
        bright = image.augment(pixels, np.random.default_rng(seed), photograph).amax(0) > 0.2
        rows, columns = (bright.any(dim).nonzero().flatten() for dim in (1, 0))
        if photograph and (len(rows) < 12 or len(columns) < 18):
            continue  # the hidden square covers an edge of the rectangle
        box = image.moved((20 / 64, 20 / 64, 44 / 64, 36 / 64), placed)
        seen = (columns[0] / 64, rows[0] / 64, (columns[-1] + 1) / 64, (rows[-1] + 1) / 64)
        assert np.allclose(box, seen, atol=1.5 / 64), seed
    assert (mirrored > 4) == photograph


@pytest.mark.parametrize("stage, need", [("audio", "one clip"), ("vision", "one image and no clip"),
                                         ("vision_boxes", "one image with boxes")])
def test_samples_that_a_stage_cannot_use_are_named(toy, tmp_path, capsys, stage, need):
    made = config(toy, tmp_path, stage)
    mixed = Path(made.train).with_name("mixed.jsonl")
    fit = [json.loads(line) for line in Path(made.train).read_text().splitlines()]
    if stage == "vision_boxes":
        fit = [sample | {"objects": [{"words": ["cat"], "box": [0.1, 0.1, 0.5, 0.5]}]} for sample in fit]
    text = (toy.root / "data" / "text_only" / "val.jsonl").read_text().splitlines()
    mixed.write_text("\n".join([*map(json.dumps, fit), *text]))
    STAGES[stage](replace(made, train=str(mixed), val=str(mixed)))
    line = capsys.readouterr().out.splitlines()[0]
    assert line == (f"{mixed}: {len(text)} of {len(fit) + len(text)} samples are skipped: "
                    f"the stage {stage} needs {need}")


def test_images_without_color_words_keep_their_colors(toy, tmp_path):
    folder = toy.root / "data" / "image_text"
    for name, answer in (("plain", "a cat"), ("colored", "a red cat")):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(
            {"messages": [{"role": "user", "content": f"<image>What, {name}?"},
                          {"role": "assistant", "content": answer}],
             "images": [f"train_{i}.png"]}) + "\n" for i in range(1, 12)))
    stage = VisionStage(config(toy, tmp_path, "vision", batch_size=8,
                               photographs=[str(folder / "plain.jsonl")],
                               train=[str(folder / "plain.jsonl"), str(folder / "colored.jsonl")],
                               arch={**TINY, "image_size": 32, "patch_size": 4, "stem_blocks": 1},
                               decoder=TINY | {"kv_heads": 2, "head_dim": 8}))
    text, pixels, photographs, image_words, *_ = stage.batch([11, 0, 1, 2, 3, 12, 13, 14], 0)
    assert text.samples == 2 and len(pixels) == 8
    assert sum(bool(words.isnan().any()) for words in image_words) == 3  # one of four has text
    path = stage.train[1].images[0]
    assert torch.equal(stage.batch([0, 1], 0)[1][1], stage.collate.reader.pixels(path, 1))  # not recolored


def test_the_competing_word_loss_equals_its_formula():
    scores = torch.tensor([[1.0, 2.0, 0.5], [0.0, 0.0, 3.0]])
    weights = torch.tensor([[0.7, 0.0, 2.1], [0.0, torch.nan, 0.4]])  # of the words said; NaN: unknown
    expected = 0.0
    for row, (a, b, c) in zip(scores.tolist(), [(0.25, 0.0, 0.75), (0.0, 0.0, 1.0)], strict=True):
        total = math.log(sum(map(math.exp, row)))
        expected += sum(share * (total - score) for share, score in zip((a, b, c), row, strict=True))
    assert float(competing_word_loss(scores, weights)) == pytest.approx(expected, rel=1e-6)
    assert float(competing_word_loss(scores[:0], weights[:0])) == 0.0  # a batch without photographs
    assert float(competing_word_loss(scores[:1], torch.zeros(1, 3))) == 0.0  # words said of all images


def test_photographs_outside_the_training_data_are_refused(toy, tmp_path):
    with pytest.raises(UserError, match='"photographs": nowhere.jsonl is not among'):
        VisionStage(config(toy, tmp_path, "vision", photographs=["nowhere.jsonl"]))


def test_recolored_images_have_no_targets_for_color_words(toy, tmp_path):
    line = {"messages": [{"role": "user", "content": "<image>What?"},
                         {"role": "assistant", "content": "red cat"}],
            "images": ["train_1.png"], "objects": [{"words": ["red", "cat"], "box": [0.1, 0.1, 0.4, 0.6]}]}
    folder = toy.root / "data" / "image_text"
    (folder / "boxes.jsonl").write_text("".join(
        json.dumps({**line, "images": [f"train_{i}.png"]}) + "\n" for i in range(1, 12)))
    stage = VisionStage(config(toy, tmp_path, "vision", train=str(folder / "boxes.jsonl"), batch_size=8,
                               arch={**TINY, "image_size": 32, "patch_size": 8},
                               decoder=TINY | {"kv_heads": 2, "head_dim": 8}))
    text, pixels, _, image_words, areas, area_words = stage.batch(list(range(8)), 0)
    with_text = text.samples
    assert with_text == 2 and len(pixels) == len(image_words) == len(areas) == 8
    red, cat = stage.words["red"], stage.words["cat"]
    assert "red" in COLOR_WORDS and "cat" not in COLOR_WORDS
    for row, words in enumerate(image_words):
        assert words[cat] == 1 and (words[red] == 1 if row < with_text else words[red].isnan())
    assert all(float(weights.sum()) == pytest.approx(1) for _, weights in areas)


@pytest.fixture
def boxed(toy, tmp_path):
    """Stage C on 11 images with a small red cat at the top left, on grass."""
    objects = [{"words": ["red", "cat"], "box": [0.1, 0.1, 0.3, 0.45]},
               {"words": ["grass"], "box": [0, 0, 1, 1]}]
    line = {"messages": [{"role": "user", "content": "<image>?"}, {"role": "assistant", "content": "a cat"}],
            "objects": objects}
    path = toy.root / "data" / "image_text" / "boxed.jsonl"
    path.write_text("".join(json.dumps({**line, "images": [f"train_{i}.png"]}) + "\n" for i in range(1, 12)))
    return config(toy, tmp_path, "vision_boxes", train=str(path), val=str(path), batch_size=8,
                  arch={**TINY, "image_size": 32, "patch_size": 8, "stem_blocks": 1})


def test_the_words_of_a_box_are_wanted_where_it_is(boxed):
    stage = BoxStage(boxed)
    red, cat, grass = (stage.words[word] for word in ("red", "cat", "grass"))
    cells, centers = stage.targets(stage.train[0], None, recolored=False)  # 2x2 cells, 4x4 patches
    assert cells[:, grass].tolist() == [1, 1, 1, 1] and cells[:, cat].tolist() == [1, 0, 0, 0]
    assert centers[:, cat].nonzero().flatten().tolist() == [4]  # row 1, column 0
    assert torch.equal(centers[:, red], centers[:, cat]) and not centers[:, grass].any()
    recolored = stage.targets(stage.train[0], None, recolored=True)
    for plain, changed in zip((cells, centers), recolored, strict=True):
        assert changed[:, red].isnan().all() and torch.equal(changed[:, cat], plain[:, cat])
    right = stage.targets(stage.train[0], image.Placement(1.0, 0.5, 0.0), recolored=False)[1]
    assert right[:, cat].nonzero().flatten().tolist() == [5]  # moved by a quarter of the image: a patch


def test_a_box_that_hardly_touches_a_cell_is_unknown_there():
    assert np.allclose(shared((0.25, 0.25, 0.5, 0.5), 2), [[1, 0], [0, 0]])
    assert np.allclose(shared((0.4, 0.0, 0.6, 0.4), 2), [[0.5, 0.5], [0, 0]])
    assert np.allclose(shared((0.0, 0.0, 0.9, 1.0), 2), [[1, 0.8], [1, 0.8]])


def test_boxes_are_learned(boxed, capsys):
    figures = run(replace(boxed, num_epochs=30, learning_rate=3e-3))
    assert figures["cell_ap"] > 0.95 and figures["center_ap"] > 0.95 and figures["box_words"] == 1.0
    content = checkpoint.load(boxed.output, "vision_encoder", "")
    checkpoint.build_part(VisionEncoder, VisionArch, content, "vision_encoder", "toy")


def test_average_precision_equals_its_definition():
    scores = torch.tensor([[0.9, 0.1], [0.5, 0.2], [0.7, 0.3]])
    targets = torch.tensor([[1.0, 0.0], [1.0, 0.0], [0.0, 0.0]])  # the second word is never there
    assert average_precision(scores, targets) == pytest.approx((1 / 1 + 2 / 3) / 2)


def test_an_earlier_encoder_is_trained_further(boxed, tmp_path):
    torch.manual_seed(1)
    encoder = VisionEncoder(build(VisionArch, boxed.arch, "toy"))
    checkpoint.save(tmp_path / "first.pt", "vision_encoder", checkpoint.part(encoder))
    with pytest.raises(UserError, match='leave "arch" out'):
        BoxStage(replace(boxed, start=str(tmp_path / "first.pt")))
    further = BoxStage(replace(boxed, start=str(tmp_path / "first.pt"), arch={})).model["encoder"]
    assert further.arch == encoder.arch
    assert all(torch.equal(value, further.state_dict()[name]) for name, value in encoder.state_dict().items())


def test_manifests_without_boxes_are_refused(toy, tmp_path):
    with pytest.raises(UserError, match="none can be used"):
        BoxStage(config(toy, tmp_path, "vision_boxes"))


@pytest.mark.parametrize("stage, name", [("audio", "train_1.wav"), ("vision", "train_1.png")])
def test_media_that_cannot_be_read_are_skipped_and_named(toy, tmp_path, capsys, stage, name):
    data = tmp_path / "data"
    shutil.copytree(toy.root / "data", data)
    source = data / {"audio": "audio_text", "vision": "image_text"}[stage]
    (source / name).write_bytes(b"<html>")
    changes = {"train": str(source / "train.jsonl"), "val": str(source / "val.jsonl")}
    made = {"audio": AudioStage, "vision": VisionStage}[stage](config(toy, tmp_path, stage, **changes))
    printed = capsys.readouterr().out
    assert len(made.train) == 11 and "1 of 12" in printed and name in printed
    (tmp_path / "none.jsonl").write_text(json.dumps({"text": "no media here"}) + "\n")
    with pytest.raises(UserError, match="none can be used"):
        type(made)(config(toy, tmp_path, stage, **{**changes, "val": str(tmp_path / "none.jsonl")}))


@pytest.mark.parametrize("stage, key, value", [
    ("audio", "reading_share", 0.2), ("thinker", "decoder", TINY), ("vision", "speech_pieces", 40),
    ("vision_boxes", "photographs", ["x"]), ("audio_projector", "arch", TINY),
    ("thinker", "thinker", "x.pt")])
def test_a_key_that_the_stage_does_not_use_is_refused(toy, tmp_path, stage, key, value):
    more = {"start": "x.pt", "thinker": "x.pt"} if "projector" in stage else {}
    with pytest.raises(UserError, match=f'"{key}" is not used by the stage {stage}'):
        run(config(toy, tmp_path, stage, **more | {key: value}))


def test_a_vocabulary_is_not_chosen_twice(toy, tmp_path):
    with pytest.raises(UserError, match="is a Thinker with its own tokenizer"):
        run(config(toy, tmp_path, "thinker", start="x.pt", vocab_size=400))


def test_the_shipped_configs_of_stages_hold_only_keys_that_are_used():
    found = 0
    for path in sorted((ROOT / "configs").glob("*.json")):
        if '"stage"' in path.read_text(encoding="utf-8"):
            stage, found = load_config(path, PretrainConfig), found + 1
            for key in {*SOME_KEYS} - STAGES[stage.stage].uses:
                assert getattr(stage, key) == getattr(PretrainConfig(), key)
    assert found >= 10
