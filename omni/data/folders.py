"""Folders as sources: LibriSpeech, Kaldi, media with a text beside each, media in folders of their class."""

import json
import os
import re
from collections.abc import Iterator
from pathlib import Path

from omni.base.errors import UserError
from omni.base.paths import local
from omni.data.media import is_audio, is_image
from omni.data.texts import MAX_TEXT, Entries, lines_of

SPLITS = {"train", "training", "test", "testing", "val", "valid", "validation", "dev", "eval"}
PLAIN = {"images", "image", "img", "imgs", "pictures", "photos", "audio", "audios", "wav", "wavs", "clips",
         "data", "media", "files"}  # names of folders that say nothing about what they hold
TABLES = (".tsv", ".csv", ".jsonl", ".ndjson", ".json")
TEXTS = (".txt", ".lab", ".caption", ".json")


def files_in(root: Path) -> list[str]:
    """The files in and below `root` as sorted relative paths. Hidden files and folders are ignored."""
    return sorted(_walk(root))


def _walk(root: Path) -> Iterator[str]:
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if not name.startswith((".", "__MACOSX"))]
        inside = os.path.relpath(folder, root).replace(os.sep, "/")
        yield from (name if inside == "." else f"{inside}/{name}" for name in names
                    if not name.startswith("."))


def shards(path: str) -> list[str]:
    """The shards in a folder, or those that an index lists; [path] if it is neither.

    UserError if a folder of Parquet files or nested shards holds several sets, such as splits.
    """
    root = Path(path)
    if path.lower().endswith(".json") and root.is_file() and root.stat().st_size < MAX_TEXT:
        return _index(root)
    if not root.is_dir() or any(root.glob("metadata.*")) or any(root.glob("*.tar")):
        return [path]
    files = []
    for name in _walk(root):
        if is_image(name) or is_audio(name) or name.endswith(".trans.txt"):
            return [path]
        files.append(name)
    files.sort()
    kinds = (".parquet",), (".tar",), TABLES + tuple(f"{end}.gz" for end in TABLES)
    found = next((names for ends in kinds
                  if (names := [name for name in files if name.lower().endswith(ends)])), [])
    patterns = {_pattern(name): None for name in found}
    strict = bool(found) and found[0].lower().endswith((".parquet", ".tar"))
    if len(patterns) > 1 and strict:
        raise UserError(f"{path}: holds several sets of shards; name one of them with a pattern: "
                        + ", ".join(str(root / pattern) for pattern in list(patterns)[:9]))
    return [str(root / name) for name in found] if strict or len(patterns) == 1 < len(found) else [path]


def _index(path: Path) -> list[str]:
    """The shards in WebDataset's index {"shardlist": [{"url": ...}]}; [path] if it is another file."""
    value = _read(path)
    listed = value.get("shardlist") if isinstance(value, dict) else None
    if not isinstance(listed, list) or not listed or not all(
            isinstance(item, dict) and isinstance(item.get("url"), str) for item in listed):
        return [str(path)]
    urls = [local(item["url"]) for item in listed]
    if web := next((url for url in urls if "://" in url), None):
        raise UserError(f"{path}: lists {web}: nothing is fetched; download the shards, and name them")
    return [str(path.parent / url) for url in urls]


def _pattern(name: str) -> str:
    """"train-00000-of-00009-0a1b2c3d4e5f6a7b.parquet" -> "train-*.parquet"."""
    folder, slash, file = name.rpartition("/")
    return folder + slash + re.sub(r"\d+(-of-\d+)?(-[0-9a-f]{16}(?=\.))?", "*", file)


def librispeech(root: Path) -> Entries:
    """`speaker/chapter/*.trans.txt`: each line is a clip's name and its transcript; the clip is beside it."""
    number = 0
    for table in sorted(root.rglob("*.trans.txt")):
        clips = {Path(name).stem: name for name in os.listdir(table.parent) if is_audio(name)}
        for line in lines_of(table):
            number += 1
            name, _, words = line.strip().partition(" ")
            if name:
                clip = table.parent / clips.get(name, f"{name}.flac")
                yield number, {"audio": str(clip.relative_to(root)), "sentence": words}


def kaldi_files(path: Path) -> tuple[Path, Path] | None:
    """(wav.scp, text) of a folder, or of a file that is one of the two; None if there are none."""
    folder, name = (path, "wav.scp") if path.is_dir() else (path.parent, path.name)
    if not path.is_dir() and not name.endswith("wav.scp"):
        name = name.removesuffix(".txt").removesuffix("text") + "wav.scp" if "text" in name else ""
    if not name or not (folder / name).is_file():
        return None
    stem = name.removesuffix("wav.scp")
    text = next((folder / f"{stem}text{end}" for end in ("", ".txt")
                 if (folder / f"{stem}text{end}").is_file()), None)
    return (folder / name, text) if text else None


def kaldi(clips: Path, texts: Path) -> Entries:
    """wav.scp, `text` and, where there is one, `segments` (utterance, recording, start, end)."""
    files = dict(_key_and_rest(clips))
    segments = clips.parent / "segments"
    cuts = {key: rest.split() for key, rest in _key_and_rest(segments)} if segments.is_file() else {}
    for number, (key, words) in enumerate(_key_and_rest(texts), 1):
        recording, *times = cuts.get(key, [key])
        name = files.get(recording)
        if name is None or len(times) not in (0, 2):
            yield number, ValueError("no clip of this utterance in wav.scp")
        elif name.endswith("|"):
            yield number, ValueError("wav.scp gives a command: nothing is run, write its output to a file")
        else:
            times = dict(zip(("start", "end"), times, strict=False))
            yield number, {"audio": name, "sentence": words, **times}


def _key_and_rest(path: Path) -> Iterator[tuple[str, str]]:
    for line in lines_of(path):
        key, _, rest = line.strip().replace("\t", " ", 1).partition(" ")
        if key:
            yield key, rest.strip()


def pairs(files: list[str]) -> dict[str, tuple[list[str], list[str]]] | None:
    """{name without ending: (media, texts)} if most media have a text of the same name, otherwise None.

    The text is in the folder of its medium or, if no name occurs twice, in any other.
    """
    media = [name for name in files if is_image(name) or is_audio(name)]
    texts = [name for name in files if name.lower().endswith(TEXTS)
             and Path(name).stem.lower() not in ("readme", "license", "licence", "changelog", "notice",
                                                 "metadata")]
    for key in (_stem, lambda name: _stem(name).rpartition("/")[2]):
        groups: dict[str, tuple[list[str], list[str]]] = {}
        for i, names in enumerate((media, texts)):
            for name in names:
                groups.setdefault(key(name), ([], []))[i].append(name)
        matched = sum(bool(m and t) for m, t in groups.values())
        single = all(len(m) < 3 and len(t) < 3 for m, t in groups.values())
        if matched and 2 * matched >= len({key(name) for name in media}) and single:
            return groups
    return None


def _stem(name: str) -> str:
    """"a/x.normalized.txt" -> "a/x"."""
    folder, slash, file = name.rpartition("/")
    stem = file.rpartition(".")[0]
    for end in (".normalized", ".original"):
        stem = stem.removesuffix(end)
    return folder + slash + stem


def paired(root: Path, groups: dict[str, tuple[list[str], list[str]]]) -> Entries:
    """An entry for each medium with its text: a .txt or the like, or the keys of a .json."""
    for number, (media, texts) in enumerate((groups[key] for key in sorted(groups)), 1):
        if not media or not texts:
            yield number, ValueError("no text beside it" if media else "no image or clip beside its text")
            continue
        entry = {}
        for name in sorted(texts, key=lambda name: not name.endswith(".json")):
            value = _read(root / name)
            if isinstance(value, ValueError):
                entry = value
                break
            entry |= value if isinstance(value, dict) else {"text": value}
        if isinstance(entry, ValueError):
            yield number, entry
            continue
        yield number, {**entry, **{"image" if is_image(name) else "audio": name for name in media}}


def _read(path: Path) -> str | dict | ValueError:
    if path.stat().st_size > MAX_TEXT:
        return ValueError(f"a text longer than {MAX_TEXT} bytes")
    try:
        text = path.read_text(encoding="utf-8-sig").strip()
        value = json.loads(text) if path.suffix.lower() == ".json" else text
    except UnicodeDecodeError:
        return ValueError("its text is not UTF-8")
    except (ValueError, RecursionError):
        return ValueError("its .json is not valid JSON")
    return value if isinstance(value, str | dict) else ValueError("its .json is not an object")


def class_folders(path: Path, files: list[str], question: str) -> tuple[str, Entries]:
    """(name, entries) of `class/*.jpg` or `class/*.wav`: the answer is the folder's name.

    A folder of a split, and one that holds all others, is not a class. UserError if there are no classes.
    """
    media = [name for name in files if is_image(name) or is_audio(name)]
    images = [name for name in media if is_image(name)]
    level, splits = 0, set()
    tops = {name.split("/")[0] for name in media if "/" in name}
    if tops and {top.lower() for top in tops} <= SPLITS:
        level, splits = 1, tops
    while True:
        names = {name.split("/")[level] for name in media if name.count("/") > level}
        deeper = any(name.count("/") > level + 1 for name in media)
        if len(names) != 1 or not deeper or not {name.lower() for name in names} & PLAIN:
            break
        level += 1
    if not names or {name.lower() for name in names} <= PLAIN:
        raise UserError(f"{path}: can't open this folder as a source: its media are in "
                        f"{', '.join(sorted(names)) or 'no'} folders, which name no class, and have no texts "
                        "beside them; name the file with their texts")
    if images and not question:
        raise UserError(f'{path}: an image folder needs a "question" in its source, such as '
                        '"What is in the picture?"')
    name = "image folder" if images else "folder of clips"
    if len(splits) > 1:
        name += (f" (of the splits {', '.join(sorted(splits))}: all are read; name one of them to keep the "
                 "others apart)")
    return name, _classes(media, level, question)


def _classes(media: list[str], level: int, question: str) -> Entries:
    for number, name in enumerate(media, 1):
        parts = name.split("/")
        if len(parts) < level + 2:
            yield number, ValueError("not in the folder of a class")
        elif parts[level].startswith("_"):
            yield number, ValueError(f"in {parts[level]}, which is no class")
        else:
            answer = parts[level].replace("_", " ")
            yield number, {"image" if is_image(name) else "audio": name, "label": answer}
