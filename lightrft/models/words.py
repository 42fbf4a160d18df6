"""Language models as policies: an entry of a response is a token."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn

from lightrft.config import Config
from lightrft.config.algorithm import EXACT
from lightrft.models.experts import OWN
from lightrft.models.export import FILE_BYTES, write_folder
from lightrft.models.families import joined
from lightrft.models.logprobs import LogProbs, logprobs
from lightrft.models.processor import Processor
from lightrft.models.reward_source import writing_processor
from lightrft.models.source import Source
from lightrft.models.supports import packed
from lightrft.types import Batch, Inputs, Prompt, Sampling, Trajectory

BLANK = -(2**62)
"""Group of a response from which nothing is learned and that counts nowhere."""
COLUMNS = (
    "old",
    "entropy",
    "squares",
    "ref",
    "teacher",
    "values",
    "cost_values",
    "rewards",
    "advantages",
    "returns",
    "cost_returns",
    "marks",
)
"""What may be known of each entry of a response."""


def token_layout(trajectories: Sequence[Trajectory], share_prompts: bool) -> Inputs:
    """Tokens laid end to end; siblings that are adjacent share their prompt. ValueError for a prompt without tokens."""
    tokens: list[int] = []
    positions: list[Tensor] = []
    prompt_spans: list[tuple[int, int]] = []
    response_spans: list[tuple[int, int]] = []
    predict: list[int] = []
    media: dict[str, list[Tensor]] = {}
    previous: Trajectory | None = None
    for t in trajectories:
        if not t.prompt.token_ids:
            raise ValueError(
                f"prompt '{t.prompt.id}' has no tokens, so nothing predicts the first token of its response."
            )
        siblings = previous is not None and previous.group == t.group and previous.prompt is t.prompt
        if siblings and share_prompts:
            prompt_spans.append(prompt_spans[-1])
        else:
            start = len(tokens)
            tokens += t.prompt.token_ids
            prompt_spans.append((start, len(tokens)))
            positions.append(_prompt_positions(t))
            for name, value in t.prompt.media.items():
                media.setdefault(name, []).append(value)
        start = len(tokens)
        tokens += t.token_ids
        response_spans.append((start, len(tokens)))
        if t.token_ids:
            predict += [prompt_spans[-1][1] - 1, *range(start, len(tokens) - 1)]
            positions.append(response_positions(t))
        previous = t
    return Inputs(
        token_ids=torch.tensor(tokens, dtype=torch.int64),
        positions=torch.cat(positions, -1),
        prompt_spans=tuple(prompt_spans),
        response_spans=tuple(response_spans),
        targets=torch.tensor([x for t in trajectories for x in t.token_ids], dtype=torch.int64),
        predict=torch.tensor(predict, dtype=torch.int64),
        chosen=_chosen(trajectories),
        support=packed(trajectories),
        experts=_experts(trajectories, prompt_spans, response_spans, len(tokens)),
        counted=_counted(trajectories, prompt_spans, response_spans, len(tokens)),
        media={name: joined(values) for name, values in media.items()},
    )


def _chosen(trajectories: Sequence[Trajectory]) -> Tensor | None:
    """Places of the tokens that the policy chose, of responses that hold others as well; all tokens of one that is masked whole."""
    if all(all(t.mask) or not any(t.mask) for t in trajectories):
        return None
    wanted = [x for t in trajectories for x in (t.mask if any(t.mask) else [True] * len(t))]
    return torch.tensor([place for place, x in enumerate(wanted) if x], dtype=torch.int64)


Spans = Sequence[tuple[int, int]]


def _experts(
    trajectories: Sequence[Trajectory], prompts: Spans, responses: Spans, read: int
) -> Tensor | None:
    """(N, M, K) of the responses of which they are known, OWN elsewhere; None where they are known of none.

    Of a prompt that several responses share, the first one's: it is computed once.
    """
    known = next((t.experts for t in trajectories if t.experts is not None), None)
    if known is None:
        return None
    found = torch.full((read, *known.shape[1:]), OWN, dtype=torch.int16)
    for t, (a, b), (c, d) in reversed(list(zip(trajectories, prompts, responses, strict=True))):
        if t.experts is not None and c < d:
            rows = t.experts.to(torch.int16)
            found[a : a + len(rows[: b - a])] = rows[: b - a]
            found[c : c + len(rows[b - a :])] = rows[b - a :]
    return found


def _counted(trajectories: Sequence[Trajectory], prompts: Spans, responses: Spans, read: int) -> Tensor:
    """(N,) how often each token is read to sample another one, if each response has its prompt to itself."""
    found = torch.zeros(read)
    for t, (a, b), (c, d) in zip(trajectories, prompts, responses, strict=True):
        if c < d and t.group != BLANK:
            found[a:b] += 1
            found[c : d - 1] += 1
    return found


def _prompt_positions(t: Trajectory) -> Tensor:
    return torch.arange(len(t.prompt.token_ids)) if t.prompt.positions is None else t.prompt.positions


def response_positions(t: Trajectory) -> Tensor:
    """Text goes on counting after the prompt, in each position row from its last place (M-RoPE).

    A prompt ends with text, so that this is one number for all axes; a clip before it may reach further in time.
    """
    if t.prompt.positions is None:
        return torch.arange(len(t.prompt.token_ids), len(t.prompt.token_ids) + len(t))
    steps = torch.arange(len(t))
    return t.prompt.positions[:, -1:] + 1 + steps


def training_logprobs(module: nn.Module, batch: Batch, config: Config) -> LogProbs:
    """Log-probs and entropy of a batch under the distribution that `training_sampling` samples from."""
    return logprobs(
        module,
        batch,
        temperature=config.rollout.temperature,
        first_token_temperature=config.rollout.first_token_temperature,
        max_logits=config.update.logits_per_chunk,
        exact_attention=config.model.attention == "separate",
        balances=config.algorithm.router_aux_coefficient != 0,
    )


def dummy_answer(prompt: Prompt) -> Trajectory:
    """A response of one token to a prompt, from which nothing is learned."""
    columns = {name: torch.zeros(1) for name in COLUMNS}
    return Trajectory(
        prompt, BLANK, prompt.token_ids[:1], [False], [0.0], "length", reward=0.0, columns=columns
    )


@dataclass(frozen=True)
class Words:
    """A language model; see PolicyKind (models/kinds.py)."""

    config: Config
    processor: Processor

    @classmethod
    def of(cls, config: Config) -> Words:
        """The language model of model.path. ValueError for settings that only pictures obey, and stop texts no response could ever hold."""
        if config.algorithm.kl == EXACT and config.algorithm.kl_coefficient:
            raise ValueError(
                f"algorithm.kl={EXACT} needs a model whose steps are Gaussian (a diffusion pipeline), and model.path={config.model.path} chooses "
                "tokens. Set algorithm.kl=k3."
            )
        processor = writing_processor(config.model, config.media)
        processor.stopping(Sampling(stop=tuple(config.rollout.stop)))
        return cls(config, processor)

    @property
    def makes(self) -> frozenset[str]:
        """Text."""
        return frozenset({"answer"})

    def source(self, *, learns: bool = True) -> Source:
        """The model of model.path."""
        return Source(self.config.model, learns=learns)

    def layout(self, answers: Sequence[Trajectory], share_prompts: bool) -> Inputs:
        """Tokens laid end to end."""
        return token_layout(answers, share_prompts)

    def logprobs(self, module: nn.Module, batch: Batch, config: Config) -> LogProbs:
        """Log-probs of the response tokens."""
        return training_logprobs(module, batch, config)

    def blank(self) -> Trajectory:
        """One token in answer to one token."""
        return dummy_answer(self.processor.blank())

    @property
    def beside(self) -> int:
        """Nothing worth counting."""
        return 0

    def write(
        self,
        module: nn.Module,
        weights: Iterable[tuple[str, Tensor]],
        folder: Path,
        *,
        file_bytes: int = FILE_BYTES,
    ) -> None:
        """A folder that plain transformers loads."""
        write_folder(module, self.processor, weights, folder, file_bytes=file_bytes)
