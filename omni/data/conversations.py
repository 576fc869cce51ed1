"""One entry of a published dataset -> (what it is, the entry in one form: turns as pairs, lists of media).

Known by its keys: `messages` (LLaMA-Factory, ms-swift, OpenAI), `conversations` (ShareGPT, LLaVA),
`instruction` and `output` (Alpaca), `query` and `response` (ms-swift), `[question, answer, picture]`
(easy-VQA), plain `text`, and rows that name a medium and a text. What is converted is checked by
`omni.manifest` alone; a ValueError here is a reason to skip the entry. Nothing is fetched from the network.
"""

from omni.data.media import Piece, is_audio, is_image
from omni.data.sample import AUDIO, IMAGE

ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
         "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
ASR, CAPTION = "Transcribe the audio.", "Describe the picture."  # asked where neither entry nor source asks
# A row's columns: what holds the medium, the question, and the answer, the first that is there.
PATHS = ("path", "file", "file_name")  # a picture or a clip, by its ending
PICTURE, SOUND = ("image", "image_path"), ("wav", "audio", "audio_path")
QUESTION = ("question", "prompt")
TRANSCRIPT = ("sentence", "transcript", "transcription")  # words that are said, so an answer to ASR
ANSWER = ("text", *TRANSCRIPT, "caption", "answer", "label")
PAIRS = (("instruction", "output", "Alpaca"), ("query", "response", "query and response"),
         ("prompt", "response", "prompt and response"), ("prompt", "completion", "prompt and completion"))
KEPT = {"task", "group", "transcript", "objects"}  # keys of our own manifests
MEDIA = {"images", "audios", "image", "audio"}  # keys of an entry that lists its media
FLAGS = ("loss", "weight")  # keys of a message that say whether it is trained on


def no_pieces(payload: str, name: str) -> Piece:
    """What `inline` is where media can't lie inside the text."""
    raise ValueError("a data: URL is read from JSON files only")


def convert(entry, question: str = "", inline=no_pieces) -> tuple[str, dict]:
    """(kind, entry with the `messages` [(role, content)], `images`, `audios`, and `untrained`: the numbers of
    the answers that are not trained on). `question` is asked where the entry asks nothing itself;
    `inline(payload, name)` gives the `Piece` of a base64 text that stands in the file.
    """
    if isinstance(entry, list) and len(entry) == 3 and all(isinstance(v, str) for v in entry[:2]):
        return "easy-VQA", _talk([(entry[0], entry[1])], {"images": [f"images/{entry[2]}.png"]})
    if not isinstance(entry, dict):
        raise ValueError("not a JSON object")
    if entry.get("label") is False or entry.get("kto_tag") is False:
        raise ValueError("marked as a bad answer")
    if entry.get("videos") or entry.get("video"):
        raise ValueError("video is not supported")
    media = _listed(entry, inline)
    if "messages" in entry:
        return "messages", _kept(entry) | _messages(entry["messages"], media, inline, entry.get("system"))
    talk = entry.get("conversations", entry.get("conversation"))
    if isinstance(talk, list):
        return _conversations(talk, entry, media, inline)
    for asked, answered, kind in PAIRS:
        if asked in entry and answered in entry:
            return kind, _kept(entry) | _pair(entry, asked, answered, media)
    if "chosen" in entry and "rejected" in entry:
        raise ValueError("a preference pair, which is not for supervised training")
    row = _row(entry, question)
    if row is not None:
        return row
    if isinstance(entry.get("text"), str):
        return "plain text", {**entry, **media}
    raise ValueError('no "messages" list, and no other shape that is known')


def _kept(entry: dict) -> dict:
    return {} if KEPT.isdisjoint(entry) else {key: value for key, value in entry.items() if key in KEPT}


def _listed(entry: dict, inline) -> dict:
    """The media that an entry lists: `images`, `audios`, LLaVA's `image` (one or several), `audio`."""
    if MEDIA.isdisjoint(entry):
        return {}
    media = {key: entry[key] for key in ("images", "audios") if key in entry}
    for one, many in (("image", "images"), ("audio", "audios")):
        if entry.get(one) and many not in media:
            media[many] = entry[one] if isinstance(entry[one], list) else [entry[one]]
    for key, mark in (("images", IMAGE), ("audios", AUDIO)):
        if isinstance(media.get(key), list):
            media[key] = [located(given, mark, inline) for given in media[key]]
    return media


def _messages(turns, media: dict, inline, system=None) -> dict:
    """`messages` whose content is a text, or a list of typed parts that may carry their media."""
    if not isinstance(turns, list):
        raise ValueError('no "messages" list')
    found: dict[str, list] = {}
    messages, untrained = [("system", system)] if system else [], []
    for turn in turns:
        if not isinstance(turn, dict):
            raise ValueError('no "messages" list')
        role, content = ROLES.get(str(turn.get("role"))), turn.get("content")
        if role is None or "tool_calls" in turn and turn["tool_calls"]:
            raise ValueError(f'role "{str(turn.get("role"))[:20]}" can\'t be used (system, user, assistant)')
        if not isinstance(content, str):
            content = _content(content, found, inline)
        if role == "user" and messages and messages[-1][0] == "user":  # OpenAI's guide has such pairs
            messages[-1] = role, messages[-1][1] + "\n" + content
            continue
        flags = [_flag(turn[key]) for key in FLAGS if turn.get(key) is not None] if len(turn) > 2 else ()
        if role == "assistant" and not all(flags):
            untrained.append(len(messages))
        messages.append((role, content))
    for key, paths in found.items():
        if media.get(key):
            raise ValueError("media both in the messages and beside them")
        media = {**media, key: paths}
    return {"messages": messages, "untrained": untrained, **media}


def _flag(value) -> bool:
    """ms-swift's `loss` (true or false) and OpenAI's `weight` (1 or 0): whether a turn is trained on."""
    if value not in (0, 1):
        raise ValueError('"loss" must be true or false, "weight" 1 or 0')
    return bool(value)


def _content(content, found: dict[str, list], inline) -> str:
    """The text of a message in parts, with placeholders; the media that they carry are added to `found`."""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise ValueError("a message needs a text as content, or a list of typed parts")
    pieces = []
    for part in content:
        kind = part.get("type")
        if kind == "text" and isinstance(part.get("text", part.get("value")), str):
            pieces.append(part.get("text", part.get("value")))
            continue
        if kind not in ("image", "image_url", "audio", "audio_url", "input_audio"):
            raise ValueError(f'a part of type "{str(kind)[:20]}" (text, image, audio, image_url, '
                             "input_audio are read)")
        mark = IMAGE if "image" in kind else AUDIO
        pieces.append(mark)
        given = next((part[key] for key in (kind, "path", "url", "value", mark[1:-1]) if part.get(key)), None)
        if isinstance(given, dict) and "data" in given:  # OpenAI's input_audio
            given = inline(str(given["data"]), f"audio.{str(given.get('format'))[:8]}")
        given = given.get("url") if isinstance(given, dict) else given
        if given is not None:  # where it is None, the entry's own list has the file
            found.setdefault("images" if mark == IMAGE else "audios", []).append(located(given, mark, inline))
    return "".join(pieces)


def located(given, mark: str, inline) -> str:
    """What is given as a path: a plain one, or a file:// or data: URL."""
    if not isinstance(given, str):
        raise ValueError(f"{mark} needs a path, so a list of paths where there are several")
    if isinstance(given, Piece):
        return given
    if given.startswith("data:"):
        kind, _, payload = given.partition(";base64,")
        return inline(payload, f"{mark[1:-1]}.{kind.rpartition('/')[2][:8]}")
    return given.removeprefix("file://")


def _conversations(turns: list, entry: dict, media: dict, inline) -> tuple[str, dict]:
    kind = "LLaVA" if "image" in entry else "ShareGPT"
    if turns and all(isinstance(turn, dict) and "human" in turn and "assistant" in turn for turn in turns):
        pairs = [(turn["human"], turn["assistant"]) for turn in turns]  # as ms-swift writes ShareGPT
        return kind, _kept(entry) | _talk(pairs, media, entry.get("system"))
    named = [{**turn, "role": turn.get("from", turn.get("role")),
              "content": turn.get("value", turn.get("content"))} if isinstance(turn, dict) else turn
             for turn in turns]
    return kind, _kept(entry) | _messages(named, media, inline, entry.get("system"))


def _pair(entry: dict, asked: str, answered: str, media: dict) -> dict:
    """Alpaca and its like: instruction, newline, input; earlier turns in `history`, all trained on."""
    history = entry.get("history") or []
    if not isinstance(history, list) or not all(isinstance(t, list) and len(t) == 2 for t in history):
        raise ValueError('"history" must be a list of [question, answer]')
    question = "\n".join(filter(None, (entry[asked], entry.get("input")))) \
        if isinstance(entry.get("input") or "", str) and isinstance(entry[asked], str) else None
    return _talk([*history, (question, entry[answered])], media, entry.get("system"))


def _talk(pairs, media: dict, system=None) -> dict:
    messages = [("system", system)] if system else []
    for question, answer in pairs:
        messages += [("user", question), ("assistant", answer)]
    return {"messages": messages, "untrained": [], **media}


def _row(entry: dict, question: str) -> tuple[str, dict] | None:
    """A row that names a medium or a question, and an answer: CSV, TSV, captions. None if it is no such."""
    def first(columns) -> str | None:
        return next((entry[c] for c in columns if isinstance(entry.get(c), str) and entry[c]), None)

    pictures = [path for path in (first(PICTURE), *filter(is_image, [first(PATHS) or ""])) if path]
    sounds = [path for path in (first(SOUND), *filter(is_audio, [first(PATHS) or ""])) if path]
    asked, answer = first(QUESTION), first(ANSWER)
    if not (pictures or sounds or asked) or not any(column in entry for column in ANSWER):
        return None
    if answer is None:
        raise ValueError("the answer is empty")
    kept = _kept({key: value for key, value in entry.items() if value and key != "transcript"})
    if sounds and not pictures and not asked and (not question or first(TRANSCRIPT)):
        kept = {"task": "asr", **kept}
    asked = asked or question or (ASR if sounds and not pictures else CAPTION)
    kind = "clips with words" if sounds else "pictures with words" if pictures else "questions and answers"
    return kind, kept | _talk([(asked, answer)], {"images": pictures, "audios": sounds})
