"""Several ranks with adapters and frozen parts: the same loss curve as one, and the same final system."""

import pytest
import torch
from test_parallel import losses, trained

CURVE = {"samples_per_epoch": 40, "num_epochs": 1}
LORA = {"lora_rank": 2, "learning_rate": 1e-2}


@pytest.mark.parametrize("parallel", ["ddp", "fsdp"])
@pytest.mark.parametrize("changes", [LORA, {"freeze_thinker": True, "freeze_encoders": ["vision"]}],
                         ids=["adapters", "a frozen Thinker and a trained encoder"])
def test_two_ranks_train_as_one(toy, tmp_path, parallel, changes):
    one = trained(1, toy, tmp_path / "one", **CURVE, **changes)
    two = trained(2, toy, tmp_path / "two", **CURVE, **changes, parallel=parallel)
    assert len(losses(one)) == 10 and losses(two) == pytest.approx(losses(one), rel=1e-5)
    alone, both = (torch.load(tmp_path / name / "omni_final.pt", weights_only=True)
                   for name in ("one", "two"))
    for part in ("thinker", "audio_encoder", "vision_encoder"):
        assert alone[part]["state"].keys() == both[part]["state"].keys()
        for name, tensor in alone[part]["state"].items():
            torch.testing.assert_close(both[part]["state"][name], tensor, rtol=1e-3, atol=1e-5)


def test_two_sharded_ranks_resume_with_adapters(toy, tmp_path):
    whole = trained(2, toy, tmp_path / "out", **CURVE, **LORA, parallel="fsdp", save_every_steps=5)
    (tmp_path / "out" / "omni_final.pt").unlink()
    step = tmp_path / "out" / "step_000005.pt"
    again = trained(2, toy, tmp_path / "out", "--resume", str(step), **CURVE, **LORA, parallel="fsdp",
                    save_every_steps=5)
    assert losses(again) == losses(whole)
    assert (tmp_path / "out" / "omni_final.pt").exists()
