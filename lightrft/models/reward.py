"""Reward models: a language model's body with a head that scores a whole conversation at its end.

As transformers' ForSequenceClassification classes have it, and the reward models on the hub with them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, nn

from lightrft.config import ModelConfig
from lightrft.models.classifiers import classifier_class, heads
from lightrft.models.describe import model_folder, stored_shape
from lightrft.models.families import attention_of, joined
from lightrft.models.folder import NO_CODE, why
from lightrft.models.linear import ExactLinear
from lightrft.models.logprobs import predicting_states, text_config
from lightrft.models.sequence import Share
from lightrft.models.weights import Weights
from lightrft.types import Batch, Inputs


def load_reward_model(config: ModelConfig, device: torch.device | str = "cpu") -> nn.Module:
    """A reward model with packed attention, its head in float32. ValueError if it has no head that was trained."""
    model = trained(config, f"model.path={config.path}")
    ready: nn.Module = model.to(device).eval().requires_grad_(False)
    return ready


def trained(config: ModelConfig, name: str) -> Any:
    """The reward model in a folder; ValueError that begins with `name` if it is none that is read here."""
    folder, shape = model_folder(config), stored_shape(config)
    try:
        model, told = classifier_class(shape).from_pretrained(
            folder,
            revision=config.revision,
            dtype=getattr(torch, config.dtype),
            attn_implementation=attention_of(shape),
            output_loading_info=True,
            **NO_CODE,
        )
    except (OSError, ValueError) as error:
        raise ValueError(f"{name}: transformers cannot load it as a reward model: {why(error)}") from error
    if told["missing_keys"]:
        raise ValueError(
            f"{name} holds no trained head for scores ({', '.join(sorted(told['missing_keys'])[:3])} is missing). Name a reward model, or "
            "let a language model judge in words (judge.path)."
        )
    found = heads(model)
    if len(found) != 1 or next(iter(found.values())).in_features != text_config(model).hidden_size:
        raise ValueError(
            f"{name}: a {type(model).__name__} computes more than one linear layer of its last state, and such models are not read here."
        )
    ((place, head),) = found.items()
    stored = Weights.of(config)
    for name, parameter in head.named_parameters():  # as they were written, not rounded to config.dtype
        if stored is not None and stored.holds([f"{place}.{name}"]):
            parameter.data = stored.whole(f"{place}.{name}")
    set_head(model, place, head)
    return model


def set_head(model: Any, place: str, head: nn.Linear) -> None:
    """Puts a head of these weights into a model, which computes in float32 (float64 for a float64 model) whatever type the body has:
    scores in bfloat16 would be the same for many responses that differ."""
    dtype = torch.promote_types(head.weight.dtype, torch.float32)
    exact = ExactLinear(
        head.in_features,
        head.out_features,
        bias=head.bias is not None,
        device=head.weight.device,
        dtype=dtype,
    )
    with torch.no_grad():
        exact.weight.copy_(head.weight)
        if head.bias is not None:
            exact.bias.copy_(head.bias)
    model.set_submodule(place, exact)
    model.exact = (place,)


def up_to_score(tokens: Sequence[int], padding: int | None) -> Sequence[int]:
    """A conversation up to the token at which its score is read: the last one other than the model's padding token.

    So transformers has it. Where the padding token is also what ends an answer, models were trained to be asked before it. The one
    function for the place, in training and in scoring.
    """
    end = len(tokens)
    while end > 1 and tokens[end - 1] == padding:
        end -= 1
    return tokens[:end]


def values(module: Any, batch: Batch, exact_attention: bool = False) -> Tensor:
    """(S, K) float32 (float64 for a float64 model): the outputs of the head at the last token of each response of a packed batch.

    A response ends where its score is read (`up_to_score`).
    """
    assert isinstance(batch.inputs, Inputs)
    ends = torch.tensor([end - 1 for _, end in batch.inputs.response_spans])
    inputs = replace(batch.inputs, predict=ends.to(batch.inputs.token_ids.device))
    share = Share.of(inputs)
    hidden = predicting_states(module, inputs, share, exact_attention=exact_attention)
    (head,) = heads(module).values()
    found: Tensor = head(hidden)
    return torch.stack([share.whole(column) for column in found.unbind(1)], 1)


@dataclass(frozen=True)
class Conversation:
    """What a reward model reads."""

    token_ids: Sequence[int]
    """(P,)"""
    positions: Tensor | None = None
    """(R, P) for models with multi-axis rotary positions."""
    media: Mapping[str, Tensor] = field(default_factory=dict)
    """Forward keywords such as pixel_values, as in Prompt.media."""

    def followed_by(self, tokens: Sequence[int]) -> Conversation:
        """The conversation with more text, which goes on from the last position of each row."""
        rows = self.positions
        if rows is not None:
            rows = torch.cat([rows, rows[:, -1:] + 1 + torch.arange(len(tokens))], 1)
        return replace(self, token_ids=[*self.token_ids, *tokens], positions=rows)

    def up_to_score(self, padding: int | None) -> Conversation:
        """The conversation up to the token at which its score is read."""
        tokens = up_to_score(self.token_ids, padding)
        rows = None if self.positions is None else self.positions[:, : len(tokens)]
        return replace(self, token_ids=tokens, positions=rows)


def scores(
    module: Any, conversations: Sequence[Conversation | Sequence[int]], tokens_per_micro_batch: int
) -> list[list[float]]:
    """The outputs of the head for each conversation, or its token ids, laid end to end and never padded.

    It is read where `up_to_score` says.
    """
    device, padding = next(module.parameters()).device, text_config(module).pad_token_id
    given = (c if isinstance(c, Conversation) else Conversation(c) for c in conversations)
    read = [conversation.up_to_score(padding) for conversation in given]
    order = sorted(range(len(read)), key=lambda place: len(read[place].token_ids))
    found: list[list[float]] = [[] for _ in read]
    batch: list[int] = []
    for place in order:
        filled = sum(len(read[p].token_ids) for p in batch)
        if batch and filled + len(read[place].token_ids) > tokens_per_micro_batch:
            _score(module, read, batch, device, found)
            batch = []
        batch.append(place)
    if batch:
        _score(module, read, batch, device, found)
    return found


@torch.no_grad()
def _score(
    module: Any,
    conversations: Sequence[Conversation],
    places: Sequence[int],
    device: torch.device,
    found: list[list[float]],
) -> None:
    inputs = _packed([conversations[place] for place in places], device)
    hidden = predicting_states(module, inputs, Share.of(inputs))
    (head,) = heads(module).values()
    found_here: Tensor = head(hidden).float()
    for place, row in zip(places, found_here.tolist(), strict=True):
        found[place] = row


def _packed(conversations: Sequence[Conversation], device: torch.device) -> Inputs:
    """Each a prompt without response, whose last state is asked for."""
    ends = torch.tensor([len(c.token_ids) for c in conversations]).cumsum(0).tolist()
    spans = tuple(zip([0, *ends[:-1]], ends, strict=True))
    places = [torch.arange(len(c.token_ids)) if c.positions is None else c.positions for c in conversations]
    media: dict[str, list[Tensor]] = {}
    for conversation in conversations:
        for name, value in conversation.media.items():
            media.setdefault(name, []).append(value)
    return Inputs(
        token_ids=torch.tensor([t for c in conversations for t in c.token_ids], device=device),
        positions=torch.cat(places, -1).to(device),
        prompt_spans=spans,
        response_spans=tuple((end, end) for _, end in spans),
        targets=torch.zeros(0, dtype=torch.int64, device=device),
        predict=torch.tensor(ends, device=device) - 1,
        media={name: joined(values) for name, values in media.items()},
    )
