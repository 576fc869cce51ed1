"""Rows: entries with a medium or a question, and an answer, each under a key or a column of its own."""

from collections import Counter

from omni.data.columns import Plan
from omni.data.keys import SPOKEN, role_of, snake_case
from omni.data.tasks import TRANSLATE, is_short
from omni.data.turns import pairs

# Questions for media when neither the entry nor its source has one.
TRANSCRIBE, DESCRIBE, LISTEN = "Transcribe the audio.", "Describe the picture.", "What is heard?"
NAMES = {("instruction", "output"): "Alpaca", ("query", "response"): "query and response",
         ("prompt", "response"): "prompt and response", ("prompt", "completion"): "prompt and completion"}


def convert(entry: dict, plan: Plan, media: dict, question: str) -> tuple[str, dict, list[str]]:
    """(the shape's name, the converted entry, the keys that were read). ValueError if it can't be used.

    `media` are the lists that were read; `question` is that of the source.
    """
    roles, read = plan.roles, []
    if "messages" in entry and not entry["messages"]:
        raise ValueError('no "messages" list')
    images, audios = media.get("images", []), media.get("audios", [])
    asked, own = _question(entry, roles, media, read)
    if not media:
        _check_not_empty(entry, plan, own)
    key = _answer_key(entry, roles, bool(media), asked, question)
    if key is None:
        if "question" in roles or images or audios or "answer" in roles:
            reason = "the answer is empty" if _has_empty_value(entry) else "no answer: " + _known(entry)
            raise ValueError(reason)
        raise ValueError('no "messages" list, and no other known shape: ' + _known(entry))
    read.append(key)
    if not (images or audios) and not asked:
        # A text with its class, or with a summary: the text is what is asked about.
        text = next((k for role in ("words", "context") for k in roles.get(role, ()) if k != key), None)
        if text is None and "words" in roles and key == roles["words"][0]:
            return "plain text", {"text": _text(entry[key], key)}, read
        if text is None:
            raise ValueError('no "messages" list, and no question: ' + _known(entry))
        asked, own = _joined(question, _text(entry[text], text)), True
        read.append(text)

    name = snake_case(key)
    answer = _answer(entry, key, roles)
    converted = {**media, "untrained": []}
    heard = bool(audios) and not images
    if own is False:
        is_words = key in roles.get("words", ()) or name == "target"
        if heard and is_words and (not question or name in SPOKEN):
            converted["task"] = "asr"
        if not question and heard:
            # A clip with an "answer" is itself the question.
            asked = TRANSCRIBE if is_words else LISTEN if key in roles.get("label", ()) else ""
        else:
            asked = question or DESCRIBE
    if media and key in roles.get("label", ()):
        converted["task"] = "qa"  # the answer is one of a few
    if heard and not asked:
        converted["task"] = "qa" if is_short(answer) else "text"  # a reply to the clip, not its words
    heard_words = entry[roles["words"][0]] if audios and "words" in roles else None
    if isinstance(heard_words, str) and key not in roles["words"]:
        converted["transcript"] = heard_words  # an answer beside the words of the clip
        read.append(roles["words"][0])
    # The same text under another key counts as read.
    read += [k for role in ("words", "answer") for k in roles.get(role, ()) if entry[k] == entry[key]]
    if pairs_of := _lists(entry, roles, key):
        return "questions and answers", {**converted, "messages": pairs(pairs_of)}, read
    history = _history(entry, roles, read)
    system = _first(entry, roles, "system", read)
    if isinstance(answer, list):
        converted["captions"] = answer
        answer = answer[0]
    converted["messages"] = pairs([*history, (asked, answer)], system)
    kind = NAMES.get((_main(roles), name)) or (
        "clips with text" if audios else "images with text" if images else "questions and answers")
    return kind, converted, read


def _main(roles: dict) -> str:
    return snake_case(roles["question"][0]) if "question" in roles else ""


def _has_empty_value(entry: dict) -> bool:
    return any(not value and value is not False for value in entry.values())


def _known(entry: dict) -> str:
    return f'it has {", ".join(map(str, list(entry)[:8]))} ("columns" of the source can say what a key is)'


def _first(entry: dict, roles: dict, role: str, read: list[str]) -> str | None:
    if role not in roles:
        return None
    key = roles[role][0]
    if not isinstance(entry[key], str):
        return None
    read.append(key)
    return entry[key]


def _question(entry: dict, roles: dict, media: dict, read: list[str]) -> tuple[str, bool]:
    """(the entry's own question with what it is about, whether it has one).

    An instruction goes before its input or context, a passage before the question about it.
    """
    texts = []
    for key in roles.get("question", ()):
        text = _text(entry[key], key)
        read.append(key)
        if text not in "\n".join(texts):
            texts.append(text)
    about, choices = [], []
    for key in roles.get("input", ()):
        read.append(key)
        about.append(_text(entry[key], key))
    if "source" in roles and "answer" in roles and snake_case(roles["answer"][0]) == "target" \
            and not (media.get("images") or media.get("audios")):
        read.append(roles["source"][0])
        about.append(_text(entry[roles["source"][0]], "source"))
    own = bool(texts or about)
    for key in roles.get("context", ()) if own else ():
        read.append(key)
        text = _text(entry[key], key)
        if _main(roles) in ("instruction", "prompt"):
            about.append(text)
        else:
            texts.insert(0, text)
    for key in roles.get("choices", ())[:1] if own else ():
        options = _options(entry[key])
        if options:
            read.append(key)
            choices = [f"{chr(65 + i)}. {option}" for i, option in enumerate(options)]
    return _joined(*texts, *about, *choices), own


def _joined(*texts: str) -> str:
    return "\n".join(filter(None, texts))


def _options(value) -> list[str]:
    """The texts of ["x", "y"], {"A": "x", "B": "y"} or {"text": ["x", "y"], ...}; [] for others."""
    if isinstance(value, dict):
        value = value["text"] if isinstance(value.get("text"), list) else list(value.values())
    if isinstance(value, list) and 1 < len(value) <= 26 and all(isinstance(v, str | int | float)
                                                                for v in value):
        return [str(v) for v in value]
    return []


def _check_not_empty(entry: dict, plan: Plan, asks: bool) -> None:
    """ValueError if a key for a medium is empty. A null beside a question says that there is none."""
    for key, value in entry.items():
        missing = not value and value != 0 and (value == "" or not asks)
        if missing and role_of(key) in ("image", "audio", "medium"):
            raise ValueError(f'its image or clip is missing: "{key}" is empty')


def _answer_key(entry: dict, roles: dict, has_media: bool, asked: str, question: str) -> str | None:
    """The key of the answer: the one that is called so, or the translation asked for, a text, or a label."""
    if "translation" in roles and ("answer" not in roles and "words" not in roles
                                   or TRANSLATE.search(asked or question)):
        return roles["translation"][0]
    if "answer" in roles:
        # the class has a name too: ESC-50
        number = "label" in roles and str(entry[roles["answer"][0]]).isdigit()
        label = entry[roles["label"][0]] if number else None
        named = isinstance(label, str) and not label.isdigit()
        return roles["label" if named and not asked else "answer"][0]
    if "label" in roles and "words" in roles and not has_media and not asked:
        return roles["label"][0]
    return roles["words"][0] if "words" in roles else roles["label"][0] if "label" in roles else None


def _answer(entry: dict, key: str, roles: dict) -> str | list[str]:
    """The answer's text, the choice that it numbers, or a list of captions."""
    value = entry[key]
    if "choices" in roles and isinstance(value, int | str) and str(value).isdigit():
        options = _options(entry[roles["choices"][0]])
        if int(value) < len(options) and str(value) not in options:
            return options[int(value)]
    if key in roles.get("words", ()) and isinstance(value, list) and len(value) > 1:
        return [_text(caption, key) for caption in value]
    return _text(value, key)


def _text(value, key: str) -> str:
    """A value as a text. Of a list of answers, the one that most people gave."""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int | float):
        return str(value)
    if isinstance(value, list) and value:
        texts = [_text(item, key) for item in value]
        return Counter(texts).most_common(1)[0][0]
    if isinstance(value, dict):
        for inner in ("answer", "text", "value", "content", "caption", "raw"):
            if value.get(inner):
                return _text(value[inner], key)
    raise ValueError(f'"{key}" is not a text')


def _lists(entry: dict, roles: dict, key: str) -> list[tuple[str, str]]:
    """The pairs of {"questions": [...], "answers": [...]}; [] if these are not two lists of one length."""
    lists = [entry[roles["question"][0]] if "question" in roles else None, entry[key]]
    if not all(isinstance(texts, list) and all(isinstance(text, str) for text in texts) for texts in lists):
        return []
    return list(zip(*lists, strict=True)) if len(lists[0]) == len(lists[1]) else []


def _history(entry: dict, roles: dict, read: list[str]) -> list:
    if "history" not in roles:
        return []
    read.append(roles["history"][0])
    history = entry[roles["history"][0]]
    if not isinstance(history, list) or not all(isinstance(t, list) and len(t) == 2 for t in history):
        raise ValueError('"history" must be a list of [question, answer]')
    return history


def prompt_and_completion(entry: dict, roles: dict) -> list[dict] | None:
    """The turns of TRL's conversational prompt and completion; None if the entry has no such lists.

    The answers in a prompt are not trained on.
    """
    if "question" not in roles or "answer" not in roles:
        return None
    prompt, answer = entry[roles["question"][0]], entry[roles["answer"][0]]
    if not isinstance(prompt, list) or not all(isinstance(turn, dict) for turn in prompt):
        return None
    if isinstance(answer, str):
        answer = [{"role": "assistant", "content": answer}]
    if not isinstance(answer, list) or not all(isinstance(turn, dict) for turn in answer):
        return None
    return [{**turn, "loss": False} if turn.get("role") == "assistant" else turn for turn in prompt] + answer
