"""Log-probabilities and entropies of response tokens, computed in float32 and block by block.

The (tokens x vocabulary) matrix of logits never exists: only the hidden states that predict a response token pass
through the head, one block of the vocabulary at a time, and the backward pass computes each block again.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from lightrft.models.attention import BothWays, Layout, SharedPrompts, mask_of
from lightrft.models.canvases import Canvases
from lightrft.models.experts import OWN, Routing, routers_of
from lightrft.models.families import forward_media, placeholders, seen_both_ways
from lightrft.models.linear import linear
from lightrft.models.products import logits_at_once, multiplies_halves, multiplies_widely, wide_product
from lightrft.models.sequence import Share
from lightrft.models.supports import Among
from lightrft.types import Batch, Inputs

IMPOSSIBLE = -1e30
"""Logit of a token that cannot be drawn; finite, so that 0 times it is 0."""


class LogProbs(NamedTuple):
    """Both (T,) float32 (float64 for a float64 model)."""

    values: Tensor
    """log p(token t | what came before it), at the sampling temperature."""
    entropy: Tensor
    """Entropy in nats of the distribution token t was drawn from."""
    divergence: Tensor | None = None
    """Divergence from the reference in closed form, where the model can say it."""
    squares: Tensor | None = None
    """Sum over the vocabulary of p^2, of the distribution token t was drawn from; only without gradients."""
    means: Tensor | None = None
    """(T, ...): means of the steps, for whoever compares with them later."""
    router_load: Tensor | None = None
    """(M, E) float64: tokens that each expert of each layer got, as `Inputs.counted` counts them; None of models without experts."""
    router_mass: Tensor | None = None
    """(E,): probability of each expert over the same tokens and all layers, with its gradient; only if it is asked for."""
    router_changed: Tensor | None = None
    """(2,): experts replayed that the routers would not have chosen now, and all that were replayed; only where some were."""
    experts: Tensor | None = None
    """(N, M, K): the experts of each token; only without gradients."""
    weights: Tensor | None = None
    """How much each step weighs in the policy loss."""
    moved: Tensor | None = None
    """Divergence in closed form from the policy that drew each step, where its means are kept."""


def logprobs(
    module: nn.Module,
    batch: Batch,
    *,
    temperature: float,
    max_logits: int,
    first_token_temperature: float = 0.0,
    exact_attention: bool = False,
    balances: bool = False,
) -> LogProbs:
    """Log-probs and entropy of every response token of a batch under `module`; 0 of those that nobody chose (`Inputs.chosen`).

    `temperature` divides the logits, as in sampling; the first token of each response has `first_token_temperature` if that is
    not 0. `max_logits` bounds how many logits exist at once; 0: what suits the device. Gradients
    flow through both outputs when they are enabled. A batch of a team (`Inputs.team`) is for all its ranks to call with,
    and all of them get all log-probs; see models/sequence.py for whose gradients are whose. What routers tell is of this rank's own tokens.
    `Inputs.experts` are replayed; `balances`: whether `router_mass` is wanted. Where `Inputs.support` says what a token was drawn among, its
    distribution is that of these tokens alone.
    """
    assert isinstance(batch.inputs, Inputs)
    share = Share.of(
        batch.inputs, batch.inputs.chosen
    )  # the head costs as much for a token that nobody chose
    routing = _routing(module, batch.inputs, share, balances)
    hidden = predicting_states(module, batch.inputs, share, exact_attention=exact_attention, routing=routing)
    head = output_head(module)
    cap = getattr(text_config(module), "final_logit_softcapping", None)
    divisor: float | Tensor = temperature
    if first_token_temperature:
        first = torch.ones_like(batch.segments, dtype=torch.bool)
        first[1:] = batch.segments[1:] != batch.segments[:-1]
        exact = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        divisor = torch.full_like(first, temperature, dtype=exact).masked_fill(first, first_token_temperature)
        divisor = share.own(divisor)[:, None]
    never = placeholders(causal_lm(module).config)
    max_logits = logits_at_once(max_logits, on_cpu=hidden.device.type == "cpu")
    among = Among.of(batch.inputs.support, share.rows, batch.num_tokens)
    values, entropy, squares = _BlockedHead.apply(  # type: ignore[no-untyped-call]
        hidden, head.weight, head.bias, share.own(batch.inputs.targets), divisor, cap, max_logits, never,
        not torch.is_grad_enabled(), among,
    )  # fmt: skip
    found = LogProbs(share.whole(values), share.whole(entropy), **_told(routing, share))
    return found if squares is None else found._replace(squares=share.whole(squares))


def _routing(module: nn.Module, inputs: Inputs, share: Share, balances: bool) -> Routing | None:
    """What routers are to do; None of a model without known ones."""
    if routers_of(module) is None or inputs.counted is None:
        return None
    replayed = None if inputs.experts is None else share.of_tokens(inputs.experts, OWN)
    return Routing(
        replayed,
        share.of_tokens(inputs.counted, 0),
        weighs=balances and torch.is_grad_enabled(),
        keeps=not torch.is_grad_enabled(),
    )


def _told(routing: Routing | None, share: Share) -> dict[str, Tensor]:
    """What routers told, as LogProbs has it."""
    if routing is None:
        return {}
    found = {"router_load": routing.all_loads()}
    if routing.weighs:
        found["router_mass"] = routing.whole_mass()
    if routing.changed:
        found["router_changed"] = routing.all_changed()
    if routing.keeps:
        found["experts"] = share.all_tokens(routing.all_chosen())
    return found


def predicting_states(
    module: nn.Module,
    inputs: Inputs,
    share: Share,
    *,
    exact_attention: bool = False,
    routing: Routing | None = None,
) -> Tensor:
    """(T, H): the last hidden states that predict the response tokens; of a team's batch those of this rank's share."""
    body = backbone(module)
    layout = _layout_of(body.config, inputs, exact=exact_attention)
    token_ids, positions = share.tokens(inputs)
    out = body(
        input_ids=token_ids.unsqueeze(0),
        position_ids=positions.unsqueeze(0) if positions.dim() == 1 else positions.unsqueeze(1),
        use_cache=False,
        layout=share.layout(layout),
        **({} if routing is None else {"routing": routing}),
        **forward_media(body, inputs.media),
    )
    hidden: Tensor = out.last_hidden_state[0]
    return hidden.index_select(0, share.predict)


def _layout_of(config: Any, inputs: Inputs, *, exact: bool) -> Layout:
    """The rule of which tokens see which. ValueError for a masked model that is to read from left to right."""
    if mask_of(config) is None:
        return SharedPrompts.of(
            inputs.prompt_spans,
            inputs.response_spans,
            exact=exact,
            both_ways=seen_both_ways(config, inputs.token_ids.tolist()) if inputs.media else (),
        )
    if not isinstance(inputs, Canvases):
        raise ValueError(
            "the model is a masked diffusion language model, and here responses are read from left to right. `lightrft train`, "
            "`evaluate`, `check`, `export` and `replay` take one."
        )
    return BothWays(inputs.prompt_spans)


def all_logits(module: nn.Module, hidden: Tensor) -> Tensor:
    """(T, V) float32 logits of hidden states (T, H) at temperature 1, soft-capped where the model does so."""
    head = output_head(module)
    cap = getattr(text_config(module), "final_logit_softcapping", None)
    never = placeholders(causal_lm(module).config)
    logits, _ = _Head(hidden, head.weight, head.bias, 1.0, cap, never).logits(slice(0, head.weight.shape[0]))
    return logits


def causal_lm(module: nn.Module) -> Any:
    """The transformers model inside adapters (peft) or other wrappers."""
    adapted: Any = module
    return adapted.get_base_model() if hasattr(module, "get_base_model") else module


def backbone(module: nn.Module) -> Any:
    """The model without its output head."""
    inner = causal_lm(module)
    name = inner.base_model_prefix
    return getattr(
        inner, name if hasattr(inner, name) else "model"
    )  # some versions name a part that is not there


def output_head(module: nn.Module) -> nn.Linear:
    """The linear layer from hidden states to the vocabulary."""
    head: nn.Linear = causal_lm(module).get_output_embeddings()
    return head


def text_config(module: nn.Module) -> Any:
    """The configuration of the text part."""
    return causal_lm(module).config.get_text_config()


class _BlockedHead(torch.autograd.Function):
    """hidden (T, H) -> log-probs (T,), entropy (T,), and with `with_squares` the sum of p^2 (T,); logits live for one block of
    the vocabulary at a time.

    With z = logits / temperature and p = softmax(z): log p_t = z_t - logsumexp(z), entropy = logsumexp(z) - sum p z,
    d log p_t / dz = onehot(t) - p and d entropy / dz = -p (z - logsumexp(z) + entropy). The sums over the vocabulary
    are carried from block to block relative to the largest logit so far. The backward pass computes a block's logits
    again: one more matrix product instead of T x V numbers kept. Blocks of the vocabulary rather than of the rows, so
    that each row of the head's gradient is written once.

    Nothing in the loops waits for an accelerator: they tell it what to do, block after block, as fast as it goes.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, tokens: Tensor,
        temperature: float | Tensor, cap: float | None, max_logits: int, never: Sequence[int], with_squares: bool = False,
        among: Among | None = None,
    ) -> tuple[Tensor, Tensor, Tensor | None]:  # fmt: skip
        ctx.set_materialize_grads(False)
        head = _Head(hidden, weight, bias, temperature, cap, never, among)
        rows = hidden.shape[0]
        chosen = hidden.new_zeros(rows, dtype=head.dtype)
        top = torch.full_like(chosen, -torch.inf)  # largest logit so far
        mass, moment = (
            torch.zeros_like(chosen),
            torch.zeros_like(chosen),
        )  # sums of exp(z - top) and exp(z - top) z
        squares = torch.zeros_like(chosen) if with_squares else None  # sum of those of exp(z - top)
        blocks = _blocks(rows, weight.shape[0], max_logits)
        for block in blocks:
            z, _ = head.logits(block)
            here, place = _in_block(tokens, block)
            chosen = torch.where(here, z.gather(1, place)[:, 0], chosen)
            highest = torch.maximum(top, z.amax(1))
            shrink = torch.exp(top - highest)
            e = torch.sub(z, highest[:, None]).exp_()
            mass = mass * shrink + e.sum(1)
            moment = moment * shrink + torch.linalg.vecdot(e, z)
            squares = None if squares is None else squares * shrink**2 + torch.linalg.vecdot(e, e)
            top = highest
        total = top + mass.log()
        entropy = total - moment / mass
        ctx.save_for_backward(hidden, weight, bias, tokens, total, entropy)
        ctx.options, ctx.blocks = (temperature, cap, never, among), blocks
        return chosen - total, entropy, None if squares is None else squares / mass**2

    @staticmethod
    def backward(
        ctx: Any, grad_value: Tensor | None, grad_entropy: Tensor | None, _of_squares: None
    ) -> tuple[Tensor | None, ...]:
        hidden, weight, bias, tokens, total, entropy = ctx.saved_tensors
        temperature, *_ = ctx.options
        head = _Head(hidden, weight, bias, *ctx.options)
        grad_hidden = torch.zeros_like(hidden, dtype=head.dtype)
        grad_weight = torch.empty_like(weight) if ctx.needs_input_grad[1] else None
        grad_bias = torch.empty_like(bias) if bias is not None and ctx.needs_input_grad[2] else None
        grad_value = torch.zeros_like(total) if grad_value is None else grad_value
        if grad_entropy is not None and not _counts(grad_entropy):
            grad_entropy = None
        for block in ctx.blocks:
            z, slope = head.logits(block)
            p = torch.sub(z, total[:, None]).exp_()
            if grad_entropy is not None:
                grad = p * (z - (total - entropy)[:, None])
                grad = grad.mul_(-grad_entropy[:, None]).addcmul_(p, grad_value[:, None], value=-1)
            else:
                grad = p.mul_(-grad_value[:, None])
            here, place = _in_block(tokens, block)
            # Minus 0 is the number that changes none, whatever its sign.
            grad.scatter_add_(1, place, torch.where(here, grad_value, -0.0)[:, None])
            if slope is not None:
                grad *= slope
            if _divides(temperature):
                grad /= temperature
            head.add_gradients(grad, block, grad_hidden, grad_weight)
            if grad_bias is not None:
                grad_bias[block] = grad.sum(0)
        return grad_hidden.to(hidden.dtype), grad_weight, grad_bias, *[None] * (len(ctx.needs_input_grad) - 3)


class _Head:
    """The output head in float32 (float64 for a float64 model), whatever type the model computes in.

    Where a device can, bfloat16 matrices are multiplied as they are and give float32 (models/products.py): logits are then those
    of float32 matrices to 1e-5 of the largest. For the two products of the backward pass the gradient of the logits is rounded
    to bfloat16, 2^-9 of each number at most. The gradient of a row of logits adds up to 0 or nearly so over the vocabulary, and what it is
    rounded by does not: times the mean of the head's rows, which may be far longer than what they differ by, that would be percents of
    the hidden states' gradient. So the mean is given what the rounding took from the sum. Gradients are then within 3 x 2^-9, 0.6 %, of those
    of float32 matrices (in norm, each result rounded as well), 0.25 % as a rule, while what the rows differ by, or the hidden states, do not
    cancel too.

    A CPU has no product of bfloat16 matrices that gives float32. Where it has instructions for those that give bfloat16, the product for
    the weights' gradient is made so, and that for the hidden states' is not: log-probs and hidden states' gradients do not change, the
    weights' is within the same bound.
    """

    def __init__(
        self,
        hidden: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        temperature: float | Tensor,
        cap: float | None,
        never: Sequence[int] = (),
        among: Among | None = None,
    ) -> None:
        """`temperature`: one for all rows, or (T, 1). `never`: tokens of probability 0, and so are those that `among` leaves out."""
        self.dtype = torch.float64 if hidden.dtype == torch.float64 else torch.float32
        self._wide = multiplies_widely(hidden, weight)
        self._half = hidden if not self._wide and multiplies_halves(hidden, weight) else None
        self.hidden, self.weight, self.bias = hidden if self._wide else hidden.to(self.dtype), weight, bias
        self.temperature, self.cap, self.never, self.among = temperature, cap, never, among
        self._mean: Tensor | None = None

    def rows(self, block: slice) -> Tensor:
        """The head's weights for a block of the vocabulary, in the type they are multiplied in."""
        return self.weight[block] if self._wide else self.weight[block].to(self.dtype)

    def add_gradients(self, grad: Tensor, block: slice, of_hidden: Tensor, of_weight: Tensor | None) -> None:
        """From that of a block's logits, before temperature and cap: added to that of the hidden states, written to the weights'."""
        if self._wide:
            exact, grad = grad, grad.to(self.hidden.dtype)
            of_hidden += wide_product(grad, self.rows(block))
            of_hidden.addr_(exact.sum(1) - grad.sum(1, dtype=exact.dtype), self._mean_row())
        else:
            of_hidden.addmm_(grad, self.rows(block))
        if of_weight is not None:
            states = self.hidden if self._half is None else self._half
            of_weight[block] = grad.to(states.dtype).t() @ states

    def _mean_row(self) -> Tensor:
        """(H,): the mean of the head's weights over the vocabulary; kept from the first block on."""
        if self._mean is None:
            self._mean = self.weight.mean(0, dtype=self.dtype)
        return self._mean

    def logits(self, block: slice) -> tuple[Tensor, Tensor | None]:
        """Logits over the temperature, soft-capped where the model does so, and then the slope of the cap."""
        bias = None if self.bias is None else self.bias[block].to(self.dtype)
        if self._wide:
            z = wide_product(self.hidden, self.rows(block).t())
            z = z if bias is None else z.add_(bias)
        else:
            z = linear(self.hidden, self.rows(block), bias)
        slope = None
        if self.cap is not None:
            bent = torch.tanh(z / self.cap)
            z, slope = self.cap * bent, 1 - bent**2
        if _divides(self.temperature):
            z.div_(self.temperature)
        for token in self.never:
            if block.start <= token < block.stop:
                z[:, token - block.start] = IMPOSSIBLE
        if self.among is not None:
            z.masked_fill_(self.among.left_out(block), IMPOSSIBLE)
        return z, slope


def _divides(temperature: float | Tensor) -> bool:
    return isinstance(temperature, Tensor) or temperature != 1.0


def _blocks(rows: int, vocabulary: int, max_logits: int) -> list[slice]:
    width = max(1, min(vocabulary, max_logits // max(1, rows)))
    return [slice(start, min(start + width, vocabulary)) for start in range(0, vocabulary, width)]


def _in_block(tokens: Tensor, block: slice) -> tuple[Tensor, Tensor]:
    """Whether a row's token lies in the block, (T,), and its place there, (T, 1); some place in it for the others."""
    here = (tokens >= block.start) & (tokens < block.stop)
    return here, (tokens - block.start).clamp_(0, block.stop - block.start - 1)[:, None]


def _counts(grad: Tensor) -> bool:
    """Whether any of it is not 0; an accelerator is not asked, which would have to be waited for."""
    return grad.device.type != "cpu" or bool(grad.any())
