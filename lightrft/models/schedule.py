"""When a picture gets how much noise: the steps of a scheduler, those of them that noise enters, and one step by a transformer."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor, nn

from lightrft.config import DenoiseConfig
from lightrft.models.flows import STEPS, Step, logprob, normed
from lightrft.models.ladders import Levels
from lightrft.models.pipelines import WITHOUT, Pipeline
from lightrft.utils.seeding import derive_seed


@dataclass(frozen=True)
class Schedule:
    """`steps` steps from noise to a picture, by a pipeline's transformer."""

    pipeline: Pipeline
    config: DenoiseConfig
    steps: int
    positions: int
    """Positions of a state, which some schedules depend on."""

    @cached_property
    def levels(self) -> Levels:
        """Levels of noise: for a flow sigmas, from 1 or a little less to 0."""
        pipeline = self.pipeline
        return pipeline.ladder.levels(pipeline.scheduler, self.steps, self.positions, pipeline.family.even)

    @cached_property
    def weights(self) -> Tensor:
        """(steps,) float32: how much each step weighs in the policy loss, of mean 1 over those that noise may enter. They depend on the settings
        alone: not on what else is learned from, nor on the place of a window. The other steps weigh by the same rule: a response from before
        `first` or `until` was changed has some."""
        config, s, to = self.config, self.levels.before[:, None], self.levels.after[:, None]
        nothing = torch.zeros_like(s)
        step = STEPS[config.noise](nothing, nothing, s, to, config.level, to[0, 0])
        weights = WEIGHTINGS[config.weighting](step, s, to).flatten()
        return (weights / weights[config.first : config.end].mean()).float()

    def velocity(
        self, module: nn.Module, x: Tensor, places: Tensor, conditions: Mapping[str, Tensor]
    ) -> Tensor:
        """(T, ...) float32 (float64 for a float64 model): the velocity at states `x` before steps `places`, guided if that is set."""
        found = self.predicted(module, x, places, conditions)
        level, _ = self._around(x, places)
        return self.pipeline.ladder.velocity(self.pipeline.scheduler, x, found, level)

    def predicted(
        self, module: nn.Module, x: Tensor, places: Tensor, conditions: Mapping[str, Tensor]
    ) -> Tensor:
        """(T, ...): what the network says of states `x` before steps `places`, guided if that is set."""
        kind = next(module.parameters()).dtype
        times = self.levels.times.to(x.device)[places]
        plain = {n: c.to(kind) for n, c in conditions.items() if not n.startswith(WITHOUT)}
        found = self._forward(module, x.to(kind), times, plain)
        if not self.pipeline.guides_twice(self.config.guidance):
            return found
        empty = {n.removeprefix(WITHOUT): c.to(kind) for n, c in conditions.items() if n.startswith(WITHOUT)}
        without = self._forward(module, x.to(kind), times, empty)
        return self.pipeline.family.guided(found, without, self.config.guidance)

    def _forward(
        self, module: nn.Module, x: Tensor, times: Tensor, conditions: Mapping[str, Tensor]
    ) -> Tensor:
        found = self.pipeline.family.forward(module, x, times, conditions)
        return found if found.dtype == torch.float64 else found.float()

    def noisy(self, module: nn.Module, x: Tensor, places: Tensor, conditions: Mapping[str, Tensor]) -> Step:
        """The distribution of the next state of a step that noise enters."""
        v = self.velocity(module, x, places, conditions)
        s, after = self._around(x, places)
        return STEPS[self.config.noise](x, v, s, after, self.config.level, self.levels.after[0].to(x.device))

    def exact(self, module: nn.Module, x: Tensor, places: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """The next state of a step without noise."""
        v = self.velocity(module, x, places, conditions)
        return self.pipeline.ladder.exact(x, v, *self._around(x, places))

    def _around(self, x: Tensor, places: Tensor) -> tuple[Tensor, Tensor]:
        before, after, _ = self.levels
        shape = (-1, *[1] * (x.dim() - 1))
        return before.to(x.device)[places].view(shape), after.to(x.device)[places].view(shape)


def window(config: DenoiseConfig, seed: int, version: int) -> range:
    """The steps that noise enters: the same for all responses, ranks and engines of a call, since they depend on its seed and the
    version of the weights alone."""
    size = config.learned
    room = config.end - config.first - size + 1
    if config.move == "random":
        start = config.first + derive_seed(seed, "window") % room
    elif config.move == "progressive":
        start = config.first + version // config.move_every % room
    else:
        start = config.first
    return range(start, start + size)


def per(config: DenoiseConfig, numbers: int) -> float:
    """What a sum over so many numbers of a state is multiplied by to be its likelihood."""
    return 1.0 if config.likelihood == "sum" else 1 / numbers


def likelihood(config: DenoiseConfig, x: Tensor, step: Step, drawn: Tensor | None) -> Tensor:
    """(T,) the log-probs of states x, as rollout.denoise.likelihood has them; `drawn` are the means x was drawn around, where they are kept."""
    scale = per(config, x[0].numel())
    found = logprob(x, step) * scale
    if config.likelihood != "normed":
        return found
    assert drawn is not None, "DenoiseConfig.kept"
    return normed(found, step, drawn, scale)


WEIGHTINGS: Mapping[str, Callable[[Step, Tensor, Tensor], Tensor]] = {
    "even": lambda step, s, after: torch.ones_like(s),  # noqa: ARG005
    "noise": lambda step, s, after: step.sd,  # noqa: ARG005
    "inverse_span": lambda step, s, after: 1 / (s - after),  # noqa: ARG005
}
"""rollout.denoise.weighting -> steps, levels of noise before and after them -> what they weigh, up to a common factor."""
