"""The pieces that an audio encoder's CTC head outputs, and what becomes of the head in further training."""

import json
from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path

import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from test_pretrain import TINY, config

from omni.data.speech_pieces import SpeechPieces
from omni.pretrain.__main__ import run
from omni.pretrain.audio_encoder import AudioStage

PANGRAM = ["the quick brown fox jumps over the lazy dog", "it is low", "it was high"]


@given(st.text("abcdefghijklmnopqrstuvwxyz ", max_size=40))
@settings(deadline=None)
def test_pieces_are_decoded_unchanged(words):
    pieces = SpeechPieces.train(PANGRAM * 2, 60)
    words = " ".join(words.split())
    assert pieces.decode(pieces.encode(words)) == words
    assert all(0 <= n < len(pieces) == 60 for n in pieces.encode(words))


@given(st.lists(st.text("abé ", max_size=12), min_size=1, max_size=8), st.text("abé ", max_size=30))
@settings(deadline=None)
def test_the_merges_are_found_from_the_pieces(texts, words):
    """Texts of few letters: many merges could have made the same piece."""
    trained = SpeechPieces.train(texts, 40)
    again = SpeechPieces.of(trained.pieces)
    assert again.pieces == trained.pieces and again.encode(words) == trained.encode(words)


def test_the_head_of_a_start_is_kept_with_its_pieces(toy, tmp_path, capsys):
    """Other texts have other frequent pieces: that alone must not make the head start anew."""
    first = config(toy, tmp_path, "audio", arch=TINY, num_epochs=1)
    run(first)
    known = torch.load(first.output, weights_only=True)
    letters = "".join(piece for piece in known["pieces"] if len(piece) == 1 and piece.isascii())
    entry = json.loads(Path(first.train).read_text().splitlines()[0])
    other = Path(first.train).with_name(f"{tmp_path.name}.jsonl")

    def further(texts: Iterable[str], size: int | None = None) -> AudioStage:
        other.write_text("\n".join(json.dumps({**entry, "transcript": text}) for text in texts))
        capsys.readouterr()
        return AudioStage(replace(first, arch={}, start=first.output, train=str(other), speech_pieces=size))

    stage = further(letters)
    assert SpeechPieces.train(list(letters), 40).pieces != stage.pieces.pieces == known["pieces"]
    assert torch.equal(stage.model["head"].weight, known["ctc_head"]["weight"])
    assert f"is kept, with its {len(known['pieces'])} pieces" in capsys.readouterr().out

    pairs = [a + b for a in letters for b in letters[:3]]
    for heard, size, why in ((f"ß{letters[0]}", None, "its pieces lack ß"),
                             (letters, 20, f"it has {len(known['pieces'])} pieces"),
                             (pairs, 400, f"it has {len(known['pieces'])} pieces")):
        stage = further(heard, size)
        assert stage.pieces.pieces == SpeechPieces.train(list(heard), size).pieces
        assert f"is replaced by a new one: {why}" in capsys.readouterr().out
