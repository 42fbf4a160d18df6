"""Responses whose entries are read one by one, as denoising steps are, in parts that fit a micro-batch; put together again afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

import torch

from lightrft.types import Trajectory


@dataclass(frozen=True)
class Divided:
    """Responses, and the parts that each is computed in: itself where it fits, or cannot be divided."""

    responses: Sequence[Trajectory]
    parts: Sequence[Sequence[Trajectory]]

    @property
    def pieces(self) -> list[Trajectory]:
        """All parts, end to end, with the entries of the responses in their order."""
        return [piece for parts in self.parts for piece in parts]

    def join(self) -> None:
        """Gives each response the columns that its parts were given."""
        for t, parts in zip(self.responses, self.parts, strict=True):
            if parts[0] is t:
                continue
            t.columns = {name: torch.cat([p.columns[name] for p in parts]) for name in parts[0].columns}
            t.learned = {name: torch.cat([p.learned[name] for p in parts]) for name in parts[0].learned}
            means = [p.reference for p in parts if p.reference is not None]
            t.reference = torch.cat(means) if len(means) == len(parts) else None


def divide(responses: Sequence[Trajectory], most: int) -> Divided:
    """Responses in parts that read at most `most` positions, or one entry where that reads more.

    Only what reads its prompt with each entry (Prompt.width) is divided: the tokens of a text read those before them.
    """
    return Divided(responses, [_parts(t, most) for t in responses])


def _parts(t: Trajectory, most: int) -> list[Trajectory]:
    width = t.prompt.width
    if not width or len(t) * width <= most:
        return [t]
    size = max(1, most // width)
    return [_part(t, slice(start, start + size)) for start in range(0, len(t), size)]


def _part(t: Trajectory, where: slice) -> Trajectory:
    """These entries of a response, in tensors that share its memory."""
    return replace(
        t,
        token_ids=t.token_ids[where],
        mask=t.mask[where],
        behavior=t.behavior[where],
        columns={name: column[where] for name, column in t.columns.items()},
        learned={},
        states=None if t.states is None else t.states[where],
        reference=None if t.reference is None else t.reference[where],
        made={},
    )
