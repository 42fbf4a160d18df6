"""Critics that learn: the body of a language model or of a reward model under a head to one value or two, for every backend."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightrft.config import LoraConfig, ModelConfig
from lightrft.models.classifiers import HEAD, heads, output_labels, output_number
from lightrft.models.describe import stored_shape, without_weights
from lightrft.models.freezing import PARTS, named, unknown
from lightrft.models.lazy import empty_model
from lightrft.models.load import load_model, prepared
from lightrft.models.logprobs import backbone, causal_lm, text_config
from lightrft.models.lora import plain_parameters
from lightrft.models.reward import trained
from lightrft.models.reward_source import has_head
from lightrft.models.source import Source
from lightrft.models.values import ValueModel
from lightrft.models.weights import Weights

OF_SOME = (*PARTS, "lm_head", HEAD)
"""Parts that some models have and others do not."""


@dataclass(frozen=True)
class CriticSource(Source):
    """The body of a model under a head to the value of the reward, and to that of a cost where asked (models/values.py). It has no adapters;
    all of it learns but for what of its body model.freeze names.

    A language model gets a head of zeros. A reward model gives its own, of one of its outputs: what a whole response is worth is a good
    first guess of what is still to come (Ouyang et al. 2022, https://arxiv.org/abs/2203.02155, section 3.5).
    """

    output: str = ""
    """Label or number of a reward model's output; empty: it has one."""
    cost_output: str | None = None
    """Label or number of that from which the value of a cost begins; empty: from 0; None: there is no cost."""

    def full(self, device: torch.device | str = "cpu") -> nn.Module:
        """The critic with all its weights."""
        if not has_head(self.config):
            return self._critic(load_model(self._bare(), device))
        model = self._trained()
        ready = prepared(model.to(device), self._bare(), self.learns)
        critic = ValueModel(
            backbone(ready), text_config(ready), model.base_model_prefix, outputs=self._outputs
        )
        (head,) = heads(model).values()
        self._take_head(critic, head.weight, head.bias)
        return critic

    def empty(self, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> nn.Module:
        """The critic before the weights of its body are read; its head is real, but for the meta device, where nothing is read."""
        critic = self._critic(empty_model(self._bare(), device, dtype=dtype))
        if has_head(self.config) and torch.device(device).type != "meta":
            self._take_head(critic, *self._stored_head())
        return critic

    def missing(self, module: nn.Module) -> dict[str, nn.Parameter]:
        """Parameters of the body that an empty critic is to be given, under their names in a checkpoint."""
        assert isinstance(module, ValueModel)
        return {f"{module.body_name}.{name}": parameter for name, parameter in module.body.named_parameters()}

    def whole(self) -> dict[str, Tensor]:
        """All weights by their names in a checkpoint, in host memory."""
        if not has_head(self.config):
            return super().whole()
        return {name: parameter.detach() for name, parameter in plain_parameters(self._trained()).items()}

    def check(self) -> None:
        """ValueError, before any weight loads, for a reward model whose output is not named, or has another name."""
        if has_head(self.config):
            self._places()
            return
        for prefix, output in self._named:
            if output:
                raise ValueError(
                    f"{prefix}{output} names an output, and the model the critic starts from, {self.config.path}, is no reward model. Leave it "
                    "out, or set critic.path to a reward model."
                )

    @property
    def _outputs(self) -> int:
        return 1 if self.cost_output is None else 2

    @property
    def _named(self) -> list[tuple[str, str]]:
        """The outputs of a reward model that values begin from, each behind what a setting says before it: of the reward, and of the cost if
        one is named."""
        found = [(f"critic.path={self.config.path}:", self.output)]
        return [*found, ("critic.cost_output=", self.cost_output)] if self.cost_output else found

    def _places(self) -> list[int]:
        """Their numbers. ValueError where there is none of the name, or where both are one."""
        names = output_labels(stored_shape(self.config))
        places: list[int] = []
        for prefix, output in self._named:
            place, setting = output_number(names, output), f"{prefix}{output}".rstrip(":")
            if place is None:
                others = [name for number, name in enumerate(names) if number not in places] or names
                raise ValueError(
                    f"{setting}: the reward model has the outputs {', '.join(names)}. Name one: {prefix}{others[0]}"
                )
            if place in places:
                raise ValueError(
                    f"{setting} is the output from which the value of the reward begins. Name another one."
                )
            places.append(place)
        return places

    def _trained(self) -> Any:
        return trained(self._bare(), f"critic.path={self.config.path}")

    def _stored_head(self) -> tuple[Tensor, Tensor | None]:
        """Weights and biases of the reward model's head, read without its body where the files allow that."""
        weight, bias, stored = f"{HEAD}.weight", f"{HEAD}.bias", Weights.of(self.config)
        if stored is not None and stored.holds([weight]):
            return stored.whole(weight), stored.whole(bias) if stored.holds([bias]) else None
        (head,) = heads(self._trained()).values()
        return head.weight, head.bias

    def _take_head(self, critic: ValueModel, weight: Tensor, bias: Tensor | None) -> None:
        """Gives a critic the rows of a head that compute the outputs."""
        with torch.no_grad():
            for row, place in enumerate(self._places()):
                critic.head.weight[row].copy_(weight[place])
                if bias is not None:
                    critic.head.bias[row].copy_(bias[place])

    def _critic(self, language: nn.Module) -> ValueModel:
        prefix = causal_lm(language).base_model_prefix
        return ValueModel(backbone(language), text_config(language), prefix, outputs=self._outputs)

    def _bare(self) -> ModelConfig:
        """Without adapters, and with those names of model.freeze that its body has: others, such as lm_head, are of the policy alone.

        ValueError for a name that fits nothing, unless it is one of those that only some models have: the policy may.
        """
        frozen = self.config.freeze
        if frozen:
            shape = without_weights(self.config)
            body = f"{causal_lm(shape).base_model_prefix}."
            found = {name: named(shape, name) for name in frozen}
            for name in frozen:
                if not found[name] and name not in OF_SOME:
                    raise unknown(shape, name)
            frozen = [name for name in frozen if any(own.startswith(body) for own in found[name])]
        return replace(self.config, lora=LoraConfig(), freeze=frozen)
