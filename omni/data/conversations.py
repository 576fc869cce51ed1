"""Converts one entry of a published dataset to one form: (role, content) pairs and lists of media.

An entry's shape is recognised by its keys: `messages` (LLaMA-Factory, ms-swift, OpenAI), `conversations`
(ShareGPT, LLaVA), `instruction` and `output` (Alpaca), `query` and `response` (ms-swift), `[question, answer,
image]` (easy-VQA), plain `text`, and rows with columns for a medium and a text. The result is checked in
`omni.data.manifest`. A ValueError is the reason to skip the entry. Nothing is fetched from the network.
"""

from omni.data.media import Piece, is_audio, is_image
from omni.data.sample import AUDIO, IMAGE

ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user", "assistant": "assistant",
         "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
# Questions for media when neither the entry nor its source has one.
TRANSCRIBE, DESCRIBE = "Transcribe the audio.", "Describe the picture."
# The columns of a row. In each group the first one with a value is used.
PATHS = ("path", "file", "file_name")  # an image or a clip, as the file's suffix says
IMAGE_PATHS, AUDIO_PATHS = ("image", "image_path"), ("wav", "audio", "audio_path")
QUESTION = ("question", "prompt")
TRANSCRIPT = ("sentence", "transcript", "transcription")  # a column of spoken words makes the task ASR
ANSWER = ("text", *TRANSCRIPT, "caption", "answer", "label")
PAIRS = (("instruction", "output", "Alpaca"), ("query", "response", "query and response"),
         ("prompt", "response", "prompt and response"), ("prompt", "completion", "prompt and completion"))
KEPT = {"task", "group", "transcript", "objects"}  # keys of our own manifests, passed on as they are
MEDIA = {"images", "audios", "image", "audio"}  # keys of an entry that lists its media
TRAINED_FLAGS = ("loss", "weight")  # keys of a message that say whether it is trained on


def no_base64(payload: str, name: str) -> Piece:
    """The `find_base64` of formats that can't hold a medium inside their text."""
    raise ValueError("a data: URL is supported in JSON files only")


def convert(entry, question: str = "", find_base64=no_base64) -> tuple[str, dict]:
    """Returns (the name of the entry's shape, the converted entry). ValueError if it can't be used.

    The converted entry holds `messages` [(role, content), ...]; `untrained`, the indices of the answers that
    are not trained on; `images` and `audios`, lists of paths; and its keys in KEPT. Only plain text keeps its
    `text` instead of `messages`. `question` is used if the entry has none. `find_base64(payload, name)`
    returns the `Piece` of the file that holds a base64 text.
    """
    if isinstance(entry, list) and len(entry) == 3 and all(isinstance(v, str) for v in entry[:2]):
        return "easy-VQA", _from_pairs([(entry[0], entry[1])], {"images": [f"images/{entry[2]}.png"]})
    if not isinstance(entry, dict):
        raise ValueError("not a JSON object")
    if entry.get("label") is False or entry.get("kto_tag") is False:
        raise ValueError("marked as a bad answer")
    if entry.get("videos") or entry.get("video"):
        raise ValueError("video is not supported")
    media = _listed_media(entry, find_base64)
    if "messages" in entry:
        messages = _from_messages(entry["messages"], media, find_base64, entry.get("system"))
        return "messages", _kept(entry) | messages
    turns = entry.get("conversations", entry.get("conversation"))
    if isinstance(turns, list):
        return _from_sharegpt(turns, entry, media, find_base64)
    for question_key, answer_key, kind in PAIRS:
        if question_key in entry and answer_key in entry:
            return kind, _kept(entry) | _from_alpaca(entry, question_key, answer_key, media)
    if "chosen" in entry and "rejected" in entry:
        raise ValueError("a preference pair, which is not for supervised training")
    row = _from_row(entry, question)
    if row is not None:
        return row
    if isinstance(entry.get("text"), str):
        return "plain text", {**entry, **media}
    raise ValueError('no "messages" list, and no other known shape')


def _kept(entry: dict) -> dict:
    return {} if KEPT.isdisjoint(entry) else {key: value for key, value in entry.items() if key in KEPT}


def _listed_media(entry: dict, find_base64) -> dict:
    """The media in an entry's `images` and `audios`; `image` and `audio` may be one path or a list."""
    if MEDIA.isdisjoint(entry):
        return {}
    media = {key: entry[key] for key in ("images", "audios") if key in entry}
    for one, many in (("image", "images"), ("audio", "audios")):
        if entry.get(one) and many not in media:
            media[many] = entry[one] if isinstance(entry[one], list) else [entry[one]]
    for key, placeholder in (("images", IMAGE), ("audios", AUDIO)):
        if isinstance(media.get(key), list):
            media[key] = [_media_path(value, placeholder, find_base64) for value in media[key]]
    return media


def _from_messages(turns, media: dict, find_base64, system=None) -> dict:
    """`messages` whose content is a text, or a list of typed parts that may hold media themselves."""
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
            content = _join_parts(content, found, find_base64)
        if role == "user" and messages and messages[-1][0] == "user":  # OpenAI's guide has two in a row
            messages[-1] = role, messages[-1][1] + "\n" + content
            continue
        flags = [_trained(turn[key]) for key in TRAINED_FLAGS if turn.get(key) is not None] \
            if len(turn) > 2 else ()
        if role == "assistant" and not all(flags):
            untrained.append(len(messages))
        messages.append((role, content))
    for key, paths in found.items():
        if media.get(key):
            raise ValueError("media both in the messages and beside them")
        media = {**media, key: paths}
    return {"messages": messages, "untrained": untrained, **media}


def _trained(value) -> bool:
    """Whether a message is trained on: ms-swift's `loss` (true, false) or OpenAI's `weight` (1, 0)."""
    if value not in (0, 1):
        raise ValueError('"loss" must be true or false, "weight" 1 or 0')
    return bool(value)


def _join_parts(content, found: dict[str, list], find_base64) -> str:
    """A message's typed parts as one text with placeholders. Media in the parts are added to `found`."""
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise ValueError("a message needs a text as content, or a list of typed parts")
    texts = []
    for part in content:
        kind = part.get("type")
        if kind == "text" and isinstance(part.get("text", part.get("value")), str):
            texts.append(part.get("text", part.get("value")))
            continue
        if kind not in ("image", "image_url", "audio", "audio_url", "input_audio"):
            raise ValueError(f'a part of type "{str(kind)[:20]}" (text, image, audio, image_url, '
                             "input_audio are read)")
        placeholder = IMAGE if "image" in kind else AUDIO
        texts.append(placeholder)
        keys = (kind, "path", "url", "value", placeholder[1:-1])
        value = next((part[key] for key in keys if part.get(key)), None)
        if isinstance(value, dict) and "data" in value:  # OpenAI's input_audio
            value = find_base64(str(value["data"]), f"audio.{str(value.get('format'))[:8]}")
        value = value.get("url") if isinstance(value, dict) else value
        if value is not None:  # otherwise the entry's own list has the path
            paths = found.setdefault("images" if placeholder == IMAGE else "audios", [])
            paths.append(_media_path(value, placeholder, find_base64))
    return "".join(texts)


def _media_path(value, placeholder: str, find_base64) -> str:
    """The path of a medium that an entry gives as a path, a file:// URL or a data: URL."""
    if not isinstance(value, str):
        raise ValueError(f"{placeholder} needs a path; several paths must be a list")
    if isinstance(value, Piece):
        return value
    if value.startswith("data:"):
        mime_type, _, payload = value.partition(";base64,")
        return find_base64(payload, f"{placeholder[1:-1]}.{mime_type.rpartition('/')[2][:8]}")
    return value.removeprefix("file://")


def _from_sharegpt(turns: list, entry: dict, media: dict, find_base64) -> tuple[str, dict]:
    kind = "LLaVA" if "image" in entry else "ShareGPT"
    if turns and all(isinstance(turn, dict) and "human" in turn and "assistant" in turn for turn in turns):
        pairs = [(turn["human"], turn["assistant"]) for turn in turns]  # as ms-swift writes ShareGPT
        return kind, _kept(entry) | _from_pairs(pairs, media, entry.get("system"))
    messages = [{**turn, "role": turn.get("from", turn.get("role")),
                 "content": turn.get("value", turn.get("content"))} if isinstance(turn, dict) else turn
                for turn in turns]
    return kind, _kept(entry) | _from_messages(messages, media, find_base64, entry.get("system"))


def _from_alpaca(entry: dict, question_key: str, answer_key: str, media: dict) -> dict:
    """Alpaca and similar: the question is instruction, newline, input; `history` holds earlier turns."""
    history = entry.get("history") or []
    if not isinstance(history, list) or not all(isinstance(t, list) and len(t) == 2 for t in history):
        raise ValueError('"history" must be a list of [question, answer]')
    parts = (entry[question_key], entry.get("input") or "")
    question = "\n".join(filter(None, parts)) if all(isinstance(part, str) for part in parts) else None
    return _from_pairs([*history, (question, entry[answer_key])], media, entry.get("system"))


def _from_pairs(pairs, media: dict, system=None) -> dict:
    """A conversation of (question, answer) pairs; all answers are trained on."""
    messages = [("system", system)] if system else []
    for question, answer in pairs:
        messages += [("user", question), ("assistant", answer)]
    return {"messages": messages, "untrained": [], **media}


def _from_row(entry: dict, question: str) -> tuple[str, dict] | None:
    """A row of a table or a caption: a medium or a question, and an answer. None if it lacks such columns."""
    def first(columns) -> str | None:
        return next((entry[c] for c in columns if isinstance(entry.get(c), str) and entry[c]), None)

    images = [path for path in (first(IMAGE_PATHS), *filter(is_image, [first(PATHS) or ""])) if path]
    audios = [path for path in (first(AUDIO_PATHS), *filter(is_audio, [first(PATHS) or ""])) if path]
    own_question, answer = first(QUESTION), first(ANSWER)
    if not (images or audios or own_question) or not any(column in entry for column in ANSWER):
        return None
    if answer is None:
        raise ValueError("the answer is empty")
    kept = _kept({key: value for key, value in entry.items() if value and key != "transcript"})
    if audios and not images and not own_question and (not question or first(TRANSCRIPT)):
        kept = {"task": "asr", **kept}
    question = own_question or question or (TRANSCRIBE if audios and not images else DESCRIBE)
    kind = "clips with text" if audios else "images with text" if images else "questions and answers"
    return kind, kept | _from_pairs([(question, answer)], {"images": images, "audios": audios})
