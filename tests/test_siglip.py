"""SigLIP's vision encoder and the preparation of its images equal those of transformers."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image
from test_whisper import assert_close, randomise
from transformers import (
    SiglipConfig,
    SiglipImageProcessorPil,
    SiglipModel,
    SiglipVisionConfig,
    SiglipVisionModel,
)

from omni.base import checkpoint
from omni.base.config import AudioArch, SiglipArch, ThinkerArch, VisionArch
from omni.base.errors import UserError
from omni.data import image
from omni.data.media_reader import MediaReader
from omni.data.tokenizer import Tokenizer, image_tokens
from omni.model.omni import OmniNetwork
from omni.model.siglip import SiglipEncoder
from omni.model.thinker import Thinker

SHAPE = {"hidden_size": 48, "intermediate_size": 80, "num_hidden_layers": 3, "num_attention_heads": 4}
PROCESSOR = {"image_mean": [0.5] * 3, "image_std": [0.5] * 3, "resample": 3, "do_resize": True,
             "do_rescale": True, "do_normalize": True, "rescale_factor": 0.00392156862745098}
BASE = {"model_type": "siglip", "vision_config": {"model_type": "siglip_vision_model"}, "text_config": {}}


def ours(config, state: dict) -> SiglipEncoder:
    encoder = SiglipEncoder(SiglipEncoder.arch_of(config.to_dict(), PROCESSOR))
    checkpoint.load_state(encoder, SiglipEncoder.rename(state), "vision_encoder", "the test")
    return encoder.eval()


@torch.no_grad()
@pytest.mark.parametrize("size, patch, grid, merge", [(64, 16, 4, 2), (128, 14, 9, 3), (35, 7, 5, 1)])
def test_the_encoder_equals_the_published_one(size, patch, grid, merge):
    model = SiglipVisionModel(SiglipVisionConfig(**SHAPE, image_size=size, patch_size=patch)).eval()
    randomise(model)
    pixels = torch.rand(2, 3, size, size) * 2 - 1
    wanted = model(pixels).last_hidden_state
    for prefix in ("", "vision_model."):
        encoder = ours(model.config, {prefix + name: t for name, t in model.state_dict().items()})
        assert (encoder.grid, encoder.arch.merge) == (grid, merge)
        assert encoder.token_width == merge ** 2 * 48 and image_tokens(encoder.arch) == (grid // merge) ** 2
        assert_close(encoder(pixels), wanted)
    assert_close(encoder(pixels[1:]), wanted[1:])


@torch.no_grad()
def test_the_vision_encoder_of_a_whole_model_is_read():
    text = {**SHAPE, "vocab_size": 50}
    model = SiglipModel(SiglipConfig(text_config=text, vision_config={**SHAPE, "image_size": 32})).eval()
    randomise(model)
    state = {**model.state_dict(), "vision_model.embeddings.position_ids": torch.arange(4)[None]}
    pixels = torch.rand(1, 3, 32, 32)
    assert_close(ours(model.config, state)(pixels), model.vision_model(pixels).last_hidden_state)
    with pytest.raises(UserError, match="1 unexpected"):
        ours(model.config, {**state, "classifier.bias": torch.zeros(2)})
    with pytest.raises(ValueError, match="post_layernorm.bias is there twice"):
        ours(model.config, {**state, "post_layernorm.bias": torch.zeros(48)})


@pytest.mark.parametrize("resample, number", [("bicubic", 3), ("bilinear", 2)])
@pytest.mark.parametrize("width, height", [(90, 31), (20, 24), (48, 48)])
def test_images_are_prepared_as_published(tmp_path, resample, number, width, height):
    path = str(tmp_path / "a.png")
    values = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    Image.fromarray(values).save(path)
    arch = SiglipArch(image_size=48, resample=resample)
    reader = pickle.loads(pickle.dumps(MediaReader(arch, AudioArch(), seed=1)))
    processor = SiglipImageProcessorPil(size={"height": 48, "width": 48}, resample=number)
    wanted = torch.as_tensor(np.asarray(processor(Image.open(path))["pixel_values"][0]))
    assert (reader.pixels(path) - wanted).abs().max() <= 2e-7
    taken = reader.pixels(path, 1)
    assert torch.equal(taken, image.augment(reader.pixels(path), reader.rng(path, 1)))
    letterboxed = MediaReader(VisionArch(image_size=48), None).pixels(path)
    assert torch.equal(letterboxed, image.load(path, 48))


def test_published_configs_are_read():
    assert SiglipEncoder.arch_of(BASE, {}) == SiglipArch()
    so400m = {"hidden_size": 1152, "intermediate_size": 4304, "num_hidden_layers": 27,
              "num_attention_heads": 16, "image_size": 384, "patch_size": 14,
              "model_type": "siglip_vision_model"}
    size = {"size": {"height": 384, "width": 384}}
    wanted = SiglipArch(384, 14, 1152, 27, 16, 4304, 1e-6, "bilinear", 3)
    assert SiglipEncoder.arch_of(so400m, {**PROCESSOR, **size, "resample": 2}) == wanted
    assert image_tokens(wanted) == 81
    assert SiglipEncoder.arch_of({**BASE, "vision_config": so400m}, size).resample == "bicubic"
    defaults = json.loads(SiglipImageProcessorPil().to_json_string())
    assert SiglipEncoder.arch_of(SiglipConfig().to_dict(), defaults) == SiglipArch()


@pytest.mark.parametrize("config, processor, named", [
    ({"model_type": "siglip2"}, {}, "model_type.*NaFlex"), ({"model_type": "clip"}, {}, "model_type"),
    ({"vision_config": None}, {}, "vision_config"),
    ({"vision_config": {"hidden_act": "gelu"}}, {}, "hidden_act"),
    ({"vision_config": {"num_channels": 1}}, {}, "num_channels"),
    ({"vision_config": {"image_size": [224, 224]}}, {}, "image_size"),
    ({"vision_config": {"image_size": 14}}, {}, "patch_size"),
    ({"vision_config": {"num_attention_heads": 7}}, {}, "num_attention_heads"),
    ({"vision_config": {"layer_norm_eps": 0}}, {}, "layer_norm_eps"),
    ({}, {"image_mean": [0.48, 0.46, 0.41]}, "image_mean"), ({}, {"image_std": [1.0] * 3}, "image_std"),
    ({}, {"resample": 0}, "resample"), ({}, {"rescale_factor": 1.0}, "rescale_factor"),
    ({}, {"size": {"height": 384, "width": 384}}, "size"), ({}, {"do_resize": False}, "do_resize"),
    ({}, {"do_center_crop": True}, "do_center_crop")])
def test_what_is_not_supported_is_refused_by_its_key(config, processor, named):
    with pytest.raises(ValueError, match=named) as caught:
        SiglipEncoder.arch_of({**BASE, **config}, {**PROCESSOR, **processor})
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 150


def test_each_square_of_patches_is_one_token():
    """Merging 3 by 3, from features that hold their patch's row and column."""
    arch = SiglipArch(image_size=48, patch_size=8, width=2, layers=1, heads=1, mlp_width=4, merge=3)
    tokenizer = Tokenizer.train(["a"], 300)
    thinker = Thinker(ThinkerArch(vocab_size=len(tokenizer), width=16, layers=1, heads=2, kv_heads=1,
                                  head_dim=8, mlp_width=8))
    model = OmniNetwork(tokenizer, thinker, None, SiglipEncoder(arch))
    assert model.image_tokens == 4 and model.vision_projector.up_proj.in_features == 18
    model.vision_projector = torch.nn.Identity()
    model.vision_projector.up_proj = torch.nn.Linear(1, 1)
    patches = torch.cartesian_prod(torch.arange(6.0), torch.arange(6.0))[None]  # (1, 36, 2)
    tokens = model._project_images(patches).unflatten(1, (9, 2))
    for token, (top, left) in zip(tokens, ((0, 0), (0, 3), (3, 0), (3, 3)), strict=True):
        assert token.tolist() == [[top + row, left + column] for row in range(3) for column in range(3)]
    for odd in (replace(arch, merge=4), VisionArch(image_size=112, patch_size=16),
                replace(arch, image_size=8, merge=2)):
        with pytest.raises(UserError, match="can't be merged"):
            image_tokens(odd)
