"""What a masked diffusion language model reads of responses: canvases, rows of a prompt and a response with some tokens masked.

The log-prob of a token has three meanings, a row of LIKELIHOODS each:

* path: log p(token | the state that its denoising step began with). With an order of revealing that depends on states alone, their sum is
  the log-probability of what the sampler did, up to what no weight changes (LLaDA, Nie et al. 2025, https://arxiv.org/abs/2502.09992,
  samples so; the sum over steps is that of TraceRL, Wang et al. 2025, https://arxiv.org/abs/2509.06949).
* mean_field: log p(token | prompt, all of the response masked), the prompt masked in part at random: diffu-GRPO of d1, Zhao et al. 2025,
  https://arxiv.org/abs/2504.12216, section 3.1.
* elbo: the mean over draws of L / k log p(token | k of the L tokens masked) where the token is masked, else 0; summed over tokens it
  estimates the bound of LLaDA's eq. 6 without bias, which LLaDA 1.5 (Zhu et al. 2025, https://arxiv.org/abs/2505.19223), wd1 and SPG learn with.

Masks depend on the response's stream alone, so that policy, old policy and reference are compared under the same ones.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from lightrft.config import UnmaskConfig
from lightrft.types import Inputs, Trajectory
from lightrft.utils.seeding import derive_seed


@dataclass(frozen=True, slots=True)
class Canvases(Inputs):
    """Rows laid end to end, in `prompt_spans`; `predict` and `targets` have an entry for each prediction, of which a token may have several."""

    tokens: Tensor | None = None
    """(K,) int64: which of the T response tokens each of the K predictions is of."""
    shares: Tensor | None = None
    """(K,) float64: how much it counts in the log-prob of that token."""

    def on(self, device: torch.device) -> Canvases:
        """With all tensors there."""
        held: dict[str, Any] = {f.name: getattr(self, f.name) for f in fields(self)}
        moved: dict[str, Any] = {
            name: x.to(device) if isinstance(x, Tensor) else x for name, x in held.items()
        }
        return Canvases(**moved)


@dataclass(frozen=True)
class View:
    """A canvas as the model reads it at once, and what is predicted from it."""

    canvas: list[int]
    """Tokens, with masks."""
    places: list[int]
    """The response's tokens that are predicted."""
    share: float = 1.0
    prompt: list[int] | None = None
    """None: as it is."""


@dataclass(frozen=True)
class Reading:
    """How a model reads responses."""

    options: UnmaskConfig
    mask: int
    """The token that stands for one not revealed."""

    def views(self, t: Trajectory) -> Iterator[View]:
        """What is read of a response for the tokens that it learns from; for all, if there are none."""
        wanted = t.mask if any(t.mask) else [True] * len(t)
        return LIKELIHOODS[self.options.likelihood](self, t, wanted)

    def layout(self, answers: Sequence[Trajectory]) -> Canvases:
        """The rows of these responses, end to end."""
        rows, places = list[list[int]](), list[list[int]]()
        targets, tokens, shares = list[int](), list[int](), list[float]()
        first, read = 0, 0
        for t in answers:
            for view in self.views(t):
                prompt = t.prompt.token_ids if view.prompt is None else view.prompt
                start = read + len(prompt) - int(self.options.predicts == "next")
                rows.append(prompt + view.canvas)
                places.append([start + place for place in view.places])
                targets += [t.token_ids[place] for place in view.places]
                tokens += [first + place for place in view.places]
                shares += [view.share] * len(view.places)
                read += len(rows[-1])
            first += len(t)
        ends = torch.tensor([len(row) for row in rows]).cumsum(0).tolist()
        return Canvases(
            token_ids=torch.tensor([x for row in rows for x in row], dtype=torch.int64),
            positions=torch.cat([torch.arange(len(row)) for row in rows]),
            prompt_spans=tuple((end - len(row), end) for row, end in zip(rows, ends, strict=True)),
            response_spans=tuple((end, end) for end in ends),
            targets=torch.tensor(targets, dtype=torch.int64),
            predict=torch.tensor([x for row in places for x in row], dtype=torch.int64),
            tokens=torch.tensor(tokens, dtype=torch.int64),
            shares=torch.tensor(shares, dtype=torch.float64),
        )

    def seen(self, place: int, size: int) -> int:
        """Tokens of a canvas of `size` that a step reads which reveals the token at `place`."""
        block = self.options.block or size
        return size if self.options.context == "canvas" else min(size, (place // block + 1) * block)

    def most_rows(self, size: int) -> int:
        """Most rows that are read for a response on a canvas of `size`."""
        block = self.options.block or size
        whole, rest = divmod(size, block)
        steps = sum(-(-n // self.options.tokens_per_step) for n in [block] * whole + [rest])
        return {"path": steps, "mean_field": 1, "elbo": self.options.draws}[self.options.likelihood]

    def width(self, prompt: int, size: int) -> int:
        """Positions read for each token of a response to a prompt of so many tokens, at most: `Prompt.width`."""
        shortest = size if self.options.likelihood == "path" else min(size, self.options.block or size)
        return -(-self.most_rows(size) * (prompt + size) // shortest)


def revealed(t: Trajectory, options: UnmaskConfig) -> tuple[list[int], int]:
    """The step that revealed each token, and the size of the canvas; for a response that says neither, from left to right on its own."""
    if t.states is None:
        return [place // options.tokens_per_step for place in range(len(t))], len(t)
    return t.states[:, 0].tolist(), int(t.states[0, 1])


def _path(reading: Reading, t: Trajectory, wanted: Sequence[bool]) -> Iterator[View]:
    steps, size = revealed(t, reading.options)
    for step in sorted({step for step, learned in zip(steps, wanted, strict=True) if learned}):
        places = [
            p for p, (s, learned) in enumerate(zip(steps, wanted, strict=True)) if s == step and learned
        ]
        canvas = [reading.mask] * reading.seen(places[0], size)
        for place, token in enumerate(t.token_ids):
            if steps[place] < step:
                canvas[place] = token
        yield View(canvas, places)


def _mean_field(reading: Reading, t: Trajectory, wanted: Sequence[bool]) -> Iterator[View]:
    _, size = revealed(t, reading.options)
    draw = random.Random(derive_seed(t.stream, "prompt"))
    prompt = [
        reading.mask if draw.random() < reading.options.prompt_mask else token for token in t.prompt.token_ids
    ]
    places = [place for place, learned in enumerate(wanted) if learned]
    yield View([reading.mask] * reading.seen(len(t) - 1, size), places, prompt=prompt)


def _elbo(reading: Reading, t: Trajectory, wanted: Sequence[bool]) -> Iterator[View]:
    _, size = revealed(t, reading.options)
    length, draws = len(t), reading.options.draws
    for number in range(draws):
        draw = random.Random(derive_seed(t.stream, "elbo", number))
        masked = 1 + int(draw.random() * length)
        order = sorted(range(length), key=[draw.random() for _ in range(length)].__getitem__)
        canvas = t.token_ids + [reading.mask] * (reading.seen(length - 1, size) - length)
        for place in order[:masked]:
            canvas[place] = reading.mask
        places = sorted(place for place in order[:masked] if wanted[place])
        if (
            places or not number
        ):  # the model is read for every response, also for one of which no wanted token is masked
            yield View(canvas, places, share=length / (masked * draws))


LIKELIHOODS: dict[str, Callable[[Reading, Trajectory, Sequence[bool]], Iterator[View]]] = {
    "path": _path,
    "mean_field": _mean_field,
    "elbo": _elbo,
}
"""rollout.unmask.likelihood -> a response, which of its tokens are wanted -> what is read for them."""
