"""Log-probabilities and entropies of response tokens, computed in float32 and in chunks.

The (tokens x vocabulary) matrix of logits never exists: only the hidden states that predict a response token pass
through the head, a chunk at a time, and the backward pass computes each chunk again.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lightrft.models.attention import SharedPrompts
from lightrft.types import Batch, Inputs


@dataclass(frozen=True, slots=True)
class LogProbs:
    """Both (T,) float32 (float64 for a float64 model)."""

    values: Tensor
    """log p(token t | what came before it), at the sampling temperature."""
    entropy: Tensor
    """Entropy in nats of the distribution token t was drawn from."""


def logprobs(
    module: nn.Module, batch: Batch, *, temperature: float, max_logits: int, exact_attention: bool = False
) -> LogProbs:
    """Log-probs and entropy of every response token of a batch under `module`.

    `temperature` divides the logits, as in sampling. `max_logits` bounds how many logits exist at once. Gradients
    flow through both outputs when they are enabled.
    """
    assert batch.inputs is not None
    hidden = hidden_states(module, batch.inputs, exact_attention=exact_attention)
    hidden = hidden.index_select(0, batch.inputs.predict)
    head = output_head(module)
    rows = max(1, max_logits // head.weight.shape[0])
    cap = getattr(text_config(module), "final_logit_softcapping", None)
    values, entropy = _ChunkedHead.apply(hidden, head.weight, head.bias, batch.token_ids, temperature, cap, rows)
    return LogProbs(values, entropy)


def hidden_states(module: nn.Module, inputs: Inputs, *, exact_attention: bool = False) -> Tensor:
    """(N, H): the last hidden state of every token the model reads."""
    layout = SharedPrompts.of(inputs.prompt_spans, inputs.response_spans, exact=exact_attention)
    positions = inputs.positions.unsqueeze(0) if inputs.positions.dim() == 1 else inputs.positions.unsqueeze(1)
    out = backbone(module)(
        input_ids=inputs.token_ids.unsqueeze(0), position_ids=positions, use_cache=False, layout=layout, **inputs.media
    )
    return out.last_hidden_state[0]


def causal_lm(module: nn.Module) -> Any:
    """The transformers model inside adapters (peft) or other wrappers."""
    return module.get_base_model() if hasattr(module, "get_base_model") else module


def backbone(module: nn.Module) -> nn.Module:
    """The model without its output head."""
    inner = causal_lm(module)
    return getattr(inner, inner.base_model_prefix)


def output_head(module: nn.Module) -> nn.Linear:
    """The linear layer from hidden states to the vocabulary."""
    return causal_lm(module).get_output_embeddings()


def text_config(module: nn.Module) -> Any:
    """The configuration of the text part."""
    return causal_lm(module).config.get_text_config()


class _ChunkedHead(torch.autograd.Function):
    """hidden (T, H) -> log-probs (T,) and entropy (T,); logits live one chunk of rows at a time.

    With z = logits / temperature and p = softmax(z): log p_t = z_t - logsumexp(z), entropy = logsumexp(z) - sum p z,
    d log p_t / dz = onehot(t) - p and d entropy / dz = -p (z - logsumexp(z) + entropy). The backward pass computes a
    chunk's logits again: one more matrix product instead of T x V numbers kept.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor, temperature: float,
        cap: float | None, rows: int,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        values, entropies, totals = [], [], []
        for start in range(0, hidden.shape[0], rows):
            part = slice(start, start + rows)
            z = _logits(hidden[part], weight, bias, temperature, cap)
            total = torch.logsumexp(z, -1)
            values.append(z.gather(1, tokens[part, None])[:, 0] - total)
            mean = torch.linalg.vecdot(torch.exp(z - total[:, None]), z)
            entropies.append(total - mean)
            totals.append(total)
        empty = hidden.new_empty(0, dtype=_accumulate(hidden))
        value, entropy, total = (torch.cat(x) if x else empty for x in (values, entropies, totals))
        ctx.save_for_backward(hidden, weight, bias, tokens, total, entropy)
        ctx.temperature, ctx.cap, ctx.rows = temperature, cap, rows
        return value, entropy

    @staticmethod
    def backward(ctx: Any, grad_value: Tensor, grad_entropy: Tensor) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, tokens, totals, entropies = ctx.saved_tensors
        grad_hidden = torch.empty_like(hidden)
        learns = ctx.needs_input_grad[1]
        grad_weight = torch.zeros_like(weight, dtype=totals.dtype) if learns else None
        grad_bias = torch.zeros_like(bias, dtype=totals.dtype) if bias is not None and ctx.needs_input_grad[2] else None
        by_entropy = bool(grad_entropy.any())
        for start in range(0, hidden.shape[0], ctx.rows):
            part = slice(start, start + ctx.rows)
            raw = _head(hidden[part], weight, bias)
            z = _shape(raw, ctx.temperature, ctx.cap)
            p = torch.exp(z - totals[part, None])
            grad = p * -grad_value[part, None]
            if by_entropy:
                grad -= p * (z - (totals[part] - entropies[part])[:, None]) * grad_entropy[part, None]
            grad.scatter_add_(1, tokens[part, None], grad_value[part, None])
            if ctx.cap is not None:
                grad *= 1 - torch.tanh(raw.to(z.dtype) / ctx.cap) ** 2
            grad = grad.div_(ctx.temperature).to(hidden.dtype)
            torch.mm(grad, weight, out=grad_hidden[part])
            if grad_weight is not None:
                grad_weight += grad.t() @ hidden[part]
            if grad_bias is not None:
                grad_bias += grad.sum(0)
        return (
            grad_hidden,
            None if grad_weight is None else grad_weight.to(weight.dtype),
            None if grad_bias is None else grad_bias.to(weight.dtype),
            None, None, None, None,
        )  # fmt: skip


def _head(hidden: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    return torch.nn.functional.linear(hidden, weight, bias)


def _shape(raw: Tensor, temperature: float, cap: float | None) -> Tensor:
    """Logits in float32, soft-capped where the model does so, divided by the temperature."""
    z = raw.to(_accumulate(raw))
    if cap is not None:
        z = cap * torch.tanh(z / cap)
    return z / temperature if temperature != 1.0 else z


def _logits(hidden: Tensor, weight: Tensor, bias: Tensor | None, temperature: float, cap: float | None) -> Tensor:
    return _shape(_head(hidden, weight, bias), temperature, cap)


def _accumulate(tensor: Tensor) -> torch.dtype:
    return torch.float64 if tensor.dtype == torch.float64 else torch.float32
