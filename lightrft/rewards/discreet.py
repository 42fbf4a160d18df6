"""Why a reward failed, without the words of the response: what a server may log of its clients."""

from __future__ import annotations

import re

FRAME = re.compile(r"^  File .*", re.MULTILINE)
TYPE = re.compile(r"^([\w.]+)(?::.*)?$", re.MULTILINE)
"""The line of a traceback that names an exception; what follows the colon may quote what was judged."""
QUOTE = re.compile("['\"`\u00bb]")
MOST = 200


def without_words(reason: str) -> str:
    """The places of a traceback and the kind of its exception; of a sentence, what stands before its first quotation, at most MOST
    characters."""
    if not reason.startswith("Traceback"):
        return QUOTE.split(reason, maxsplit=1)[0][:MOST].strip()
    frames = list(FRAME.finditer(reason))
    kind = TYPE.search(reason, frames[-1].end() if frames else 0)
    return "\n".join([*(frame[0] for frame in frames), kind[1] if kind else "an exception"])
