"""Chat templates: how a conversation becomes one text with special tokens, for our own and for open weights.

Open weights come with a Jinja template. It is never executed: its family is recognised by the special tokens
in it, and `ChatTemplate` writes the same text as the template would.
"""

import re
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from typing import NamedTuple

ROLES = ("system", "user", "assistant")
_SPECIAL = re.compile(r"<\|[a-z_]+\|>")
_KNOWLEDGE = re.compile(r"Cutting Knowledge Date: [\w ]+")  # Llama 3.1 and later
_DATE = "Today Date: 26 Jul 2024"  # their default; with today's date no answer would be repeatable


@dataclass(frozen=True)
class Family:
    """A turn is `opening given content end after`; `given` and `after` are plain text around the content."""

    opening: str  # special tokens, and the role in or between them
    given: str
    end: str  # the special token that ends a turn
    after: str = ""
    first: str = ""  # the special token before all turns
    strips: bool = False  # whether white space around the content is stripped

    def specials(self) -> list[str]:
        """Each special token once, first the one that opens the assistant's turn."""
        found = [token for role in ("assistant", "user", "system")
                 for token in _SPECIAL.findall(self.opening.format(role=role))]
        return list(dict.fromkeys(found + [self.end] + [self.first] * bool(self.first)))


FAMILIES = {
    "own": Family("<|{role}|>", "", "<|end|>"),
    "chatml": Family("<|im_start|>", "{role}\n", "<|im_end|>", after="\n"),
    "llama3": Family("<|start_header_id|>{role}<|end_header_id|>", "\n\n", "<|eot_id|>",
                     first="<|begin_of_text|>", strips=True),
}


class Turn(NamedTuple):
    index: int | None  # of the message; None for a system turn that the template adds
    role: str
    given: str  # text before the content; a prompt ends with it, so it is never trained on
    content: str


@dataclass(frozen=True)
class ChatTemplate:
    """One of FAMILIES with its variants.

    `jinja` is a template that `transformers` renders to the same text: for Qwen3 with enable_thinking=False,
    for Llama 3.1 and later with date_string="26 Jul 2024".
    """

    family: str
    jinja: str
    default_system: str | None = None  # the system turn of a conversation without one; None: no such turn
    preamble: str = ""  # stands before the content of the first system turn
    thinks: bool = False  # Qwen3: an empty block of thoughts stands before the answers to the last question

    @classmethod
    def plain(cls, family: str) -> "ChatTemplate":
        """A family without variants."""
        form = FAMILIES[family]
        opening = form.opening + form.given
        content = "message['content'] | trim" if form.strips else "message['content']"
        turn = opening.format(role="{{ message['role'] }}") + f"{{{{ {content} }}}}{form.end}{form.after}"
        return cls(family, f"{form.first}{{% for message in messages %}}{turn}{{% endfor %}}"
                           f"{{% if add_generation_prompt %}}{opening.format(role='assistant')}{{% endif %}}")

    @classmethod
    def recognise(cls, tokenizer_config: dict, jinja: str | None,
                  has_token: Callable[[str], bool]) -> "ChatTemplate":
        """The template of a folder: `jinja` (chat_template.jinja), else `chat_template` of its config.

        Without either, as in base models, the plain family of the vocabulary's special tokens. ValueError if
        it is not supported.
        """
        text = _published(tokenizer_config) if jinja is None else jinja
        if text is None:
            for family, form in FAMILIES.items():
                if all(map(has_token, form.specials())):
                    return cls.plain(family)
            raise ValueError("no chat_template, and no special tokens of one (<|im_start|>, "
                             "<|start_header_id|>): an instruct model has them")
        if text == OWN.jinja:
            return OWN
        if "<|im_start|>" in text and "<|im_end|>" in text:
            return cls._chatml(text)
        if all(token in text for token in ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")):
            return cls._llama3(text)
        raise ValueError("chat_template is neither ChatML (<|im_start|>) nor Llama 3's (<|start_header_id|>)")

    @classmethod
    def _chatml(cls, text: str) -> "ChatTemplate":
        for word in ("bos_token", "trim"):
            if re.search(rf"\b{word}\b", text):
                raise ValueError(f"chat_template is ChatML with {word}, which is not supported")
        thinks = "enable_thinking" in text and "last_query_index" in text  # as Qwen3 has it
        if "<think>" in text and not thinks:
            raise ValueError("chat_template has <think>, but not as in Qwen3, which is not supported")
        return cls("chatml", text, _default_system("chatml", text), thinks=thinks)

    @classmethod
    def _llama3(cls, text: str) -> "ChatTemplate":
        if "<think>" in text:
            raise ValueError("chat_template has <think>, which is supported for Qwen3 only")
        default, knowledge = _default_system("llama3", text), _KNOWLEDGE.search(text)
        if knowledge:
            return cls("llama3", text, default or "", preamble=f"{knowledge[0]}\n{_DATE}\n\n")
        return cls("llama3", text, default)

    @property
    def form(self) -> Family:
        return FAMILIES[self.family]

    def given(self, role: str) -> str:
        return self.form.given.format(role=role)

    @property
    def prompt(self) -> str:
        """The text between the special tokens that open the assistant's turn and its answer."""
        return self.given("assistant") + self._thoughts("") * self.thinks

    def turns(self, messages: Sequence[tuple[str, str]]) -> list[Turn]:
        """The turns of a conversation, with the system turn that the template adds."""
        turns, last_question = [], self._last_question(messages) if self.thinks else None
        if self.default_system is not None and (not messages or messages[0][0] != "system"):
            turns.append(Turn(None, "system", self.given("system"), self.preamble + self.default_system))
        for index, (role, content) in enumerate(messages):
            given = self.given(role)
            if self.form.strips:
                content = content.strip()
            if index == 0 and role == "system":
                content = self.preamble + content
            if self.thinks and role == "assistant":
                thoughts, content = _split_thoughts(content)
                if index > last_question and (thoughts or index == len(messages) - 1):
                    content = content.lstrip("\n")
                    if thoughts:
                        content = self._thoughts(thoughts) + content
                    else:
                        given += self._thoughts("")
            turns.append(Turn(index, role, given, content))
        return turns

    @staticmethod
    def _thoughts(thoughts: str) -> str:
        return f"<think>\n{thoughts}\n</think>\n\n"

    @staticmethod
    def _last_question(messages) -> int:
        """Index of the last user turn that isn't the result of a tool."""
        return max((i for i, (role, text) in enumerate(messages) if role == "user" and not
                    (text.startswith("<tool_response>") and text.endswith("</tool_response>"))),
                   default=len(messages) - 1)

    def to_dict(self) -> dict:
        return asdict(self)

    @classmethod
    def from_dict(cls, content: dict) -> "ChatTemplate":
        """The opposite of `to_dict`. ValueError if the content is not from there."""
        kinds = {field.name: field.type for field in fields(cls)}
        if not isinstance(content, dict) or content.keys() != kinds.keys():
            raise ValueError(f"a chat template needs {', '.join(kinds)}")
        wrong = [key for key, kind in kinds.items() if not isinstance(content[key], kind)]
        if wrong or content["family"] not in FAMILIES:
            raise ValueError(f"chat template: {wrong[0] if wrong else 'family'} can't be used")
        return cls(**content)


OWN = ChatTemplate.plain("own")


def _published(tokenizer_config: dict) -> str | None:
    """`chat_template` of a tokenizer_config.json: a text, or a list of named ones as older files have it."""
    text = tokenizer_config.get("chat_template")
    if isinstance(text, list):
        text = next((entry.get("template", 0) for entry in text
                     if isinstance(entry, dict) and entry.get("name") == "default"), 0)
    if not (text is None or isinstance(text, str)):
        raise ValueError("chat_template must be a text, or a list of texts with one named default")
    return text


def _default_system(family: str, jinja: str) -> str | None:
    """The content of the system turn that a template holds as one quoted text; None if it has none."""
    form = FAMILIES[family]
    opening = re.escape((form.opening + form.given).format(role="system")).replace("\\\n", r"(?:\n|\\n)")
    found = re.search(rf"""(['"]){opening}((?:\\.|(?!\1)[^\\])*?){re.escape(form.end)}""", jinja, re.S)
    if not found:
        return None
    return found[2].encode("ascii", "backslashreplace").decode("unicode_escape")  # as Jinja reads a text


def _split_thoughts(content: str) -> tuple[str, str]:
    """"<think>a</think>b" -> ("a", "b"), as Qwen3's template does it."""
    if "</think>" not in content:
        return "", content
    pieces = content.split("</think>")
    return pieces[0].rstrip("\n").split("<think>")[-1].strip("\n"), pieces[-1].lstrip("\n")
