"""Prompts of rows that are never all in memory: read some at a time, shuffled among themselves, gone on with exactly."""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

from lightrft.datasets.loader import DIGESTS, PromptLoader, filled
from lightrft.datasets.prompts import Asked
from lightrft.datasets.sources import Located
from lightrft.types import Prompt

Rows = Callable[[int], Iterator[Located]]
"""Number of rows to pass over -> the rows behind them, in the order that the data has."""
Made = Callable[[list[Located]], Sequence[Asked]]
"""Rows -> the prompts that are kept of them."""


class StreamLoader(PromptLoader):
    """Draws the prompts of one source block by block.

    A block is `size_of_block` rows that stand together in the data; its prompts are shuffled, then comes the next block, and behind the
    last one the data again from its first row, with other orders. The seed and the row at which a block begins decide what it gives, so
    a checkpoint holds two numbers and a digest. All ranks walk the same sequence and take turns, as in PromptLoader.
    """

    def __init__(
        self,
        name: str,
        rows: Rows,
        made: Made,
        size_of_block: int,
        seed: int,
        rank: int = 0,
        size: int = 1,
        *,
        open: Callable[[Any], Prompt | None] = lambda prompt: prompt,
        tokens: Callable[[Any], list[int]] = lambda prompt: prompt.token_ids,
    ) -> None:
        """The first block is read now. `name`: of the source; `open`, `tokens`: as in PromptLoader. ValueError for data without a prompt."""
        self.name, self.rows, self.made, self.size_of_block = name, rows, made, size_of_block
        self.seed, self.rank, self.size, self.open, self.tokens = seed, rank, size, open, tokens
        self.shares, self.drawn = [1.0], [0]
        self._go_to(0, 0)
        self._read_on()

    def _go_to(self, epoch: int, row: int) -> None:
        """To the block that begins with this row, in this pass through the data."""
        self.epoch, self.row, self._behind = epoch, row, row
        self._stream = self.rows(row)
        self._gave_any = row > 0
        """Whether this pass has given a prompt, or may have."""

    def _read_on(self) -> None:
        """The next block that has prompts, in its order; of the next pass where this one is through."""
        while True:
            block = list(islice(self._stream, self.size_of_block))
            if not block:
                if not self._gave_any:
                    raise ValueError(
                        f"'{self.name}' has no row of which a prompt could be made; see the log for those skipped."
                    )
                self._go_to(self.epoch + 1, 0)
                continue
            self.row, self._behind = self._behind, self._behind + len(block)
            prompts = self.made(block)
            if prompts:
                break
        self._gave_any = True
        self.sources = [prompts]
        self.taken = 0
        """Prompts of the block gone through."""
        self._spare: Sequence[Asked] | None = None
        """Prompts of another block, for one of which none can be used."""
        self._digest: str | None = None
        self.order = list(range(len(prompts)))
        random.Random(f"{self.seed}/{self.epoch}/{self.row}").shuffle(self.order)

    @property
    def digest(self) -> str:
        """What tells the prompts of the present block from others."""
        if self._digest is None:
            self._digest = DIGESTS["texts"](self.sources[0], self.tokens)
        return self._digest

    def draw(self, n: int) -> list[Prompt]:
        """The next n prompts of this rank."""
        found = []
        for turn in range(n * self.size):
            place = self._place()
            if turn % self.size == self.rank:
                found.append(self._opened(0, place))
        return found

    def _place(self) -> int:
        """Place in the present block of the next draw."""
        if self.taken == len(self.order):
            self._read_on()
        self.taken += 1
        self.drawn[0] += 1
        return self.order[self.taken - 1]

    def _opened(self, source: int, place: int) -> Prompt:
        """The question at this place of the block or, where its media cannot be used, the next one that can, of a later block where this
        one has none; order and state stay the same, so that ranks that draw others need not know."""
        opened = self._usable(self.sources[source], place)
        if opened is not None:
            return opened
        if self._spare is None:
            self._spare = self._later(place)
        opened = self._usable(self._spare, place) if self._spare else None
        if opened is None:
            raise ValueError(f"no prompt of '{self.name}' has media that can be used; see the log.")
        return opened

    def _later(self, place: int) -> Sequence[Asked]:
        """The first prompts behind this block that can be used, then those before it; none if there are none."""
        for rows in (self.rows(self._behind), islice(self.rows(0), self.row)):
            while block := list(islice(rows, self.size_of_block)):
                prompts = self.made(block)
                if prompts and self._usable(prompts, place) is not None:
                    return prompts
        return []

    def completed(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Prompts that came back from a checkpoint, their targets and media as the data has them; rows that are not of the
        present block are looked for in all of the data, in one pass."""
        known = {p.id: p for p in self.sources[0]}
        begins = f"{self.name}/"
        wanted = {p.id.removeprefix(begins) for p in prompts if p.id.startswith(begins) and p.id not in known}
        found = []
        for located in self.rows(0) if wanted else ():
            if located[0] in wanted:
                found.append(located)
                wanted.remove(located[0])
                if not wanted:
                    break
        known |= {p.id: p for p in (self.made(found) if found else ())}
        return [filled(p, known.get(p.id)) for p in prompts]

    def rest(self, names: Iterable[tuple[str, str]], passes: int) -> None:  # noqa: ARG002  # as PromptLoader has it
        """ValueError: nobody knows the places of prompts that are gone."""
        raise ValueError(
            "rollout.rest_passes with tasks.stream_block: prompts that are streamed cannot rest. Set one of them to 0."
        )

    @property
    def left_out(self) -> int:
        """No prompt is left out."""
        return 0

    def state(self) -> dict[str, Any]:
        """What `load` needs to go on exactly here; plain numbers and texts."""
        return {
            "seed": self.seed,
            "drawn": list(self.drawn),
            "stream": {
                "source": self.name,
                "block": self.size_of_block,
                "epoch": self.epoch,
                "row": self.row,
                "taken": self.taken,
                "prompts": len(self.order),
                "texts": self.digest,
            },
        }

    def load(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken. ValueError naming what changed if seed, block or its rows differ from then."""
        if state["seed"] != self.seed:
            raise ValueError(
                f"the run was started with seed={state['seed']}, not {self.seed}: the order of the prompts would change. Set seed={state['seed']}."
            )
        then = state.get("stream")
        if then is None:
            raise ValueError(
                f"tasks.stream_block={self.size_of_block}: the run was begun with all rows in memory, in whose order it goes on. Set "
                "tasks.stream_block=0."
            )
        if (then["source"], then["block"]) != (self.name, self.size_of_block):
            raise ValueError(
                f"the run was trained on '{then['source']}' with tasks.stream_block={then['block']}, now it is '{self.name}' with "
                f"{self.size_of_block}: the order of the prompts would change. Restore both, or start a new run."
            )
        self._go_to(then["epoch"], then["row"])
        self._read_on()
        now = self.state()["stream"]
        changed = [
            f"{key} was {then[key]}, is {now[key]}"
            for key in ("row", "prompts", "texts")
            if then[key] != now[key]
        ]
        if changed:
            raise ValueError(
                f"the training data of '{self.name}' changed since the checkpoint, in its rows from {then['row']} on: {'; '.join(changed)}. "
                "Restore the data and the options of tasks and model.chat_template, or start a new run."
            )
        self.taken, self.drawn = then["taken"], list(state["drawn"])
