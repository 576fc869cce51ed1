"""The rules of the code: imports between folders go one way, and no file is long."""

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
OMNI = ROOT / "omni"
FILES = sorted(OMNI.rglob("*.py"))
# What the modules of each folder may import besides their own. "commands" are the files directly in omni/,
# which users start: python -m omni.NAME.
ALLOWED = {
    "base": set(),
    "data": {"base"},
    "model": {"base"},
    "train": {"base", "data", "model"},
    "eval": {"base", "data", "model"},
    "report": {"base", "data", "eval", "train"},
    "pretrain": {"base", "data", "model", "eval", "train"},
    "commands": {"base", "data", "model", "train", "eval", "report", "pretrain"},
    "serve": {"base", "data", "model", "report", "commands"},  # a page and an API for what omni.chat does
}
# What model may import from data: the batch, the samples, and the ids of the tokenizer.
SHARED = {"omni.data.batch", "omni.data.layout", "omni.data.sample", "omni.data.tokenizer"}


def layer(module: str) -> str:
    """"omni.data.audio" -> "data", "omni.base.config" -> "base", "omni.chat" -> "commands"."""
    parts = module.split(".")
    if len(parts) > 1 and (OMNI / parts[1]).is_dir():
        return "commands" if parts[2:] == ["figure"] else parts[1]
    return "commands"


def name(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def imports(path: Path) -> set[str]:
    """The modules of omni that a file imports, anywhere in the file."""
    found = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names if alias.name.split(".")[0] == "omni"}
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path.name}: a relative import"
            module = node.module or ""
            if module.split(".")[0] == "omni":
                folder = ROOT.joinpath(*module.split("."))
                found |= {f"{module}.{alias.name}" for alias in node.names} if folder.is_dir() else {module}
    return {module for module in found if module != "omni.OmniModel"}


GRAPH = {name(path): imports(path) for path in FILES if name(path) != "omni"}


@pytest.mark.parametrize("module", GRAPH)
def test_a_folder_imports_only_what_it_may(module):
    own = layer(module)
    for used in GRAPH[module]:
        assert used in GRAPH, f"{module} imports {used}, which is not a module"
        allowed = layer(used) == own or layer(used) in ALLOWED[own] or (own == "model" and used in SHARED)
        assert allowed, f"{module} ({own}) imports {used} ({layer(used)})"


def test_only_commands_lie_directly_in_omni():
    for path in OMNI.glob("*.py"):
        assert path.name == "__init__.py" or "command(main)" in path.read_text(encoding="utf-8"), path.name


def test_no_import_is_circular():
    left = dict(GRAPH)
    while left:
        free = [module for module, used in left.items() if not used & left.keys()]
        assert free, f"a circle among {sorted(left)}"
        for module in free:
            del left[module]


@pytest.mark.parametrize("path", [*FILES, *sorted((ROOT / "tests").rglob("*.py"))],
                         ids=lambda path: str(path.relative_to(ROOT)))
def test_a_file_has_at_most_300_lines(path):
    assert len(path.read_text(encoding="utf-8").splitlines()) <= 300


def test_the_entry_script_stays_short():
    assert len((ROOT / "sft_omni.py").read_text(encoding="utf-8").splitlines()) < 250


def test_there_is_no_bare_except_and_weights_are_loaded_strictly():
    for path in [*FILES, ROOT / "sft_omni.py"]:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            assert not (isinstance(node, ast.ExceptHandler) and node.type is None), path.name
            if isinstance(node, ast.Call) and getattr(node.func, "attr", "") == "load_state_dict":
                assert {keyword.arg for keyword in node.keywords} <= {"assign"}, \
                    f"{path.name}: load_state_dict is strict here"


def test_the_repository_root_holds_only_known_files():
    allowed = {"sft_omni.py", "configs", "omni", "data", "checkpoints", "tests", "requirements.txt",
               "README.md"}
    found = {p.name for p in ROOT.iterdir() if not p.name.startswith((".", "__pycache__"))}
    assert found <= allowed, sorted(found - allowed)
