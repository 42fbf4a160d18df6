"""The endless, shuffled, resumable draw of prompts from one or several sources."""

from __future__ import annotations

import hashlib
import json
import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from operator import itemgetter
from typing import Any

from lightrft.datasets.prompts import Asked
from lightrft.datasets.text_records import TextRecords
from lightrft.types import Prompt, Record


class PromptLoader:
    """Draws prompts: whole shuffled epochs of each source, sources mixed by weight.

    All ranks walk the same sequence of draws and each takes every size-th of them, so no prompt is drawn by two ranks
    and a step's prompts do not depend on the number of ranks. Nothing but the seed, the number of draws and the prompts that
    were left out for a while (`rest`) or are drawn less often (`prefer`) decides what comes next; there is no hidden state.
    """

    def __init__(
        self,
        sources: Sequence[tuple[Sequence[Asked], float]],
        seed: int,
        rank: int = 0,
        size: int = 1,
        *,
        open: Callable[[Any], Prompt | None] = lambda prompt: prompt,
        tokens: Callable[[Any], list[int]] = lambda prompt: prompt.token_ids,
        priority_floor: float = 1.0,
    ) -> None:
        """`open` tokenises what is drawn and reads its media (datasets.prompts.Opener); None for what cannot be used. `tokens`: of a
        prompt, whose media are not read. `priority_floor`: the least probability with which a pass draws a prompt; 1: it draws all."""
        if not sources:
            raise ValueError("there is nothing to train on. Set tasks.train, e.g. {gsm8k: 1.0}.")
        for prompts, weight in sources:
            if not prompts:
                raise ValueError("a source of the training mixture has no prompts.")
            if not weight > 0:
                raise ValueError(
                    f"tasks.train gives '{prompts[0].source}' the weight {weight}; weights must be above 0."
                )
        total = sum(weight for _, weight in sources)
        self.sources = [prompts for prompts, _ in sources]
        self.shares = [weight / total for _, weight in sources]
        self.seed, self.rank, self.size, self.open = seed, rank, size, open
        self.drawn = [0] * len(sources)
        """Places of each source gone through so far, over all ranks, those that were left out included."""
        self.given = [0] * len(sources)
        """Prompts of each source that were drawn."""
        self.resting: list[dict[int, int]] = [{} for _ in sources]
        """Source -> place of a prompt -> the last pass that leaves it out."""
        self.priority_floor = priority_floor
        self.solved: list[dict[int, tuple[int, float]]] = [{} for _ in sources]
        """Source -> place of a prompt -> the last group of its responses, and their mean reward within 0 and 1."""
        self.tokens = tokens
        self.fingerprint = [
            _fingerprint(prompts, share, tokens)
            for prompts, share in zip(self.sources, self.shares, strict=True)
        ]
        self._orders: dict[int, tuple[int, list[int]]] = {}
        self._places: dict[tuple[str, str], tuple[int, int]] | None = None

    @property
    def position(self) -> int:
        """Places gone through so far, over all ranks and sources: that of the next draw, or before it, and after all earlier ones."""
        return sum(self.drawn)

    def draw(self, n: int) -> list[Prompt]:
        """The next n prompts of this rank."""
        rounds = [[self._next() for _ in range(self.size)] for _ in range(n)]
        return [self._opened(*draws[self.rank]) for draws in rounds]

    def _opened(self, source: int, place: int) -> Prompt:
        """The question at this place or, where its media cannot be used, at the next one that can; order and state stay the same."""
        prompts = self.sources[source]
        opened = self._usable(prompts, place)
        if opened is None:
            raise ValueError(
                f"none of the {len(prompts)} prompts of '{prompts[0].source}' has media that can be used; see the log."
            )
        return opened

    def _usable(self, prompts: Sequence[Asked], place: int) -> Prompt | None:
        """The question at this place of them or the next one that can be used; None if none can."""
        tried = (self.open(prompts[(place + step) % len(prompts)]) for step in range(len(prompts)))
        return next((opened for opened in tried if opened is not None), None)

    def completed(self, prompts: Sequence[Prompt]) -> list[Prompt]:
        """Prompts that came back from a checkpoint, their targets and media as the data has them.

        A checkpoint holds plain values: a date or a decimal among the targets stands there as text, and of media the names.
        """
        found = self._found([(p.source, p.id) for p in prompts])
        known = {name: self.sources[source][place] for name, (source, place) in found.items()}
        return [filled(p, known.get((p.source, p.id))) for p in prompts]

    def rest(self, names: Iterable[tuple[str, str]], passes: int) -> None:
        """Leaves these prompts (source, id) out of `passes` passes through their source, after that in which they were last drawn; then they
        come back.

        To be called on all ranks with the same prompts, between the same draws. A prompt that is not of this data is passed over.
        """
        for source, place in self._found(list(names)).values():
            now, turn = divmod(self.drawn[source], len(self.sources[source]))
            drawn_now = place in self._order(source, now)[:turn]  # else in the pass before
            self.resting[source][place] = now + passes - (not drawn_now)

    def prefer(self, judged: Iterable[tuple[tuple[str, str], int, float]]) -> None:
        """Takes of each of these groups the prompt (source, id), the number, and the mean reward s within 0 and 1: from now on a pass draws the
        prompt with the probability 1 - s, at least `priority_floor`.

        Of several groups of a prompt the one drawn last counts, which has the highest number, in whatever order they are judged. As `rest`, to be
        called on all ranks alike.
        """
        judged = list(judged)
        places = self._found([name for name, _, _ in judged])
        for name, group, solved in judged:
            if name in places:
                source, place = places[name]
                known = self.solved[source].get(place, (group, solved))
                self.solved[source][place] = max(known, (group, solved), key=itemgetter(0))

    @property
    def mean_priority(self) -> float:
        """How likely a pass draws a prompt, the mean over all prompts."""
        lacking = sum(
            1 - self._chance(source, place) for source, places in enumerate(self.solved) for place in places
        )
        return 1 - lacking / sum(map(len, self.sources))

    def _chance(self, source: int, place: int) -> float:
        """How likely a pass draws a prompt; one that was never judged it always draws."""
        _, solved = self.solved[source].get(place, (0, 0.0))
        return max(self.priority_floor, 1 - solved)

    def _found(self, names: Sequence[tuple[str, str]]) -> dict[tuple[str, str], tuple[int, int]]:
        """The prompts of these names (source, id) that this data has, with the number of their source here and their place there."""
        if self._places is None:
            self._places = {
                (p.source, p.id): (source, place)
                for source, prompts in enumerate(self.sources)
                if not isinstance(prompts, TextRecords)
                for place, p in enumerate(prompts)
            }
        found = {name: self._places[name] for name in names if name in self._places}
        for number, prompts in enumerate(self.sources):
            if names and isinstance(prompts, TextRecords):
                places = prompts.places([id for source, id in names if source == prompts.source])
                found |= {(prompts.source, id): (number, place) for id, place in places.items()}
        return found

    @property
    def left_out(self) -> int:
        """Prompts that are left out at present."""
        passes = [done // len(prompts) for done, prompts in zip(self.drawn, self.sources, strict=True)]
        return sum(
            until >= now
            for now, places in zip(passes, self.resting, strict=True)
            for until in places.values()
        )

    def state(self) -> dict[str, Any]:
        """What `load` needs to go on exactly here; plain numbers and texts."""
        return {
            "seed": self.seed,
            "drawn": list(self.drawn),
            "given": list(self.given),
            "resting": [sorted(map(list, places.items())) for places in self.resting],
            "solved": [sorted([place, *known] for place, known in places.items()) for places in self.solved],
            "fingerprint": [dict(f) for f in self.fingerprint],
        }

    def load(self, state: dict[str, Any]) -> None:
        """Goes on where `state` was taken. ValueError naming what changed if the data or the seed differ from then."""
        if state["seed"] != self.seed:
            raise ValueError(
                f"the run was started with seed={state['seed']}, not {self.seed}: the order of the prompts would change. Set seed={state['seed']}."
            )
        if "stream" in state:
            block = state["stream"]["block"]
            raise ValueError(
                f"the run was begun with tasks.stream_block={block}, in whose order it goes on. Set tasks.stream_block={block}."
            )
        then, now = state["fingerprint"], self.fingerprint
        if [f["source"] for f in then] != [f["source"] for f in now]:
            raise ValueError(
                f"the run was trained on {_names(then)}, now tasks.train has {_names(now)}. Restore tasks.train, or start a new run."
            )
        for old, new, prompts in zip(then, now, self.sources, strict=True):
            # A run whose prompts were all tokenised at the start can go on with prompts that are not, and the other way round.
            new = {
                **{f: d(prompts, self.tokens) for f, d in DIGESTS.items() if f in old and f not in new},
                **new,
            }
            changed = [f"{key} was {old[key]}, is {new[key]}" for key in old if old[key] != new[key]]
            if changed:
                raise ValueError(
                    f"the training data of '{new['source']}' changed since the checkpoint: {'; '.join(changed)}. "
                    "Restore the data and the options of tasks and model.chat_template, or start a new run."
                )
        self.drawn = list(state["drawn"])
        self.given = list(state.get("given", self.drawn))
        resting = state.get("resting", [[] for _ in self.sources])
        self.resting = [dict(map(tuple, places)) for places in resting]
        # While all prompts are drawn nobody says how well they are solved: what is known would be of a policy of long ago.
        kept = state.get("solved", []) if self.priority_floor < 1 else []
        known = [{place: (group, solved) for place, group, solved in places} for places in kept]
        self.solved = known or [{} for _ in self.sources]

    def _next(self) -> tuple[int, int]:
        """Source and place of the next draw: the source furthest behind its share, the next place of its epoch that does not rest and whose turn it
        is by its priority."""
        total = sum(self.given) + 1
        source = max(range(len(self.shares)), key=lambda s: self.shares[s] * total - self.given[s])
        self.given[source] += 1
        resting = self.resting[source]
        while True:  # ends, as each prompt comes back after some passes, and is drawn in one of a hundred at least (config/ranges.py)
            epoch, turn = divmod(self.drawn[source], len(self.sources[source]))
            self.drawn[source] += 1
            place = self._order(source, epoch)[turn]
            if resting.get(place, -1) < epoch and self._is_due(source, epoch, place):
                resting.pop(place, None)
                return source, place

    def _is_due(self, source: int, epoch: int, place: int) -> bool:
        """Whether the pass draws a prompt of its priority; one number for each pass and prompt, whoever asks."""
        chance = self._chance(source, place)
        return chance >= 1 or random.Random(f"{self.seed}/{source}/{epoch}/{place}").random() < chance

    def _order(self, source: int, epoch: int) -> list[int]:
        if source not in self._orders or self._orders[source][0] != epoch:
            order = list(range(len(self.sources[source])))
            random.Random(f"{self.seed}/{source}/{epoch}").shuffle(order)
            self._orders[source] = (epoch, order)
        return self._orders[source][1]


def filled(prompt: Prompt, known: Asked | None) -> Prompt:
    """A prompt out of a checkpoint with what the data knows of it; as it is where the data has none of its name."""
    if known is None:
        return prompt
    if prompt.row is not None:  # its messages hold what an environment said first, which no data has
        return replace(prompt, row=known.messages, target=known.target, columns=known.columns)
    return replace(prompt, messages=known.messages, target=known.target, columns=known.columns)


def _fingerprint(
    prompts: Sequence[Asked], share: float, tokens: Callable[[Any], list[int]]
) -> dict[str, Any]:
    digest = "texts" if any(isinstance(prompt, Record) for prompt in prompts) else "contents"
    return {
        "source": prompts[0].source,
        "prompts": len(prompts),
        "share": round(share, 9),
        digest: DIGESTS[digest](prompts, tokens),
    }


def _of_tokens(prompts: Sequence[Asked], tokens: Callable[[Any], list[int]]) -> str:
    """Digest of every prompt's tokens."""
    digest = hashlib.sha256()
    for prompt in prompts:
        digest.update(
            f"{prompt.id}\0{tokens(prompt)}\0{_stable(prompt.target)}\0".encode("utf-8", "surrogatepass")
        )
    return digest.hexdigest()[:16]


def _of_texts(prompts: Sequence[Asked], tokens: Callable[[Any], list[int]]) -> str:
    """Digest of every prompt's texts, and of the tokens of some, by which another template or tokenizer is seen."""
    digest = hashlib.sha256()
    for told in prompts.told() if isinstance(prompts, TextRecords) else map(_told, prompts):
        digest.update(told)
    some = (prompts[i * len(prompts) // SOME] for i in range(min(SOME, len(prompts))))
    digest.update(str([tokens(prompt) for prompt in some]).encode())
    return digest.hexdigest()[:16]


def _told(prompt: Asked) -> bytes:
    """What a digest of texts is made of; TextRecords.told gives the same, many at a time."""
    target = prompt.target if type(prompt.target) is str else [_stable(prompt.target)]
    said = "\0".join(f"{m['role']}\0{_said(m['content'])}" for m in prompt.messages)
    return f"{prompt.id}\0{said}\0{target}\0".encode("utf-8", "surrogatepass")


def _said(content: Any) -> str:
    """The text of a message, and the kinds of its media: where they lie may change."""
    if isinstance(content, str):
        return content
    return "\0".join(part["text"] if part["type"] == "text" else f"<{part['type']}>" for part in content)


SOME = 64
DIGESTS = {"contents": _of_tokens, "texts": _of_texts}
"""What a fingerprint holds of prompts that are tokenised, and of records that are not yet."""


def _stable(target: Any) -> str:
    """Text of a target that is the same in every process; objects without a fixed text count by their type."""
    try:
        return json.dumps(target, sort_keys=True, default=_text)
    except TypeError:  # keys of several kinds have no order, and some kinds are no JSON
        return _text(target)


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return str(sorted((repr(key), _stable(entry)) for key, entry in value.items()))
    if isinstance(value, set | frozenset):
        return str(sorted(map(str, value)))
    text = repr(value)
    return type(value).__name__ if " at 0x" in text else text


def _names(fingerprint: Sequence[dict[str, Any]]) -> str:
    return ", ".join(str(f["source"]) for f in fingerprint)
