"""Responses of denoising steps in parts that fit a micro-batch; put together again afterwards."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lightrft.types import Trajectory

Columns = dict[str, Tensor]


@dataclass(frozen=True)
class Part:
    """A part of a response, to be computed like a response."""

    piece: Trajectory
    share: Callable[[Tensor], Tensor]
    """A column of the response (L,) -> that of the part."""


@dataclass(frozen=True)
class Divided:
    """Responses, and the parts that each is computed in: itself where it fits, or cannot be divided."""

    responses: Sequence[Trajectory]
    parts: Sequence[Sequence[Part]]

    @classmethod
    def none(cls, responses: Sequence[Trajectory]) -> Divided:
        """Each whole."""
        return cls(responses, [[_itself(t)] for t in responses])

    @property
    def pieces(self) -> list[Trajectory]:
        """All parts, end to end, those of a response together."""
        return [part.piece for parts in self.parts for part in parts]

    def shares(self, column: Tensor) -> dict[int, Tensor]:
        """id of a part -> what it has of a column (T,) over all responses."""
        columns = column.split([len(t) for t in self.responses])
        return {
            id(part.piece): part.share(own)
            for own, parts in zip(columns, self.parts, strict=True)
            for part in parts
        }

    def join(self) -> None:
        """Gives each response the columns that its parts were given."""
        for t, parts in zip(self.responses, self.parts, strict=True):
            if parts[0].piece is t:
                continue
            pieces = [part.piece for part in parts]
            joined = _added if _together(t) else _in_a_row
            t.columns, t.learned = (
                joined([getattr(p, kind) for p in pieces], pieces) for kind in ("columns", "learned")
            )
            means = [p.reference for p in pieces if p.reference is not None]
            t.reference = torch.cat(means) if len(means) == len(pieces) else None


def divide(responses: Sequence[Trajectory], most: int) -> Divided:
    """Responses in parts that read at most `most` positions, or one step where that reads more.

    Only what reads its prompt with each step (Prompt.width) is divided: the tokens of a text read those before them. A part of a picture
    is some of its steps. A part of an unmasked text is the whole of it, of which only the tokens of some steps are learned from: each of
    them is read with others.
    """
    return Divided(responses, [_parts(t, most) for t in responses])


def _together(t: Trajectory) -> bool:
    """Whether the entries of a response are read with each other, and not each from a state of its own."""
    return t.states is not None and t.states.dim() == 2


def _parts(t: Trajectory, most: int) -> list[Part]:
    width = t.prompt.width
    if not width or len(t) * width <= most:
        return [_itself(t)]
    if _together(t):
        return _step_by_step(t, most)
    size = max(1, most // width)
    return [_slice(t, slice(start, start + size)) for start in range(0, len(t), size)]


def _itself(t: Trajectory) -> Part:
    return Part(t, lambda column: column)


def _slice(t: Trajectory, where: slice) -> Part:
    """These entries of a response, in tensors that share its memory."""
    piece = replace(
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
    return Part(piece, lambda column: column[where])


def _step_by_step(t: Trajectory, most: int) -> list[Part]:
    """Parts of equally many steps that learn, as few as the budget allows."""
    assert t.states is not None
    learned = torch.tensor(t.mask)
    steps = t.states[:, 0][learned].unique()
    if len(steps) < 2:
        return [_itself(t)]
    count = min(len(steps), -(-len(t) * t.prompt.width // most))
    return [_masked(t, learned & torch.isin(t.states[:, 0], some)) for some in steps.tensor_split(count)]


def _masked(t: Trajectory, where: Tensor) -> Part:
    """The response, of which only the entries `where` (L,) are learned from; all that is known of the others is 0."""

    def share(column: Tensor) -> Tensor:
        return torch.where(where, column, 0.0)

    chosen = where.tolist()
    piece = replace(
        t,
        mask=chosen,
        behavior=[x if here else 0.0 for x, here in zip(t.behavior, chosen, strict=True)],
        columns={name: share(column) for name, column in t.columns.items()},
        learned={},
    )
    return Part(piece, share)


def _in_a_row(columns: Sequence[Columns], pieces: Sequence[Trajectory]) -> Columns:  # noqa: ARG001  # as _added has it
    return {name: torch.cat([one[name] for one in columns]) for name in columns[0]}


def _added(columns: Sequence[Columns], pieces: Sequence[Trajectory]) -> Columns:
    """Each entry as the part says that learns from it; 0 where none does."""
    masks = [torch.tensor(piece.mask) for piece in pieces]
    return {
        name: torch.stack(
            [torch.where(m, one[name], 0.0) for m, one in zip(masks, columns, strict=True)]
        ).sum(0)
        for name in columns[0]
    }
