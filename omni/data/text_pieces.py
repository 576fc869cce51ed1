"""Cuts a plain text that is longer than a sample may be into pieces that together are the whole text."""

from omni.data.tokenizer import Tokenizer

LEAST = 8  # tokens of a piece: with less room than that a text is not cut


def pieces(text: str, tokenizer: Tokenizer, room: int) -> list[str]:
    """The text in pieces of at most `room` tokens.

    They begin at a word where there is one, and with the space before it, so that their tokens are those of
    the text.
    """
    starts = [start for start, _ in tokenizer.bpe.encode(text, add_special_tokens=False).offsets]
    found, begin, first = [], 0, 0  # a character, and the token that begins there
    while len(starts) - first > room or len(tokenizer.encode(text[begin:])) > room:
        take = min(room, len(starts) - first - 1)
        while take > 0:
            last = _cut(text, starts, first, take)
            end = _with_space(text, starts[last])
            excess = len(tokenizer.encode(text[begin:end])) - room
            if excess <= 0 and end > begin:
                break
            take -= max(1, excess)  # alone it has more tokens than it had in the text
        else:
            break  # a character of more tokens than there is room for
        found.append(text[begin:end])
        begin, first = end, last
    return [*found, text[begin:]]


def _cut(text: str, starts: list[int], first: int, take: int) -> int:
    """The token before which to cut: where a word begins in the last half of the next `take`, if one does."""
    limit = first + take
    for token in range(limit, first + take // 2, -1):
        start = starts[token]
        if start > starts[token - 1] and (text[start].isspace() or text[start - 1].isspace()):
            return token
    while limit > first + 1 and starts[limit] == starts[limit - 1]:  # within a character
        limit -= 1
    return limit


def _with_space(text: str, start: int) -> int:
    """`start`, or the space before it, which the offsets of some tokenizers exclude from a word."""
    return start - (text[start - 1] == " " and not text[start].isspace())
