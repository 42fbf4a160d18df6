"""The text of each token by itself, so that the texts together are the decoded text, letter for letter."""

from __future__ import annotations

from collections.abc import Callable, Sequence

TORN = "\ufffd"
"""What a decoder writes for bytes that are no letter, or not yet."""
LONGEST = 64
"""Most tokens to wait for the rest of a letter, which no tokenizer divides into so many."""

Decode = Callable[[Sequence[int]], str]


def pieces(decode: Decode, token_ids: Sequence[int]) -> list[str]:
    """One text for each token: "".join(pieces(decode, ids)) == decode(ids), always.

    A letter that several tokens make together stands with the last of them, and the others have "". Where a decoder looks at what
    stands around a token, as one of SentencePiece does at the first of a text, each token is decoded behind the one before it.
    """
    whole = decode(token_ids)
    alone = {token: decode([token]) for token in set(token_ids)}
    single = [alone[token] for token in token_ids]
    if "".join(single) == whole:
        return single
    grown = _grown(decode, token_ids)
    return grown if "".join(grown) == whole else _cut(whole, [len(text) for text in single])


def _grown(decode: Decode, token_ids: Sequence[int]) -> list[str]:
    """What each token adds to the text of the whole letters right before it."""
    found: list[str] = []
    start = end = 0  # of the tokens before, whose text is known
    before = ""
    for place in range(1, len(token_ids) + 1):
        now = decode(token_ids[start:place])
        if now.endswith(TORN) and place - end < LONGEST and place < len(token_ids):
            found.append("")
            continue
        found.append(now[len(before) :])
        start, end = end, place
        before = decode(token_ids[start:end])
    return found


def _cut(whole: str, lengths: Sequence[int]) -> list[str]:
    """The text in pieces about as long as these; the last one has the rest. For decoders that nothing else fits."""
    found, place = [], 0
    for length in lengths:
        found.append(whole[place : place + length])
        place += length
    if found:
        found[-1] += whole[place:]
    return found
