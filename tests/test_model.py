"""OmniNetwork: embeddings, loss, generation and freezing, against slow plain references."""

from dataclasses import replace

import pytest
import torch
from reference import padded_hidden, rows, unpacked
from torch.nn import functional as F
from toy import briefly_trained

from omni.base import checkpoint
from omni.data.batch import IGNORE
from omni.data.decoding import Decoder
from omni.model.load import load_system
from omni.train import optim
from omni.train.features import FeatureStore


@torch.no_grad()
def slow_embed(model, batch) -> torch.Tensor:
    """Embeddings token by token: each medium encoded alone, each placeholder taking the next feature."""
    images, clips = [], []
    for pixels in batch.pixels if batch.pixels is not None else ():
        patches = model.vision_encoder(pixels[None])[0]
        grid = model.vision_encoder.grid
        for top in range(0, grid, 2):
            for left in range(0, grid, 2):
                square = [patches[(top + i) * grid + left + j] for i in (0, 1) for j in (0, 1)]
                images.append(model.vision_projector(torch.cat(square)[None])[0])
    for mel, length in zip(batch.mels if batch.mels is not None else (),
                           batch.mel_lengths if batch.mels is not None else (), strict=True):
        features, _ = model.audio_encoder(mel[None, :length], length[None])
        clips += list(model.audio_projector(features[0]))
    images, clips = iter(images), iter(clips)
    found = []
    for token in batch.ids[:true_tokens(batch)].tolist():
        special = {model.tokenizer.image: images, model.tokenizer.audio: clips}.get(token)
        found.append(next(special) if special else model.thinker.embed_tokens.weight[token])
    assert next(images, None) is None and next(clips, None) is None
    return torch.stack(found)


def true_tokens(batch) -> int:
    """Number of tokens that are not padding."""
    return int(batch.layout.cu_seqlens[-2])


def padded_logits(model, batch) -> torch.Tensor:
    """(B, T, V) by the reference."""
    embeds = torch.nn.utils.rnn.pad_sequence(unpacked(batch.layout, model.embed(batch)), batch_first=True)
    return model.thinker.logits(padded_hidden(model.thinker, embeds))


def test_features_replace_their_placeholders_in_any_turn(toy, model, mixed):
    batch = toy.collator(model)(mixed)
    assert torch.allclose(model.embed(batch)[:true_tokens(batch)], slow_embed(model, batch), atol=1e-5)


def test_stored_features_give_the_same_embeddings(toy, model, mixed):
    collate = toy.collator(model)
    store = FeatureStore(model, Decoder(collate.reader, timeout=20), 1.0)
    assert store.add(mixed, 1, "test") == {}
    kept = toy.collator(model, store)(mixed)
    assert kept.pixels is None and kept.mels is None
    fresh = collate(mixed)
    true = true_tokens(fresh)
    assert torch.allclose(model.embed(kept)[:true], model.embed(fresh)[:true], atol=2e-3)


@pytest.mark.parametrize("field, change", [
    ("pixels", lambda x: x[:-1]), ("pixels", lambda x: torch.cat([x, x[:1]])),
    ("image_features", lambda x: x[:1]), ("audio_features", lambda x: x[:-1]),
    ("audio_features", lambda x: x[:1])])
def test_a_wrong_number_of_features_raises(toy, model, mixed, field, change):
    batch = toy.collator(model)(mixed)
    if "features" in field:
        store = FeatureStore(model, Decoder(toy.collator(model).reader, timeout=20), 1.0)
        store.add(mixed, 1, "test")
        batch = toy.collator(model, store)(mixed)
    with pytest.raises((RuntimeError, ValueError, AssertionError, IndexError)):
        model(replace(batch, **{field: change(getattr(batch, field))}))


def test_other_samples_and_padding_change_no_logits(toy, model, mixed):
    collate = toy.collator(model)
    batch = collate(mixed)
    together = model.thinker.logits(model.thinker.hidden(model.embed(batch), batch.layout))
    for row, sample in zip(unpacked(batch.layout, together), mixed, strict=True):
        assert torch.allclose(row, padded_logits(model, collate([sample]))[0], atol=1e-5)


def test_loss_is_summed_over_answer_tokens_only(toy, model, mixed):
    batch = toy.collator(model)(mixed)
    logits = padded_logits(model, batch).detach().double()
    loss, count, hits = 0.0, 0, 0
    for b, (ids, labels) in enumerate(rows(batch)):
        for t, label in enumerate(labels):
            if label != IGNORE:
                assert label == ids[t + 1]
                loss -= float(logits[b, t].log_softmax(-1)[label])
                hits += int(logits[b, t].argmax()) == label
                count += 1
    found, right = model(batch)
    assert float(found) == pytest.approx(loss, rel=1e-5) and int(right) == hits
    answers = [content for s in mixed for role, content in s.messages if role == "assistant"]
    # Each answer is trained on with its <|end|>.
    assert batch.answer_tokens == count == sum(len(model.tokenizer.encode(answer)) + 1 for answer in answers)


def gradient(model, *batches):
    model.zero_grad()
    sum(model(batch)[0] for batch in batches).backward()
    return torch.cat([p.grad.flatten() for p in model.parameters() if p.grad is not None])


def test_micro_batches_give_the_gradient_of_the_whole(toy, model, mixed):
    whole, *parts = map(toy.collator(model), (mixed, mixed[:2], mixed[2:3], mixed[3:]))
    torch.testing.assert_close(gradient(model, whole), gradient(model, *parts), rtol=1e-4, atol=1e-4)


def test_a_batch_without_a_modality_runs_neither_its_encoder_nor_its_projector(toy, model):
    ran = []
    for name in ("audio_encoder", "vision_encoder", "audio_projector", "vision_projector"):
        getattr(model, name).register_forward_hook(lambda *_, name=name: ran.append(name))
    collate = toy.collator(model)
    for source, wanted in (("text_only", []), ("image_text", ["vision_encoder", "vision_projector"]),
                           ("audio_text", ["audio_encoder", "audio_projector"])):
        ran.clear()
        model(collate(toy.samples(source)[:3]))
        assert ran == wanted


def optimizer_of(model, freeze: bool):
    groups = [(model.thinker, 1e-3), (model.audio_projector, 1e-3), (model.vision_projector, 1e-3)]
    return optim.adamw(groups + ([] if freeze else [(e, 1e-3) for e in model.encoders()]), 0.01, model)


@pytest.mark.parametrize("freeze", [True, False])
def test_encoders_are_frozen_exactly_when_asked(toy, mixed, freeze):
    model = toy.model(freeze_encoders=freeze)
    model.train()
    own = {id(p) for e in model.encoders() for p in e.parameters()}
    optimizer = optimizer_of(model, freeze)
    grouped = {id(p) for group in optimizer.param_groups for p in group["params"]}
    assert all(p.requires_grad != freeze for e in model.encoders() for p in e.parameters())
    assert all(m.training != freeze for e in model.encoders() for m in e.modules()) and model.thinker.training
    assert (grouped & own == set()) if freeze else (own <= grouped)
    def hashes() -> list[str]:
        return [checkpoint.fingerprint(part.state_dict()) for part in (*model.encoders(), model.thinker)]

    *before, rest = hashes()
    for _ in range(2):
        batch = toy.collator(model)(mixed)
        (model(batch)[0] / batch.answer_tokens).backward()
        optimizer.step()
    *after, thinker = hashes()
    assert (after == before) == freeze and thinker != rest
    if not freeze:
        assert all(p.grad is not None and p.grad.any() for e in model.encoders() for p in e.parameters())


def test_the_optimizer_refuses_groups_that_lack_parameters(model):
    with pytest.raises(AssertionError):
        optim.adamw([(model.thinker, 1e-3)], 0.01, model)


@pytest.mark.parametrize("source", ["text_only", "image_text", "audio_text", "image_audio_text"])
def test_one_batch_is_overfitted_from_a_loss_of_about_ln_vocab(toy, model, source):
    batch = toy.collator(model)(toy.samples(source)[:4])
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=4e-3)
    losses = []
    for _ in range(200):
        loss = model(batch)[0] / batch.answer_tokens
        losses.append(float(loss.detach()))
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    assert losses[0] == pytest.approx(float(torch.tensor(float(len(model.tokenizer))).log()), abs=0.6)
    assert losses[-1] < 0.03, losses[-1]


def test_a_system_is_rebuilt_from_its_content_to_the_bit(toy, model, mixed):
    briefly_trained(model, toy)
    again = load_system(model.content(), "here")
    batch = toy.collator(model)(mixed)
    assert torch.equal(model(batch)[0], again(batch)[0])
    assert F.mse_loss(again.thinker.norm.weight, toy.model().thinker.norm.weight) > 0


def test_label_smoothing_changes_the_gradient_and_not_the_reported_loss(toy, model, mixed):
    """Against the definition: the target's lost probability is spread evenly over the vocabulary."""
    batch, smoothed = toy.collator(model)(mixed), toy.model(label_smoothing=0.2)
    plain, _ = model.train()(batch)
    reported, _ = smoothed.train()(batch)
    assert torch.equal(reported, plain) and torch.equal(smoothed.eval()(batch)[0], plain)
    reported.backward()
    labels = torch.tensor([label for _, labels in rows(batch) for label in labels])
    logits = torch.cat([row[:len(labels)] for row, (_, labels) in
                        zip(padded_logits(model, batch), rows(batch), strict=True)])
    answers = labels != IGNORE
    logs = logits[answers].log_softmax(-1)
    right = logs[torch.arange(len(logs)), labels[answers]]
    (-0.8 * right - 0.2 * logs.mean(-1)).sum().backward()
    torch.testing.assert_close(smoothed.thinker.norm.weight.grad, model.thinker.norm.weight.grad, rtol=1e-3,
                               atol=1e-4)


@pytest.mark.parametrize("source, absent", [
    ("text_only", {"audio_projector", "vision_projector"}), ("image_text", {"audio_projector"}),
    ("audio_text", {"vision_projector"}), ("image_audio_text", set())])
def test_a_step_reaches_every_trained_weight(toy, model, source, absent):
    """With a gradient of 0 where a kind of media is absent: alone, a process trains as several ranks do."""
    model(toy.collator(model)(toy.samples(source)[:3]))[0].backward()
    for name, p in model.named_parameters():
        assert (p.grad is not None) == p.requires_grad, name
        if name.split(".")[0] in absent:
            assert not p.grad.any(), name
