"""Reads config files: JSON with comments, `--set` overrides, and checks of the data mix."""

import json
import re
from importlib.util import find_spec
from pathlib import Path

from omni.base.config import ENCODERS, PROJECTIONS, SFTConfig, build
from omni.base.errors import UserError
from omni.base.paths import from_config

# The keys that say how many media a new projector is fitted to, and the encoder that must be frozen then.
ALIGNED = {"audio_alignment_clips": "audio", "vision_alignment_images": "vision"}


def parse_json(text: str, where: str):
    """Parse JSON that may hold `//` and `/* */` comments and trailing commas.

    UserError if it is malformed, or holds duplicate keys, NaN or Infinity, since these hide mistakes.
    """
    token = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/', re.S)
    # A comment becomes as many spaces, so that errors name the right line and column.
    text = text.removeprefix("\ufeff")
    blank = token.sub(lambda m: m[0] if m[0][0] == '"' else re.sub(r"[^\n]", " ", m[0]), text)
    comma = re.compile(r'"(?:\\.|[^"\\\n])*"|,(?=\s*[}\]])', re.S)
    plain = comma.sub(lambda m: m[0] if m[0][0] == '"' else " ", blank)

    def unique(pairs):
        names = [name for name, _ in pairs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f'{where}: the key "{twice}" occurs twice; keep one of them')
        return dict(pairs)

    def not_a_number(name):
        raise UserError(f"{where}: {name} is not allowed; give a finite number")

    try:
        return json.loads(plain, object_pairs_hook=unique, parse_constant=not_a_number)
    except json.JSONDecodeError as err:
        raise UserError(f"{where}, line {err.lineno}, column {err.colno}: not JSON ({err.msg})") from None
    except RecursionError:
        raise UserError(f"{where}: nested too deeply") from None
    except ValueError as err:  # a whole number of thousands of digits
        raise UserError(f"{where}: {err}") from None


def apply_override(values: dict, setting: str) -> None:
    """Apply one `--set key=value` to `values`. Dots join nested keys. A value that isn't JSON is a string."""
    key, equals, text = setting.partition("=")
    if not equals or not key:
        raise UserError(f"--set {setting}: write it as key=value, for example --set batch_size=16")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        value = text
    *parents, last = key.split(".")
    for name in parents:
        values = values.setdefault(name, {})
        if not isinstance(values, dict):
            raise UserError(f'--set {setting}: "{name}" is not an object, so it has no key "{last}"')
    values[last] = value


def load_config(path: str, cls, overrides: list[str] = ()):
    """Read the config file at `path` as the dataclass `cls`, with `--set` overrides. UserError if bad."""
    try:
        if Path(path).stat().st_size > 1_000_000 or not Path(path).is_file():  # reading a pipe would block
            raise OSError("not a regular file of at most 1 MB")
        text = Path(path).read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UserError(f"{path}: no such config file; the shipped ones are in configs/") from None
    except (OSError, ValueError) as err:
        raise UserError(f"{path}: can't be read as text ({err})") from None
    values = parse_json(text, path)
    if isinstance(values, dict):
        for setting in overrides:
            apply_override(values, setting)
    odd = re.search("[\0\ud800-\udfff]", json.dumps(values, ensure_ascii=False).replace("\\u0000", "\0"))
    if odd:
        raise UserError(f"{path}: holds the character {ascii(odd[0])}, which paths and names can't hold")
    _find_paths(values, path)
    config = build(cls, values, path)
    if cls is SFTConfig:
        check_parts(config, values, path)
        check_mix(config, path)
        if config.track is not None and find_spec(config.track) is None:
            raise UserError(f'{path}: "track": {config.track} is not installed; pip install {config.track}')
    return config


INPUT_PATHS = ("thinker_ckpt", "audio_ckpt", "vision_ckpt", "system_ckpt", "data_dir", "train", "val",
               "photographs", "clips", "audio_encoder")
SOURCE_PATHS = ("train", "val", "image_folder", "media_dir")


def _find_paths(values, config: str) -> None:
    """Resolve input paths from the working folder or, if they exist only there, from the config's folder."""
    mix = values.get("data_mix") if isinstance(values, dict) else None
    sources = [entry for entry in mix.values() if isinstance(entry, dict)] if isinstance(mix, dict) else []
    for holder, keys in ((values, INPUT_PATHS), *((source, SOURCE_PATHS) for source in sources)):
        for key in keys if isinstance(holder, dict) else ():
            value = holder.get(key)
            if isinstance(value, str):
                holder[key] = from_config(value, config)
            elif _is_list(value):
                holder[key] = [from_config(path, config) for path in value]


def check_parts(config: SFTConfig, given: dict, where: str) -> None:
    """UserError if keys about the parts contradict each other; `given` are the values in the file."""
    problems, default = [], SFTConfig()
    chosen = {key for key, value in given.items() if value != getattr(default, key)}
    if config.system_ckpt is not None:
        for key in ("thinker_ckpt", "audio_ckpt", "vision_ckpt", "audio_window", "audio_stack",
                    "audio_words_first", "image_merge", *ALIGNED):
            if key in chosen:
                problems.append(f'"{key}" and "system_ckpt" exclude each other: the system has its own; '
                                "remove one of them")
    for key, known in (("freeze_encoders", ENCODERS), ("lora_targets", PROJECTIONS)):
        names = getattr(config, key)
        for name in names if isinstance(names, list) else ():
            if name not in known:
                problems.append(f'"{key}" can\'t hold {json.dumps(name)}; choose from {", ".join(known)}')
    if config.lora_rank and config.freeze_thinker:
        problems.append('"lora_rank" trains the Thinker, which "freeze_thinker" forbids; remove one of them')
    if config.lora_rank and not config.lora_targets:
        problems.append('"lora_targets" is empty, so "lora_rank" has nothing to adapt; name projections')
    for key, part in ALIGNED.items():
        if getattr(config, key) and (part not in config.frozen or not config.feature_cache_gb):
            problems.append(f'"{key}" needs the kept features of a frozen {part} encoder: '
                            'freeze it and set "feature_cache_gb" above 0, or leave this key out')
    if config.audio_words_first and "audio" not in config.frozen:
        problems.append('"audio_words_first" needs a frozen audio encoder, since the CTC head is not '
                        "trained; freeze it, or leave this key out")
    for key in ("lora_alpha", "lora_targets"):
        if key in chosen and not config.lora_rank:
            problems.append(f'"{key}" has no effect without "lora_rank"; set it, for example to 16')
    if problems:
        raise UserError(f"{where}: " + "; ".join(problems))


SOURCE_KEYS = ("weight", "train", "val", "image_folder", "media_dir", "question", "task", "columns")
TASKS = ("text", "qa", "asr")  # omni.eval.grading says how the answers of each are graded
# What "columns" of a source may say of a key: {"audio": "audio_filepath", "ignore": ["a", "b"]}.
COLUMNS = ("image", "audio", "question", "answer", "system", "context", "transcript", "messages", "start",
           "end", "duration", "task", "group", "ignore")


def check_mix(config: SFTConfig, where: str) -> None:
    """UserError unless every source has a weight >= 0 and known keys, and some weight is above 0."""
    problems, total = [], 0.0
    for name, entry in config.data_mix.items():
        weight = entry.get("weight") if isinstance(entry, dict) else entry
        if isinstance(weight, bool) or not isinstance(weight, int | float) or not 0 <= weight < 1e9:
            given = json.dumps(entry)[:60]
            problems.append(f'"data_mix.{name}" needs a weight of 0 or more, not {given}')
            continue
        total += weight
        if isinstance(entry, dict):
            problems += _source_problems(f"data_mix.{name}", entry)
    if not problems and total <= 0:
        problems.append('"data_mix" needs at least one source with a weight above 0')
    if problems:
        raise UserError(f"{where}: " + "; ".join(problems))


def _source_problems(where: str, entry: dict) -> list[str]:
    """Problems with a source of data_mix, apart from its weight."""
    problems = []
    for key, value in entry.items():
        if key not in SOURCE_KEYS:
            problems.append(f'unknown key "{where}.{key}"; known keys: {", ".join(SOURCE_KEYS)}')
        elif key == "val" and isinstance(value, int | float) and not isinstance(value, bool):
            if not 0 < value < 1:
                problems.append(f'"{where}.val" as a number is the held-out share: above 0 and below 1, '
                                f"not {value:g}")
        elif key == "columns":
            problems += _column_problems(f"{where}.columns", value)
        elif key == "task" and value not in TASKS:
            problems.append(f'"{where}.task" must be {", ".join(TASKS)}, not {json.dumps(value)[:40]}')
        elif key in ("train", "val") and _is_list(value):
            continue
        elif key not in ("weight", "task") and not isinstance(value, str) and (key, value) != ("val", None):
            what = {"question": "a string", "train": "a path, a pattern or a list of these",
                    "val": "a path, a pattern, a list of these, the held-out share, or null for none"}
            problems.append(f'"{where}.{key}" must be {what[key] if key in what else "a path"}')
    if "image_folder" in entry and "train" in entry:
        problems.append(f'"{where}" has both train and image_folder; keep one of them')
    if "image_folder" in entry and "media_dir" in entry:
        problems.append(f'"{where}" has both media_dir and image_folder; its images are in the folder')
    if "image_folder" in entry and "question" not in entry:
        problems.append(f'"{where}.image_folder" needs "question", such as "What is in the picture?"')
    if "image_folder" in entry and "val" not in entry:
        problems.append(f'"{where}.image_folder" needs "val": a folder, the held-out share, or null for none')
    return problems


def _is_list(value) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(path, str) and path for path in value)


def _column_problems(where: str, columns) -> list[str]:
    if not isinstance(columns, dict):
        return [f'"{where}" must be an object, such as {{"audio": "audio_filepath"}}']
    problems, used = [], []
    for role, keys in columns.items():
        keys = [keys] if isinstance(keys, str) else keys
        if role not in COLUMNS:
            problems.append(f'unknown "{where}.{role}"; known: {", ".join(COLUMNS)}')
        elif not isinstance(keys, list) or not keys or not all(isinstance(key, str) and key for key in keys):
            problems.append(f'"{where}.{role}" must be the name of a key, or a list of names')
        else:
            problems += [f'"{where}" gives "{key}" twice' for key in keys if key in used]
            used += keys
    return problems


def mix_entry(config: SFTConfig, name: str) -> tuple[float, str | list[str], str | list[str] | float | None]:
    """(weight, train paths, val paths or held-out share or None) of the source `name`."""
    entry = config.data_mix[name]
    entry = entry if isinstance(entry, dict) else {"weight": entry}
    folder = Path(config.data_dir) / name
    train = entry.get("train", entry.get("image_folder", str(folder / "train.jsonl")))
    return float(entry["weight"]), train, entry.get("val", str(folder / "val.jsonl"))


def mix_reading(config: SFTConfig, name: str) -> dict:
    """How the source `name` is read: `question`, `columns`, `task`, `media_dir` of `omni.data.manifest.read`.

    The question and the task are for samples that have none; "" leaves them to the format or to a guess.
    """
    entry = config.data_mix[name]
    entry = entry if isinstance(entry, dict) else {}
    return {"question": entry.get("question", ""), "columns": entry.get("columns"),
            "task": entry.get("task", ""), "media_dir": entry.get("media_dir", "")}
