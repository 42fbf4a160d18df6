"""Draws pictures with the actor's own transformer: noise enters the steps of a window, the others are exact."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lightrft.config import DenoiseConfig, RolloutConfig
from lightrft.engines.base import Engine, Progress
from lightrft.engines.own_weights import OwnWeights, load
from lightrft.engines.sampling import stream, uniforms
from lightrft.models.flows import AFTERWARDS, logprob, noised
from lightrft.models.lazy import is_empty
from lightrft.models.pictures import PictureProcessor, schedule
from lightrft.models.processor import Processor
from lightrft.models.schedule import Schedule, likelihood, per, window
from lightrft.strategy.memory import Resident, Tensors
from lightrft.types import Completion, Prompt, Sampling


class Denoiser:
    """An Engine over a denoising transformer.

    What is drawn depends on the weights, the prompt, `sampling`, the prompt's place in the call and the response's own number; not on
    what else is drawn, nor on `max_sequences`. At temperature 0 no noise enters after the first state, and a response has no entries. With
    `same_start` the pictures of a prompt begin with the noise of its first one, and part where noise enters.
    """

    def __init__(self, module: nn.Module, processor: PictureProcessor, config: DenoiseConfig) -> None:
        self.weight_version, self.config = 0, config
        self.device = next(module.parameters()).device
        self._module, self._processor = module, processor
        self._noisy = schedule(processor, config.steps)
        self._plain = schedule(processor, config.evaluation_steps or config.steps)
        self._vae: Any = processor.pipeline.vae(torch.device("cpu"))
        self._own = OwnWeights(self, module) if is_empty(module) else None

    @torch.no_grad()
    def generate(
        self, prompts: Sequence[Prompt], sampling: Sampling, progress: Progress | None = None
    ) -> list[list[Completion]]:
        """Engine.generate; prompts that are not open yet are opened. ValueError for a prompt that is to go on."""
        if any(prompt.continuation is not None for prompt in prompts):
            raise ValueError(
                "a picture is drawn in one go: there is none to go on with. Set rollout.max_tokens_per_step=0."
            )
        prompts = [self._processor.open(prompt) for prompt in prompts]
        n = sampling.n
        places = [sampling.first_index + k * sampling.index_stride for k in range(len(prompts))]
        begun = self._begun(prompts, places, sampling)
        asked = [(place, k) for place in range(len(prompts)) for k in range(n)]
        found: list[Completion] = []
        for start in range(0, len(asked), self.config.max_sequences):
            part = asked[start : start + self.config.max_sequences]
            keys = [stream(sampling.seed, places[place], k) for place, k in part]
            first = None if begun is None else begun[[place for place, _ in part]]
            found += self._drawn([prompts[place] for place, _ in part], keys, sampling, first)
            if progress is not None:
                progress(len(found), sum(len(c.token_ids) for c in found))
        return [found[i * n : (i + 1) * n] for i in range(len(prompts))]

    def _learned(self, sampling: Sampling) -> range:
        """The steps that are learned from: noise enters them, or comes afterwards."""
        return window(self.config, sampling.seed, self.weight_version) if sampling.temperature else range(0)

    def _begun(self, prompts: Sequence[Prompt], places: Sequence[int], sampling: Sampling) -> Tensor | None:
        """(P, ...) states before the first step that noise enters, one for each prompt; None where each picture begins with noise of its own."""
        if not (self.config.same_start and sampling.temperature):
            return None
        found = []
        for start in range(0, len(prompts), self.config.max_sequences):
            part = slice(start, start + self.config.max_sequences)
            streams = torch.tensor([stream(sampling.seed, place, 0) for place in places[part]])
            x, conditions = self._first(streams), self._conditions(prompts[part])
            for place in range(self._learned(sampling).start):
                at = torch.full((len(x),), place, device=self.device)
                x = self._noisy.exact(self._module, x, at, conditions)
            found.append(x)
        return torch.cat(found)

    def _first(self, streams: Tensor) -> Tensor:
        """(B, ...) the noise that pictures begin with."""
        return normals(streams, 0, self._processor.shape).to(self.device)

    def _conditions(self, prompts: Sequence[Prompt]) -> dict[str, Tensor]:
        return {
            name: torch.cat([p.media[name] for p in prompts]).to(self.device) for name in prompts[0].media
        }

    def _drawn(
        self, prompts: Sequence[Prompt], keys: Sequence[int], sampling: Sampling, begun: Tensor | None
    ) -> list[Completion]:
        """One picture for each prompt, from the streams `keys`, or from states (B, ...) before the first step that noise enters."""
        learned = self._learned(sampling)
        noisy = range(0) if self.config.noise in AFTERWARDS else learned
        steps = self._noisy if sampling.temperature else self._plain
        conditions, streams = self._conditions(prompts), torch.tensor(keys)
        x = self._first(streams) if begun is None else begun
        pairs: list[Tensor] = []
        logps: list[Tensor] = []
        for place in range(0 if begun is None else noisy.start, steps.steps):
            places = torch.full((len(x),), place, device=self.device)
            if place in noisy:
                step = steps.noisy(self._module, x, places, conditions)
                new = step.mean + step.sd * normals(streams, 1 + place, self._processor.shape).to(self.device)
                drawn = step.mean if self.config.kept == 3 else None
                pairs.append(torch.stack([s for s in (x, new, drawn) if s is not None], 1).cpu())
                logps.append(likelihood(self.config, new, step, drawn).cpu())
            else:
                new = steps.exact(self._module, x, places, conditions)
            x = new
        for place in learned if not noisy else ():
            pair, logp = self._noised(x, place, steps, streams, conditions)
            pairs.append(pair)
            logps.append(logp)
        return [
            Completion(
                token_ids=list(learned),
                logprobs=[float(p[k]) for p in logps],
                finish="stop",
                weight_version=self.weight_version,
                stream=key,
                states=torch.stack([p[k] for p in pairs]) if pairs else None,
                made=made,
            )
            for k, (key, made) in enumerate(zip(keys, self._made(x), strict=True))
        ]

    def _noised(
        self, x: Tensor, place: int, steps: Schedule, streams: Tensor, conditions: Mapping[str, Tensor]
    ) -> tuple[Tensor, Tensor]:
        """Pictures noised to the level of step `place` with their velocities, and what is predicted of these where that is kept, (B, 2 or 3, ...),
        and the log-probs of the velocities, (B,)."""
        noise = normals(streams, 1 + place, self._processor.shape).to(self.device)
        state, velocity = noised(x, noise, steps.levels.before[place].to(self.device))
        step = steps.noisy(self._module, state, torch.full((len(x),), place, device=self.device), conditions)
        logp = logprob(velocity, step).cpu() * per(self.config, x[0].numel())
        kept = [state, velocity, step.mean][: self.config.kept]
        return torch.stack(kept, 1).cpu(), logp

    def _made(self, x: Tensor) -> list[dict[str, Any]]:
        """What latents (B, ...) show, by kind: see `shown`. Nothing for one that is not finite."""
        whole = x.flatten(1).isfinite().all(1).tolist()
        return [
            shown(self._decoded(one[None])[0]) if fine else {} for one, fine in zip(x, whole, strict=True)
        ]

    def _decoded(self, x: Tensor) -> Tensor:
        """Pictures, or clips, in [-1, 1] of latents: themselves where there is no VAE."""
        if self._vae is None:
            return x
        return self._processor.pipeline.family.decode(self._vae, x)

    def load_weights(self, weights: Iterable[tuple[str, Tensor]]) -> None:
        """Engine.load_weights; a tensor that is the module's own costs nothing."""
        load(self._module, self._own, weights)

    @property
    def shares_weights(self) -> bool:
        """Whether it draws with the actor's own weights."""
        return self._own is None

    def parts(self) -> dict[str, Resident]:
        """The VAE, and the weights unless they belong to whoever trains them."""
        found: dict[str, Resident] = {} if self._own is None else {"weights": self._own}
        if self._vae is not None:
            vae = self._vae
            found["vae"] = Tensors(
                lambda: list(vae.parameters()), str(self.device), moves=self.device.type != "cpu"
            )
        return found


def normals(keys: Tensor, what: int, shape: Sequence[int]) -> Tensor:
    """(B, *shape) float32 standard normal numbers: state number `what` of each stream.

    The quantile of a uniform number, so that they depend on nothing but the stream's key and their place in it.
    """
    size = int(torch.Size(shape).numel())
    counters = torch.arange(size) + what * size
    u = uniforms(keys[:, None].expand(-1, size).reshape(-1), counters.repeat(len(keys)))
    found: Tensor = torch.special.ndtri(u).float().view(len(keys), *shape)
    return found


def shown(x: Tensor) -> dict[str, Any]:
    """{"image": (H, W, 3) uint8 array} of a picture (C, H, W) in [-1, 1]; of a clip (C, F, H, W) {"clip": (F, H, W, 3)} as well, and the
    image is the frame in its middle."""
    found = picture(x)
    return {"image": found} if x.dim() == 3 else {"image": found[len(found) // 2], "clip": found}


def picture(x: Tensor) -> Any:
    """(..., 3) uint8 array of a picture or clip (C, ...) in [-1, 1]; one channel is grey."""
    colours = x if len(x) == 3 else x[:1].expand(3, *x.shape[1:])
    levels = ((colours.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    return levels.movedim(0, -1).contiguous().cpu().numpy()


def denoiser(module: nn.Module, processor: Processor | PictureProcessor, config: RolloutConfig) -> Engine:
    """Draws with the module itself. ValueError for a language model."""
    if not isinstance(processor, PictureProcessor):
        raise ValueError(
            f"rollout.engine={config.engine} draws pictures, and model.path is a language model. Set rollout.engine=native, or model.path to the "
            "folder of a diffusion pipeline."
        )
    return Denoiser(module, processor, config.denoise)
