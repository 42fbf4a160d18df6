"""What must hold for every advantage, loss and average, in float64 on random batches."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from threading import Barrier

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from lightrft.algorithms.advantages import ADVANTAGES, whiten
from lightrft.algorithms.averaging import denominators, token_weights
from lightrft.algorithms.losses import LOSSES, add_regularisers
from lightrft.algorithms.segments import reverse_scan
from lightrft.algorithms.shaping import token_rewards
from lightrft.algorithms.surveys import SURVEYING
from lightrft.config import AlgorithmConfig
from lightrft.testing import make_batch

AVERAGES = ["token", "sequence", "fixed"]
MAX_TOKENS = 9
COMPARING = [name for name, of in ADVANTAGES.items() if getattr(of, "compares_responses", False)]
SHIFTED = [name for name in COMPARING if name not in ("maxrl", "pass_at_k")]
"""Those that compare rewards, whatever their level."""
PAIRS = [
    *((advantage, "clipped") for advantage in ADVANTAGES),
    *(("group_norm", loss) for loss in LOSSES if loss != "clipped"),
]
"""Every advantage and every loss; one knows nothing of the other."""
OPTIONS = {
    "clip_cov": {"covariance_fraction": 0.2, "covariance_low": 0.0},
    "kl_cov": {"covariance_fraction": 0.2},
}
seeds = st.integers(0, 2**32 - 1)
quick = settings(max_examples=25, deadline=None)


def same(x):
    return x


def random_batch(seed, *, grid=8):
    """Three groups of two to four answers of zero to eight tokens; scores are multiples of 1 / grid."""
    draw = torch.Generator().manual_seed(seed)
    sizes = torch.randint(2, 5, (3,), generator=draw).tolist()
    lengths = torch.randint(0, 9, (sum(sizes),), generator=draw).tolist()
    total = sum(lengths)

    def column(scale):
        return scale * torch.randn(total, generator=draw, dtype=torch.float64)

    return make_batch(
        lengths,
        groups=[g for g, size in enumerate(sizes) for _ in range(size)],
        scores=torch.randint(-2 * grid, 2 * grid, (len(lengths),), generator=draw).double() / grid,
        mask=torch.rand(total, generator=draw) < 0.8,
        old=column(0.5) - 1,
        ref=column(0.5) - 1,
        teacher=column(0.5) - 1,
        behavior=column(0.5) - 1,
        values=column(0.5),
        baselines=torch.rand(len(lengths), generator=draw, dtype=torch.float64),
        turn_rewards=column(0.5),
        moved=column(0.5).square(),
        weights=torch.zeros(total, dtype=torch.float64),
    )


def pick(batch, answers):
    """The batch of only these answers, in this order, with every column they have."""
    where = [torch.nonzero(batch.segments == a)[:, 0] for a in answers]
    tokens = torch.cat([batch.segments[:0], *where])
    names = (
        "mask",
        "old",
        "ref",
        "teacher",
        "values",
        "advantages",
        "marks",
        "returns",
        "rewards",
        "behavior",
        "weights",
        "turn_rewards",
        "moved",
    )
    taken = {name: value[tokens] for name in names if (value := getattr(batch, name)) is not None}
    lengths = [len(tokens) for tokens in where]
    small = make_batch(lengths, groups=batch.groups[answers].tolist(), scores=batch.scores[answers], **taken)
    small.baselines = batch.baselines[answers]
    return small


def with_all_penalties(kl_in):
    """Divergence from a reference and from a teacher, and an entropy bonus."""
    return AlgorithmConfig(
        kl="k3",
        kl_coefficient=0.1,
        kl_in=kl_in,
        entropy_coefficient=0.01,
        teacher_coefficient=0.1,
        teacher_in="loss",
    )


def score(batch, algo, advantage):
    if advantage == "maxrl":  # knows rewards of at least 0 only
        batch.scores, algo = batch.scores.abs(), replace(algo, kl_in="loss")
    batch.rewards = token_rewards(batch, algo)
    options = {"k": 2} if advantage == "pass_at_k" else {}
    batch.advantages, batch.returns = ADVANTAGES[advantage](batch, algo, **options)


def log_probs(parameters, batch):
    """Every token depends on all parameters, as in a model."""
    features = torch.sin(torch.outer(10 * batch.behavior, torch.arange(1, 6).double()))
    return batch.old + 0.3 * features @ parameters


def gradient(batch, algo, loss, *, parts):
    """Of a batch taken in these parts (lists of answers), as the trainer computes it."""
    parameters = torch.linspace(-1, 1, 5, dtype=torch.float64).requires_grad_()
    total = torch.zeros_like(parameters)
    for answers in parts:
        small = pick(batch, answers)
        new = log_probs(parameters, small)
        terms = LOSSES[loss](new, small, algo, **OPTIONS.get(loss, {}))
        terms = add_regularisers(terms, new, small, algo, entropy=new.square())
        total = total + torch.autograd.grad((small.weights * terms.loss).sum(), parameters)[0]
    return total


def survey(batches, algo, loss):
    """What the loss finds out about all of these batches, which are one for each rank."""
    look = getattr(LOSSES[loss], "survey", None)
    if look is None:
        return
    parameters, total = torch.linspace(-1, 1, 5, dtype=torch.float64), sum_over_threads(len(batches))

    def mark(batch):
        batch.marks = look(log_probs(parameters, batch), batch, algo, total, **OPTIONS.get(loss, {}))

    with ThreadPoolExecutor(len(batches)) as ranks:
        list(ranks.map(mark, batches))


def shares(items, draw):
    """The items in random order, cut at random places; some parts may be empty."""
    order = [items[i] for i in torch.randperm(len(items), generator=draw)]
    cuts = sorted(torch.randint(0, len(items) + 1, (3,), generator=draw).tolist())
    return [order[a:b] for a, b in zip([0, *cuts], [*cuts, len(order)], strict=True)]


@pytest.mark.parametrize(
    ("average", "advantage", "loss"),
    [
        (average, *pair)
        for average in AVERAGES
        for pair in PAIRS
        if average == "token" or pair[1] not in SURVEYING
    ],
)
@settings(max_examples=10, deadline=None)
@given(seed=seeds, kl_in=st.sampled_from(["loss", "reward"]))
def test_packing_order_and_ranks_do_not_change_the_gradient(average, advantage, loss, seed, kl_in):
    """One batch in one process, and four ranks that hold whole groups and pack their answers at random."""
    algo = with_all_penalties(kl_in)
    drawn = random_batch(seed)
    draw = torch.Generator().manual_seed(seed)
    groups = [torch.nonzero(drawn.groups == g)[:, 0].tolist() for g in range(3)]
    ranks = [pick(drawn, [a for group in rank for a in group]) for rank in shares(groups, draw)]
    everything = list(range(drawn.num_sequences))

    def update(batches, parts):
        for batch in batches:
            score(batch, algo, advantage)
        survey(batches, algo, loss)
        local = [denominators(batch.mask, batch.segments, batch.num_sequences) for batch in batches]
        counts = [sum(column) for column in zip(*local, strict=True)]
        for batch in batches:
            batch.weights = token_weights(batch, average, MAX_TOKENS, *counts)
        return sum(gradient(batch, algo, loss, parts=parts(batch)) for batch in batches)

    alone = update([drawn], lambda batch: [everything])
    apart = update(ranks, lambda batch: shares(list(range(batch.num_sequences)), draw))
    torch.testing.assert_close(apart, alone, rtol=0, atol=1e-12)


@pytest.mark.parametrize("name", SHIFTED)
@quick
@given(seed=seeds, shift=st.integers(-50, 50))
def test_adding_the_same_to_all_rewards_changes_no_comparison(name, seed, shift):
    algo = AlgorithmConfig()
    plain, shifted = random_batch(seed), random_batch(seed)
    shifted.scores = shifted.scores + shift
    score(plain, algo, name)
    score(shifted, algo, name)
    torch.testing.assert_close(shifted.advantages, plain.advantages, rtol=0, atol=1e-11)


@quick
@given(seed=seeds, scale=st.integers(1, 1000))
def test_group_norm_does_not_see_the_scale_of_rewards(seed, scale):
    algo = AlgorithmConfig()
    plain, scaled = random_batch(seed), random_batch(seed)
    scaled.scores = scaled.scores * scale
    score(plain, algo, "group_norm")
    score(scaled, algo, "group_norm")
    torch.testing.assert_close(scaled.advantages, plain.advantages, rtol=1e-4, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", COMPARING)
@quick
@given(reward=st.floats(-1e6, 1e6), answers=st.integers(4, 40))
def test_equal_rewards_give_exactly_zero(name, dtype, reward, answers):
    reward = abs(reward) if name == "maxrl" else reward
    batch = make_batch([1] * answers, scores=torch.full((answers,), reward, dtype=dtype))
    score(batch, AlgorithmConfig(), name)
    assert batch.advantages.tolist() == [0.0] * answers


@pytest.mark.parametrize("name", COMPARING)
@quick
@given(seed=seeds)
def test_the_advantages_of_a_group_sum_to_zero(name, seed):
    batch = make_batch([1] * 6, scores=torch.rand(6, generator=torch.Generator().manual_seed(seed)).double())
    score(batch, AlgorithmConfig(), name)
    assert abs(batch.advantages.sum().item()) < 1e-12


@pytest.mark.parametrize("known", ["old", "none"])
@quick
@given(seed=seeds)
def test_at_ratio_one_every_loss_has_the_plain_policy_gradient(known, seed):
    algo, batch = AlgorithmConfig(), random_batch(seed)
    score(batch, algo, "group_norm")
    gradients = {}
    for name, loss in LOSSES.items():
        if name in (
            "clip_cov",
            "advantage_regression",
        ):  # leaves out tokens whatever their ratio; reads that to the reference
            continue
        if hasattr(loss, "survey"):
            batch.marks = loss.survey(batch.old, batch, algo, same)
        new = batch.old.clone().requires_grad_()
        at = replace(batch, old=batch.old if known == "old" else None)
        loss(new, at, algo).loss.sum().backward()
        gradients[name] = new.grad
    for gradient_of_loss in gradients.values():
        torch.testing.assert_close(gradient_of_loss, -batch.advantages, rtol=0, atol=1e-13)


@quick
@given(seed=seeds)
def test_the_token_form_of_the_sequence_ratio_has_the_same_gradient(seed):
    """GSPO says so of advantages that are the same for all tokens of an answer."""
    algo, batch = AlgorithmConfig(), random_batch(seed)
    score(batch, algo, "group_mean")
    counts = denominators(batch.mask, batch.segments, batch.num_sequences)
    weights, gradients = token_weights(batch, "sequence", MAX_TOKENS, *counts), []
    for name in ("sequence_clipped", "sequence_clipped_token"):
        new = (batch.old + 0.3 * torch.sin(10 * batch.behavior)).requires_grad_()
        (weights * LOSSES[name](new, batch, algo).loss).sum().backward()
        gradients.append(new.grad)
    torch.testing.assert_close(gradients[0], gradients[1], rtol=0, atol=1e-14)


@pytest.mark.parametrize("average", ["token", "sequence"])
@quick
@given(seed=seeds)
def test_the_weights_sum_to_one(average, seed):
    batch = random_batch(seed)
    tokens, sequences = denominators(batch.mask, batch.segments, batch.num_sequences)
    weights = token_weights(batch, average, MAX_TOKENS, tokens, sequences)
    assert weights.sum().item() == pytest.approx(1.0 if tokens else 0.0, abs=1e-12)
    assert not weights[~batch.mask].any()


@pytest.mark.parametrize(("advantage", "loss"), PAIRS)
@quick
@given(
    seed=seeds,
    kl_in=st.sampled_from(["loss", "reward"]),
    noise=st.sampled_from([1e3, float("nan"), float("inf")]),
)
def test_nothing_outside_the_mask_has_any_influence(advantage, loss, seed, kl_in, noise):
    algo = with_all_penalties(kl_in)
    results = []
    for disturb in (False, True):
        batch = random_batch(seed)
        outside = ~batch.mask if disturb else torch.zeros_like(batch.mask)
        new = torch.where(outside, noise, batch.old + 0.1).requires_grad_()
        entropy = torch.where(outside, noise, 1.0).double()
        for name in ("old", "ref", "behavior", "turn_rewards", "moved"):
            setattr(batch, name, torch.where(outside, -noise, getattr(batch, name)))
        score(batch, algo, advantage)
        batch.advantages = torch.where(outside, noise, batch.advantages)
        if hasattr(LOSSES[loss], "survey"):
            marks = LOSSES[loss].survey(new.detach(), batch, algo, same, **OPTIONS.get(loss, {}))
            batch.marks = torch.where(outside, noise, marks)
        terms = add_regularisers(LOSSES[loss](new, batch, algo), new, batch, algo, entropy=entropy)
        terms.loss.sum().backward()
        results.append(
            [
                terms.loss.tolist(),
                new.grad.tolist(),
                batch.returns.tolist(),
                terms.metrics["approx_kl"].tolist(),
            ]
        )
    assert results[0] == results[1]


@quick
@given(seed=seeds, cut=st.integers(0, 40))
def test_whitened_values_have_mean_zero_and_deviation_one_over_both_ranks(seed, cut):
    draw = torch.Generator().manual_seed(seed)
    values = 5 + 3 * torch.randn(40, generator=draw, dtype=torch.float64)
    mask = torch.rand(40, generator=draw) < 0.7
    mask[:2] = True
    whole = whiten(values, mask, same)
    assert whole[mask].mean().item() == pytest.approx(0.0, abs=1e-12)
    assert whole[mask].std(correction=0).item() == pytest.approx(1.0, abs=1e-12)
    with ThreadPoolExecutor(2) as ranks:
        total = sum_over_threads(2)
        parts = ranks.map(whiten, values.split([cut, 40 - cut]), mask.split([cut, 40 - cut]), [total, total])
        torch.testing.assert_close(torch.cat(list(parts)), whole, rtol=0, atol=1e-12)


def sum_over_threads(size):
    """An all-reduce between threads that stand for ranks."""
    barrier, sent = Barrier(size), []

    def total(x):
        sent.append(x)
        barrier.wait()
        result = sum(sent)
        if barrier.wait() == 0:
            sent.clear()
        barrier.wait()
        return result

    return total


@quick
@given(seed=seeds, discount=st.floats(0, 1))
def test_the_scan_agrees_with_a_loop_from_the_end(seed, discount):
    batch = random_batch(seed)
    values, segments = batch.old.tolist(), batch.segments.tolist()
    expected, ahead = [0.0] * len(values), 0.0
    for t in reversed(range(len(values))):
        last = t + 1 == len(values) or segments[t + 1] != segments[t]
        ahead = values[t] + (0.0 if last else discount * ahead)
        expected[t] = ahead
    assert reverse_scan(batch.old, batch.segments, discount).tolist() == pytest.approx(expected, abs=1e-12)


@quick
@given(seed=seeds)
def test_the_scan_of_an_answer_does_not_depend_on_its_neighbours_bit_for_bit(seed):
    batch = random_batch(seed)
    packed = reverse_scan(batch.old, batch.segments, 0.97)
    for a in range(batch.num_sequences):
        alone = pick(batch, [a])
        assert reverse_scan(alone.old, alone.segments, 0.97).tolist() == packed[batch.segments == a].tolist()
