"""Conversations: lists of turns with a role and a content, or of questions with their answers."""

from functools import lru_cache

from omni.data.keys import role_of, snake_case
from omni.data.media_values import media_path, media_paths
from omni.data.sample import AUDIO, IMAGE

ROLES = {"system": "system", "developer": "system", "user": "user", "human": "user", "prompter": "user",
         "assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant",
         "bard": "assistant", "model": "assistant", "ai": "assistant"}
PLAIN_KEYS, PLAIN = {"role", "content"}, ("role", "content", (), ())  # what _turn_keys says of most turns
ROLE_KEYS, CONTENT_KEYS = ("role", "from", "speaker", "author"), ("content", "value", "text", "message")
# Keys of a turn that say whether it is trained on.
FLAGS = {"loss", "weight", "loss_weight", "train", "trainable", "training", "trained", "learn", "is_trained",
         "compute_loss", "calculate_loss"}
PAIRS = (("human", "assistant"), ("user", "assistant"), ("question", "answer"), ("query", "response"),
         ("instruction", "output"), ("prompt", "response"), ("prompt", "completion"), ("q", "a"))
_NO, _YES = (0, "0", "false", "False", "no"), (1, "1", "true", "True", "yes")


def pairs(questions_and_answers, system=None) -> list[tuple[str, str]]:
    """The messages of (question, answer) pairs."""
    messages = [("system", system)] if system else []
    for question, answer in questions_and_answers:
        messages += [("user", question), ("assistant", answer)]
    return messages


def convert(turns: list[dict], media: dict, converter, system=None) -> dict:
    """A conversation's `messages`, `untrained`, `images` and `audios`. ValueError if it can't be used.

    A content is a text, or a list of typed parts that may hold media themselves.
    `converter` is the Converter of their source.
    """
    first = turns[0]
    for question, answer in PAIRS if "role" not in first and "from" not in first else ():
        if question in first and answer in first:
            if not all(question in turn and answer in turn for turn in turns):
                raise ValueError(f'a turn without "{question}" or "{answer}"')
            for turn in turns:
                _account(turn, converter, {question, answer})
            return {"messages": pairs([(turn[question], turn[answer]) for turn in turns], system),
                    "untrained": [], **media}
    found: dict[str, list] = {}
    messages: list[tuple[str, str]] = [("system", system)] if system else []
    untrained: list[int] = []
    for turn in turns:
        role_key, content_key, flags, own_media = \
            PLAIN if turn.keys() == PLAIN_KEYS else _turn_keys(tuple(turn))
        role = turn.get(role_key)
        role = ROLES.get(role) or ROLES.get(role.strip().lower()) if isinstance(role, str) else None
        if role is None or "tool_calls" in turn and turn["tool_calls"]:
            given = str(turn.get(role_key))[:20]
            raise ValueError(f'role "{given}" can\'t be used (system, user, assistant)')
        content = turn.get(content_key)
        if not isinstance(content, str):
            content = str(content) if isinstance(content, int | float) else \
                _join_parts(content, found, converter.find_base64)
        if len(turn) > 2:
            content = _with_own_media(turn, own_media, content, found, converter.find_base64)
            _account(turn, converter, {role_key, content_key, *flags, *own_media})
        trained = not flags or all([_trained(turn[key], key) for key in flags if turn[key] is not None])
        if role == "user" and messages and messages[-1][0] == "user":  # OpenAI's guide has two in a row
            messages[-1] = role, messages[-1][1] + "\n" + content
            continue
        if not trained and role == "assistant":
            untrained.append(len(messages))
        messages.append((role, content))
    for key, paths in found.items():
        if media.get(key):
            raise ValueError("media both in the messages and beside them")
        media = {**media, key: paths}
    return {"messages": messages, "untrained": untrained, **media}


@lru_cache(maxsize=1024)
def _turn_keys(keys: tuple) -> tuple[str, str, tuple[str, ...], tuple[str, ...]]:
    """(the key of the role, that of the content, the flags, the keys of media) of a turn."""
    role = next((key for key in ROLE_KEYS if key in keys), "role")
    content = next((key for key in CONTENT_KEYS if key in keys), "content")
    rest = [key for key in keys if key not in (role, content)]
    flags = tuple(key for key in rest if snake_case(key) in FLAGS)
    return role, content, flags, tuple(key for key in rest if key not in flags
                                       and role_of(key) in ("image", "audio"))


def _account(turn: dict, converter, read: set[str]) -> None:
    for key, value in turn.items():
        if key not in read and value and role_of(key) not in ("nothing", "source"):
            converter.columns.unread[f"{key} (of a turn)"] += 1


def _with_own_media(turn: dict, keys: tuple[str, ...], content: str, found: dict, find_base64) -> str:
    """The content of a turn that names its media itself: before its words, if it has no placeholders."""
    for key in keys:
        if turn[key]:
            kind = role_of(key)
            paths = media_paths(turn[key], kind, find_base64)
            found.setdefault(f"{kind}s", []).extend(paths)
            if f"<{kind}>" not in content:
                content = f"<{kind}>" * len(paths) + content
    return content


def _trained(value, key: str) -> bool:
    """Whether a message is trained on: ms-swift's `loss` (true, false) or OpenAI's `weight` (1, 0)."""
    if value in _NO:
        return False
    if value in _YES:
        return True
    raise ValueError(f'"{key}" is {str(value)[:20]}: "loss" must be true or false, "weight" 1 or 0')


def _join_parts(content, found: dict[str, list], find_base64) -> str:
    """A message's typed parts as one text with placeholders. Media in the parts are added to `found`."""
    content = [content] if isinstance(content, dict) else content
    if not isinstance(content, list) or not all(isinstance(part, dict) for part in content):
        raise ValueError("a message needs a text as content, or a list of typed parts")
    texts = []
    for part in content:
        kind = part.get("type") or next((key for key in part if role_of(key) in ("image", "audio")), "text")
        text = part.get("text", part.get("value", part.get("content")))
        if kind in ("text", "input_text", "output_text") and isinstance(text, str):
            texts.append(text)
            continue
        role = role_of(kind) if isinstance(kind, str) else ""
        if role not in ("image", "audio"):
            raise ValueError(f'a part of type "{str(kind)[:20]}" (text, image, audio, image_url, audio_url, '
                             "input_audio are read)")
        texts.append(IMAGE if role == "image" else AUDIO)
        keys = sorted((key for key in part if key != "type" and part[key] and
                       (role_of(key) in (role, "medium") or key in ("url", "value", "source", "data"))),
                      key=lambda key: (key != kind, key != role))
        if keys:  # otherwise the entry's own list has the path
            path = media_path(part if keys[0] == "data" else part[keys[0]], role, find_base64)
            found.setdefault(f"{role}s", []).extend([] if path is None else [path])
    return "".join(texts)
