"""JSON as people write it, with comments and trailing commas; and the error for what the user gave."""

import json
import re


class UserError(Exception):
    """Something the user gave can't be used: one line on what, where, what to do. Ends in exit code 2."""

    def __init__(self, message: str):
        super().__init__(" ".join(message.splitlines()))


def parse_json(text: str, where: str):
    """JSON with `//`, `/* */` and trailing commas; duplicate keys and NaN hide mistakes: errors."""
    token = re.compile(r'"(?:\\.|[^"\\\n])*"|//[^\n]*|/\*.*?\*/', re.S)
    # Comments become blanks of their own length, so that the line and column of an error stay true.
    text = text.removeprefix("\ufeff")
    blank = token.sub(lambda m: m[0] if m[0][0] == '"' else re.sub(r"[^\n]", " ", m[0]), text)
    comma = re.compile(r'"(?:\\.|[^"\\\n])*"|,(?=\s*[}\]])', re.S)
    plain = comma.sub(lambda m: m[0] if m[0][0] == '"' else " ", blank)

    def unique(pairs):
        names = [name for name, _ in pairs]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None:
            raise UserError(f'{where}: the key "{twice}" stands twice; keep one of them')
        return dict(pairs)

    def not_a_number(name):
        raise UserError(f"{where}: {name} is not a number that can be used; give a finite one")

    try:
        return json.loads(plain, object_pairs_hook=unique, parse_constant=not_a_number)
    except json.JSONDecodeError as err:
        raise UserError(f"{where}, line {err.lineno}, column {err.colno}: not JSON ({err.msg})") from None
    except RecursionError:
        raise UserError(f"{where}: nested too deeply") from None
    except ValueError as err:  # a whole number of thousands of digits
        raise UserError(f"{where}: {err}") from None
