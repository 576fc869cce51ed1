"""Parts, checkpoints and configs that don't fit each other: a one-line error, or the config is followed."""

import pytest
import torch
from test_run import read, rows, train

from omni.base import checkpoint
from omni.base.errors import UserError


def refused(call, *words: str) -> None:
    with pytest.raises(UserError) as caught:
        call()
    assert "\n" not in str(caught.value)
    for word in words:
        assert word in str(caught.value)


def test_a_resume_trains_with_the_learning_rate_of_its_config(toy, tmp_path):
    out = train(toy, tmp_path, num_epochs=1)
    train(toy, tmp_path, "--resume", learning_rate=1e-9, projector_learning_rate=1e-9, weight_decay=0.0)
    before, after = (read(out / f"step_{step:06d}.pt")["model"] for step in (5, 10))
    moved = max(float((before[name] - after[name]).abs().max()) for name in before)
    assert moved < 1e-6, "the learning rate of the checkpoint was used"


def test_a_resume_that_unfreezes_the_encoders_is_one_line(toy, tmp_path):
    train(toy, tmp_path, num_epochs=1)
    refused(lambda: train(toy, tmp_path, "--resume", freeze_encoders=False), "freeze_encoders")


@pytest.mark.parametrize("changes", [{"batch_size": 2}, {"seed": 1}, {"samples_per_epoch": 8},
                                     {"data_mix": {"text_only": 1.0}}])
def test_a_resume_that_changes_the_order_of_the_draws_says_so(toy, tmp_path, capsys, changes):
    train(toy, tmp_path, num_epochs=1)
    capsys.readouterr()
    key = next(iter(changes))
    try:
        train(toy, tmp_path, "--resume", **changes)
        assert key in capsys.readouterr().out  # the run says what changed
    except UserError as err:
        assert key in str(err)  # or refuses it
    assert rows(tmp_path / "out", "step")


def changed_part(toy, tmp_path, key: str, change) -> str:
    content = torch.load(toy.config[key], weights_only=True)
    change(content)
    checkpoint.save(tmp_path / "part.pt", content["kind"], content)
    return str(tmp_path / "part.pt")


def fewer_words(content: dict) -> None:
    content["arch"]["vocab_size"] = 300
    content["state"]["embed_tokens.weight"] = content["state"]["embed_tokens.weight"][:300].clone()


@pytest.mark.parametrize("key, change", [
    ("thinker_ckpt", fewer_words), ("thinker_ckpt", lambda c: c.pop("tokenizer")),
    ("thinker_ckpt", lambda c: c.update(tokenizer="{}")),
    ("vision_ckpt", lambda c: c["arch"].update(heads=3)),
    ("audio_ckpt", lambda c: c["state"].popitem()),
    ("vision_ckpt", lambda c: c["arch"].update(patch_size=16))])
def test_a_part_that_does_not_fit_is_one_line(toy, tmp_path, key, change):
    path = changed_part(toy, tmp_path, key, change)
    refused(lambda: train(toy, tmp_path, **{key: path}), "part.pt")
    assert not (tmp_path / "out").exists()
