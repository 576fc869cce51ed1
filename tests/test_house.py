"""The floors of the house: imports run down, data and model never meet, a file is read in one sitting."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
FILES = sorted((ROOT / "omni").glob("*.py"))
GROUND = {"jsonc", "config", "batch", "packing", "tokenizer", "device", "parallel"}
DATA = {"media", "audio", "image", "tasks", "talks", "shards", "formats", "manifest", "show", "sampler",
        "collate", "dataset", "decode"}
MODEL = {"fused", "layers", "sampling", "thinker", "audio_encoder", "vision_encoder", "model"}
LOOP = {"optim", "features", "evaluate", "folder", "guard", "preview", "tally", "page", "cards", "compare",
        "report"}
STAGES = {"stage", "stage_thinker", "stage_audio", "stage_vision"}
ROOF = {"pretrain", "chat", "showcase"}
SERVICES = {"checkpoint", "log"}  # used by the model and the loop alike


def imports(path: Path) -> set[str]:
    """The modules of omni that a file imports, wherever it does."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("omni.")}
        elif isinstance(node, ast.ImportFrom) and node.module == "omni":
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("omni."):
            found.add(node.module.split(".")[1])
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
    return found


GRAPH = {path.stem: imports(path) for path in FILES}


def test_imports_form_no_circle():
    left = dict(GRAPH)
    while left:
        free = [name for name, used in left.items() if not used & left.keys()]
        assert free, f"a circle among {sorted(left)}"
        for name in free:
            del left[name]


@pytest.mark.parametrize("low, high", [
    (GROUND, DATA | MODEL | LOOP | STAGES | ROOF | SERVICES), (SERVICES, DATA | MODEL | LOOP | STAGES | ROOF),
    (DATA | MODEL, LOOP | STAGES | ROOF), (LOOP, STAGES | ROOF), (STAGES, ROOF)])
def test_imports_run_down(low, high):
    for name in low & GRAPH.keys():
        assert not GRAPH[name] & high, f"{name} imports {sorted(GRAPH[name] & high)}"


def test_data_and_model_never_import_each_other():
    for name in DATA & GRAPH.keys():
        assert not GRAPH[name] & MODEL, name
    for name in MODEL & GRAPH.keys():
        assert not GRAPH[name] & (DATA - {"audio"}), name


def test_of_the_sound_the_model_knows_constants_only():
    for name in MODEL & GRAPH.keys():
        for node in ast.walk(ast.parse((ROOT / "omni" / f"{name}.py").read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and node.module == "omni.audio":
                assert all(alias.name.isupper() for alias in node.names), name
            elif isinstance(node, ast.ImportFrom) and node.module == "omni":
                assert "audio" not in {alias.name for alias in node.names}, name


def test_every_room_has_its_floor():
    known = GROUND | DATA | MODEL | LOOP | STAGES | ROOF | SERVICES | {"__init__"}
    assert GRAPH.keys() <= known, f"tell this test the floor of {sorted(GRAPH.keys() - known)}"


@pytest.mark.parametrize("path", [*FILES, *sorted((ROOT / "tests").rglob("*.py"))], ids=lambda p: p.name)
def test_a_file_is_read_in_one_sitting(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


def test_the_entry_script_stays_short():
    assert len((ROOT / "sft_omni.py").read_text(encoding="utf-8").splitlines()) < 250


def test_nothing_is_caught_silently_and_no_default_hides():
    for path in [*FILES, ROOT / "sft_omni.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ExceptHandler) and node.type is None), path.name
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "load_state_dict":
                assert not node.keywords, f"{path.name}: load_state_dict is strict here"


def test_the_top_level_holds_what_it_may():
    allowed = {"sft_omni.py", "configs", "omni", "data", "checkpoints", "tests", "requirements.txt",
               "README.md"}
    found = {p.name for p in ROOT.iterdir() if not p.name.startswith((".", "__pycache__"))}
    assert found <= allowed, sorted(found - allowed)
