"""`data/make_fresh_images.py`: pictures with boxes, as stage C reads them."""

import subprocess
import sys
from pathlib import Path

import numpy as np

from omni.data import image, manifest

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "data"))
from world import COLORS, HELD_OUT_PAIRS, KINDS, PLACES  # noqa: E402


def named(words) -> tuple[str, ...]:
    """(kind, color) of the words of a box, or ()."""
    found = [next((w for w in words if w in known), None) for known in (KINDS, COLORS)]
    return tuple(found) if all(found) else ()


def test_fresh_pictures_show_what_their_boxes_say(tmp_path):
    subprocess.run([sys.executable, "data/make_fresh_images.py", "--out", tmp_path, "--pictures", "160",
                    "--procs", "1"], check=True, capture_output=True, cwd=ROOT)
    train, val = (manifest.read(str(tmp_path / f"{name}.jsonl")) for name in ("train", "val"))
    assert len(train.samples) == 160 and len(val.samples) == 1 and not train.skipped and not train.unread
    pairs = {named(words) for sample in train.samples for words, _ in sample.objects} - {()}
    assert len(pairs) > 40 and not pairs & HELD_OUT_PAIRS
    errors = []
    for sample in train.samples:
        pixels = (image.load(sample.images[0], 128) + 1) * 127.5
        places = [words[0] for words, box in sample.objects if box == (0, 0, 1, 1)]
        assert len(places) <= 1 and {*places} <= {*PLACES}
        for words, (left, top, right, bottom) in sample.objects:
            if words[-1] in ("square", "circle"):  # its middle has its color
                x, y = (int((left + right) * 64), int((top + bottom) * 64))
                color = pixels[:, y - 1:y + 2, x - 1:x + 2].mean((1, 2))
                errors.append(float(np.abs(color.numpy() - COLORS[words[1]]).mean()))
                assert words[0] in ("big", "small")
    assert len(errors) > 10 and max(errors) < 40
