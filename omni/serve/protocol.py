"""OpenAI's chat format: requests are checked and read, answers and errors are written.

Media come inside the request as base64. Nothing in a request is ever used as a path or an address.
"""

import base64
import binascii
import json
import math
import re
import time
from dataclasses import dataclass, field
from typing import Any

from omni.data.sample import AUDIO, IMAGE

MAX_TEXT = 100_000  # characters of all messages together
MAX_MESSAGES, MAX_MEDIA = 400, 32
MAX_MEDIUM = 12_000_000  # bytes of a picture or clip
MAX_VALUES, MAX_COMMAS = 20_000, 250_000  # objects and lists in a body, and commas: both take memory
# Keys that change nothing here, with the values that ask for nothing.
NEUTRAL = {"n": (1,), "frequency_penalty": (0,), "presence_penalty": (0,), "logprobs": (False,),
           "top_logprobs": (0,), "logit_bias": ({},), "tools": ([],), "functions": ([],),
           "tool_choice": ("none", "auto"), "response_format": ({"type": "text"},), "modalities": (["text"],)}
IGNORED = {"user", "metadata", "store", "service_tier", "parallel_tool_calls", "safety_identifier",
           "prompt_cache_key"}
READ = {"model", "messages", "stream", "stream_options", "max_tokens", "max_completion_tokens", "temperature",
        "top_p", "seed", "stop"}
STARTED = int(time.time())
_DATA_URL = re.compile(r"data:[\w.+-]+/[\w.+-]+(?:;[\w.+-]+=[\w.+-]+)*;base64,")


class ApiError(Exception):
    """A request that is refused: HTTP status, message, and what OpenAI's error objects hold besides."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None):
        super().__init__(message)
        self.status, self.param, self.code = status, param, code

    def body(self) -> dict:
        kind = "server_error" if self.status >= 500 else "invalid_request_error"
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}


@dataclass
class Medium:
    """A picture or clip of a request: its name in messages, how a `MediaReader` reads it, its bytes."""

    name: str
    method: str  # "pixels" or "mel"
    content: bytes


@dataclass
class ChatRequest:
    """A checked request. The media of `messages` are named as in `media`."""

    messages: list[dict]
    media: list[Medium] = field(default_factory=list)
    stream: bool = False
    include_usage: bool = False
    max_new_tokens: int | None = None
    temperature: float = 0.0
    top_p: float = 1.0
    seed: int = 0
    stop: list[str] = field(default_factory=list)


def parse(body: bytes, model: str) -> ChatRequest:
    """The request in a body, for the model of that name. ApiError if it can't be answered."""
    values = _json(body)
    for key, value in values.items():
        if key in NEUTRAL and (value is None or value in NEUTRAL[key]):
            continue
        if key in NEUTRAL:
            raise ApiError(400, f"'{key}' is not supported here; leave it out", key, "unsupported_parameter")
        if key not in READ | IGNORED:
            raise ApiError(400, f"unknown parameter: '{_short(key)}'", _short(key), "unknown_parameter")
    values = {key: value for key, value in values.items() if value is not None}
    if values.get("model", model) != model:
        raise ApiError(404, f"the model '{_short(values['model'])}' does not exist; it is '{model}'", "model",
                       "model_not_found")
    request = ChatRequest([])
    _read_messages(values.get("messages"), request)
    request.stream = _checked(values, "stream", bool, False)
    options = _checked(values, "stream_options", dict, {})
    request.include_usage = _checked(options, "include_usage", bool, False)
    length = "max_completion_tokens" if "max_completion_tokens" in values else "max_tokens"
    request.max_new_tokens = _checked(values, length, int, None, 1, 2 ** 31)
    request.temperature = _checked(values, "temperature", float, 0.0, 0, 2)
    if request.temperature < 0.01:  # so little is greedy, and logits divided by less may overflow
        request.temperature = 0.0
    request.top_p = max(_checked(values, "top_p", float, 1.0, 0, 1), 1e-6)
    request.seed = _checked(values, "seed", int, 0, -2 ** 63, 2 ** 63 - 1)
    stop = values.get("stop", [])
    request.stop = [stop] if isinstance(stop, str) else stop
    if not (isinstance(request.stop, list) and len(request.stop) <= 4
            and all(isinstance(text, str) and 0 < len(text) <= 200 for text in request.stop)):
        raise ApiError(400, "'stop' must be a text, or a list of at most 4", "stop")
    return request


def _json(body: bytes) -> dict:
    """The object in a body. Small values are counted first, because each takes much memory once parsed."""
    if body.count(b"{") + body.count(b"[") > MAX_VALUES or body.count(b",") > MAX_COMMAS:
        raise ApiError(400, "the body holds too many values")

    def refuse(name):
        raise ValueError(f"{name} is not JSON")

    try:
        values = json.loads(body.decode("utf-8"), parse_constant=refuse)
    except RecursionError:
        raise ApiError(400, "the body is nested too deeply") from None
    except ValueError as err:
        raise ApiError(400, f"the body is not JSON: {_short(str(err))}") from None
    if not isinstance(values, dict):
        raise ApiError(400, "the body must be a JSON object")
    return values


def _checked(values: dict, key: str, kind: type, default, low=None, high=None) -> Any:
    """The value of `key`, of type `kind` and within low..high; `default` if it is absent or null."""
    value = values.get(key)
    if value is None:
        return default
    if kind is float and type(value) is int and abs(value) < 1e9:
        value = float(value)
    within = low is None or type(value) is kind and math.isfinite(value) and low <= value <= high
    if type(value) is not kind or not within:
        names = {bool: "true or false", int: "a whole number", float: "a number", dict: "an object"}
        limits = "" if low is None else f" from {low} to {high}"
        raise ApiError(400, f"'{key}' must be {names[kind]}{limits}", key)
    return value


def _read_messages(messages, request: ChatRequest) -> None:
    """Add the messages and their media to `request`, in the form that `OmniModel.prompt` reads."""
    if not isinstance(messages, list) or not messages or len(messages) > MAX_MESSAGES:
        raise ApiError(400, f"'messages' must be a list of 1 to {MAX_MESSAGES} messages", "messages")
    left = MAX_TEXT
    for i, message in enumerate(messages):
        where = f"messages[{i}]"
        if not isinstance(message, dict):
            raise ApiError(400, f"'{where}' must be an object", where)
        role = message.get("role")
        if role not in ("system", "developer", "user", "assistant"):
            raise ApiError(400, f"'{where}.role' must be system, developer, user or assistant", where)
        odd = [key for key, value in message.items() if key not in ("role", "content", "name") and value]
        if odd:
            raise ApiError(400, f"'{where}.{_short(odd[0])}' is not supported here; leave it out", where)
        content = message.get("content")
        content = [{"type": "text", "text": content or ""}] if content is None or isinstance(content, str) \
            else content
        if not isinstance(content, list) or not 0 < len(content) <= MAX_MESSAGES:
            raise ApiError(400, f"'{where}.content' must be a text or a list of parts", f"{where}.content")
        parts = [_part(part, f"{where}.content[{j}]", request.media) for j, part in enumerate(content)]
        left -= sum(len(part["text"]) for part in parts if part["type"] == "text")
        if left < 0:
            raise ApiError(400, f"the messages hold more than {MAX_TEXT:,} characters", "messages",
                           "context_length_exceeded")
        request.messages.append({"role": role, "content": parts})
    if request.messages[-1]["role"] != "user":
        raise ApiError(400, "the last message must be the user's", "messages")


def _part(part, where: str, media: list[Medium]) -> dict:
    """A part of a message; a medium in it goes to `media`."""
    kind = part.get("type") if isinstance(part, dict) else None
    if kind == "text" and isinstance(part.get("text"), str):
        return {"type": "text", "text": _text(part["text"], where)}
    value = part.get(kind) if isinstance(kind, str) else None
    if kind == "image_url":
        url = value.get("url") if isinstance(value, dict) else value
        head = _DATA_URL.match(url) if isinstance(url, str) else None
        if head is None:
            raise ApiError(400, "a picture must be a data: URL with base64 (nothing is fetched or opened)",
                           where, "invalid_image_url")
        return _medium("image", "pixels", url[head.end():], where, media)
    if kind == "input_audio" and isinstance(value, dict) and isinstance(value.get("data"), str):
        return _medium("audio", "mel", value["data"], where, media)
    raise ApiError(400, f"'{where}' must be a part of type text, image_url or input_audio", where)


def _text(text: str, where: str) -> str:
    """A text that may go to the tokenizer: whole characters, and no mark that stands for a medium."""
    for mark in (IMAGE, AUDIO):
        if mark in text:
            raise ApiError(400, f"the text holds {mark}, which marks the place of a medium; write it "
                           "otherwise", where)
    if re.search("[\ud800-\udfff]", text):
        raise ApiError(400, "the text holds half a character (a surrogate)", where)
    return text


def _medium(kind: str, method: str, payload: str, where: str, media: list[Medium]) -> dict:
    if len(media) == MAX_MEDIA:
        raise ApiError(400, f"more than {MAX_MEDIA} pictures and clips", where)
    if len(payload) > MAX_MEDIUM * 4 // 3 + 4:
        raise ApiError(413, f"a picture or clip is larger than {MAX_MEDIUM // 1_000_000} MB", where)
    try:
        content = base64.b64decode(payload, validate=True)
    except (binascii.Error, ValueError):
        raise ApiError(400, "a picture or clip is not valid base64", where) from None
    name = f"{kind} {sum(other.method == method for other in media) + 1}"
    media.append(Medium(name, method, content))
    return {"type": kind, kind: name}


def _short(value) -> str:
    return ascii(str(value))[1:-1][:60]


class StopText:
    """Cuts a text that comes in pieces before the first of some stop texts."""

    def __init__(self, stops: list[str]):
        self.stops, self.held, self.found = stops, "", False

    def add(self, piece: str) -> str:
        """What can be sent now: not the stop text, nor an end that may become one."""
        self.held += piece
        places = [place for place in map(self.held.find, self.stops) if place >= 0]
        if places:
            self.found, out, self.held = True, self.held[:min(places)], ""
            return out
        keep = max((n for stop in self.stops for n in range(1, len(stop)) if self.held.endswith(stop[:n])),
                   default=0)
        out, self.held = self.held[:len(self.held) - keep], self.held[len(self.held) - keep:]
        return out


def chunk(head: dict, delta: dict | None, finish: str | None = None, **more) -> dict:
    """One event of a streamed answer; without `delta` it has no choice, only `more`."""
    choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": finish}
    choices = [] if delta is None else [choice]
    return {**head, "object": "chat.completion.chunk", "choices": choices, **more}


def completion(head: dict, text: str, finish: str, **more) -> dict:
    """A whole answer."""
    message = {"role": "assistant", "content": text, "refusal": None}
    choice = {"index": 0, "message": message, "logprobs": None, "finish_reason": finish}
    return {**head, "object": "chat.completion", "choices": [choice], **more}


def usage(given: dict[str, int], answered: int) -> dict:
    """Token counts; `given` are those of text, image and audio in the prompt."""
    prompt = sum(given.values())
    return {"prompt_tokens": prompt, "completion_tokens": answered, "total_tokens": prompt + answered,
            "prompt_tokens_details": {f"{kind}_tokens": count for kind, count in given.items()}}


def models(name: str) -> dict:
    return {"object": "list", "data": [model(name)]}


def model(name: str) -> dict:
    return {"id": name, "object": "model", "created": STARTED, "owned_by": "omni"}
