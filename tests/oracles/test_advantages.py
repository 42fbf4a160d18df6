"""The advantage estimators against slow loops written from the papers, in plain Python."""

import itertools
import math
import random
import statistics

import pytest
import torch

from lightrft.algorithms.advantages import ADVANTAGES, explained_variance, whiten
from lightrft.algorithms.shaping import token_rewards
from lightrft.config import AlgorithmConfig
from lightrft.testing import make_batch

PENALTY = 0.05


def group_norm(rewards, i):
    mean = sum(rewards) / len(rewards)
    variance = sum((r - mean) ** 2 for r in rewards) / (len(rewards) - 1)
    return (rewards[i] - mean) / (math.sqrt(variance) + 1e-6)


def group_mean(rewards, i):
    return rewards[i] - sum(rewards) / len(rewards)


def leave_one_out(rewards, i):
    others = [r for j, r in enumerate(rewards) if j != i]
    return rewards[i] - sum(others) / len(others)


def by_mean(rewards, i):
    """MaxRL: of a group without a success nothing is learned."""
    mean = statistics.fmean(rewards)
    return (rewards[i] - mean) / mean if max(rewards) > min(rewards) else 0.0


def by_pairs(rewards, i):
    """Pass@2: whether a pair has a right response, over the pairs with this one, beside all pairs."""
    pairs = itertools.combinations(range(len(rewards)), 2)
    solved = {pair: float(any(rewards[j] >= 0.5 for j in pair)) for pair in pairs}
    deviation = statistics.pstdev(solved.values())
    own = statistics.fmean(value for pair, value in solved.items() if i in pair)
    return (own - statistics.fmean(solved.values())) / deviation if deviation > 1e-9 else 0.0


COMPARING = {
    "group_norm": group_norm,
    "group_mean": group_mean,
    "leave_one_out": leave_one_out,
    "maxrl": by_mean,
    "pass_at_k": by_pairs,
}


def length_weighted_mean(rewards, lengths, i):
    """OPO: sum of length x reward over sum of lengths."""
    total = sum(lengths)
    baseline = sum(n * r for n, r in zip(lengths, rewards, strict=True)) / total if total else None
    return 0.0 if baseline is None else rewards[i] - baseline


def by_token(answer, siblings, penalised):
    """OTB: for each token the siblings' rewards still to come at the same place, weighted by the uncertainty up to there."""
    baseline = statistics.fmean(a.total(penalised) for a in siblings)
    found = [0.0] * len(answer.mask)
    for place, t in enumerate(t for t, m in enumerate(answer.mask) if m):
        weights, worths = [], []
        for sibling in siblings:
            chosen = [u for u, m in enumerate(sibling.mask) if m]
            if len(chosen) > place:
                energy = [1 - 2 * math.exp(sibling.old[u]) + sibling.squares[u] for u in chosen]
                weights.append(sum(energy[: place + 1]))
                worths.append(sum(sibling.rewards(penalised)[u] for u in chosen[place:]))
        own = sum(answer.rewards(penalised)[u] for u, m in enumerate(answer.mask) if m and u >= t)
        if len(weights) > 1:
            found[t] = own - sum(w * g for w, g in zip(weights, worths, strict=True)) / sum(weights)
        else:
            found[t] = own - baseline
    return found


PART_WEIGHTS = (1.0, 0.5, -2.0)


def by_part(answer, siblings):
    """GDPO: each part by its own mean and sample deviation, then added with its weight."""
    total = 0.0
    for k, weight in enumerate(PART_WEIGHTS):
        column = [sibling.parts[k] for sibling in siblings]
        if max(column) > min(column):
            total += weight * (answer.parts[k] - statistics.mean(column)) / statistics.stdev(column)
    return total


class Answer:
    """One answer with everything an estimator may look at, as lists."""

    def __init__(self, draw, group):
        length = draw.randrange(0, 6)
        self.group = group
        self.score = draw.choice([0.0, 1.0, draw.uniform(-2, 2)])
        self.mask = [draw.random() < 0.8 for _ in range(length)]
        self.old = [-draw.random() for _ in range(length)]
        other = random.Random(length)
        self.squares = [math.exp(2 * x) + other.random() * (1 - math.exp(x)) ** 2 for x in self.old]
        self.ref = [-draw.random() for _ in range(length)]
        self.greedy = draw.uniform(-1, 1)
        self.values = [draw.gauss(0, 1) for _ in range(length)]
        self.turns = [draw.choice([0.0, 1.0, draw.gauss(0, 3)]) for _ in self.turn_ends()]
        self.parts = [draw.choice([0.0, 1.0]), draw.gauss(0, 10), 0.25]

    def turn_ends(self):
        """Places of the last chosen token of each stretch of chosen tokens."""
        return [t for t, m in enumerate(self.mask) if m and not any(self.mask[t + 1 : t + 2])]

    def turn_of(self, t):
        return sum(end < t for end in self.turn_ends())

    def rewards(self, penalised):
        """Score at the last chosen token, minus PENALTY * (log old - log ref) at each."""
        chosen = [t for t, m in enumerate(self.mask) if m]
        rewards = [0.0] * len(self.mask)
        for t in chosen:
            rewards[t] = -PENALTY * (self.old[t] - self.ref[t]) if penalised else 0.0
        if chosen:
            rewards[chosen[-1]] += self.score
        return rewards

    def total(self, penalised):
        return sum(self.rewards(penalised)) if any(self.mask) else self.score


def draw_answers(seed):
    draw = random.Random(seed)
    answers = [Answer(draw, group) for group in (5, 2, 9) for _ in range(draw.randrange(2, 6))]
    draw.shuffle(answers)
    return answers


def laid_end_to_end(answers, algo):
    def column(name):
        return torch.tensor([x for a in answers for x in getattr(a, name)], dtype=torch.float64)

    batch = make_batch(
        [len(a.mask) for a in answers],
        groups=[a.group for a in answers],
        scores=torch.tensor([a.score for a in answers], dtype=torch.float64),
        mask=[m for a in answers for m in a.mask],
        old=column("old"),
        squares=column("squares"),
        ref=column("ref"),
        values=column("values"),
        baselines=torch.tensor([a.greedy for a in answers], dtype=torch.float64),
    )
    batch.grades = torch.tensor([a.parts for a in answers], dtype=torch.float64)
    batch.part_weights = torch.tensor([PART_WEIGHTS] * len(answers), dtype=torch.float64)
    batch.turn_rewards = torch.zeros(batch.num_tokens, dtype=torch.float64)
    begin = 0
    for a in answers:
        for end, reward in zip(a.turn_ends(), a.turns, strict=True):
            batch.turn_rewards[begin + end] = reward
        begin += len(a.mask)
    batch.rewards = token_rewards(batch, algo)
    return batch


def by_turn(answer, siblings, turn):
    """The reward of one turn beside the same turn of the siblings that have one."""
    same = [a.turns[turn] for a in siblings if len(a.turns) > turn]
    if len(same) < 2 or max(same) == min(same):
        return 0.0
    return (answer.turns[turn] - statistics.mean(same)) / (statistics.stdev(same) + 1e-6)


def to_come(answer, penalised, discount=1.0):
    """At each chosen token the rewards from it on, each times the discount to the power of the chosen tokens between."""
    rewards = answer.rewards(penalised)
    chosen = [t for t, m in enumerate(answer.mask) if m]
    result = [0.0] * len(rewards)
    for i, t in enumerate(chosen):
        result[t] = sum(discount**n * rewards[u] for n, u in enumerate(chosen[i:]))
    return result


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("penalised", [False, True])
@pytest.mark.parametrize(
    "name", [name for name in ADVANTAGES if name not in ("gae", "optimal_token_baseline", "optimal_value")]
)
def test_estimators_agree_with_their_papers(name, penalised, seed):
    answers = draw_answers(seed)
    if name == "maxrl":
        penalised = False
        for answer in answers:
            answer.score = abs(answer.score)
    algo = AlgorithmConfig(kl="k1", kl_in="reward", kl_coefficient=PENALTY if penalised else 0.0)
    options = {"k": 2} if name == "pass_at_k" else {}
    advantages, returns = ADVANTAGES[name](laid_end_to_end(answers, algo), algo, **options)
    expected = []
    for answer in answers:
        siblings = [a for a in answers if a.group == answer.group]
        rewards = [a.total(penalised) for a in siblings]
        if name == "group_norm_by_part":
            value = by_part(answer, siblings)
            expected += [value if m else 0.0 for m in answer.mask]
        elif name == "group_norm_by_turn":
            outcome = COMPARING["group_norm"](rewards, siblings.index(answer))
            expected += [
                outcome + by_turn(answer, siblings, answer.turn_of(t)) if m else 0.0
                for t, m in enumerate(answer.mask)
            ]
        elif name == "none":
            expected += [0.0] * len(answer.mask)
        elif name == "reinforce":
            expected += to_come(answer, penalised)
        elif name == "greedy_baseline":
            sums = to_come(answer, penalised)
            expected += [x - answer.greedy if m else 0.0 for x, m in zip(sums, answer.mask, strict=True)]
        elif name == "length_weighted_mean":
            value = length_weighted_mean(rewards, [sum(a.mask) for a in siblings], siblings.index(answer))
            expected += [value if m else 0.0 for m in answer.mask]
        else:
            value = COMPARING[name](rewards, siblings.index(answer))
            expected += [value if m else 0.0 for m in answer.mask]
    assert advantages.tolist() == pytest.approx(expected, abs=1e-9)
    assert returns.tolist() == pytest.approx([x for a in answers for x in to_come(a, penalised)], abs=1e-12)


@pytest.mark.parametrize("seed", range(8))
def test_the_optimal_value_is_taken_off_the_whole_reward(seed):
    answers = draw_answers(seed)  # their `greedy` stands in the column of what they are compared with
    advantages, _ = ADVANTAGES["optimal_value"](
        laid_end_to_end(answers, AlgorithmConfig()), AlgorithmConfig()
    )
    expected = [a.total(False) - a.greedy if m else 0.0 for a in answers for m in a.mask]
    assert advantages.tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("penalised", [False, True])
def test_the_optimal_token_baseline_agrees_with_its_paper(penalised, seed):
    answers = draw_answers(seed)
    algo = AlgorithmConfig(kl="k1", kl_in="reward", kl_coefficient=PENALTY if penalised else 0.0)
    advantages, _ = ADVANTAGES["optimal_token_baseline"](laid_end_to_end(answers, algo), algo)
    expected = [
        x for a in answers for x in by_token(a, [b for b in answers if b.group == a.group], penalised)
    ]
    assert advantages.tolist() == pytest.approx(expected, abs=1e-9)


@pytest.mark.parametrize("seed", range(8))
@pytest.mark.parametrize("discount", [0.0, 0.5, 0.97])
def test_discounted_returns_agree_with_a_plain_sum(discount, seed):
    answers = draw_answers(seed)
    algo = AlgorithmConfig(
        advantage="reinforce", gamma=discount, kl="k1", kl_in="reward", kl_coefficient=PENALTY
    )
    advantages, _ = ADVANTAGES["reinforce"](laid_end_to_end(answers, algo), algo)
    expected = [x for a in answers for x in to_come(a, True, discount)]
    assert advantages.tolist() == pytest.approx(expected, abs=1e-12)


def gae(answer, discount, trace):
    """Schulman et al. 2015: delta_t = r_t + g V_{t+1} - V_t, and A_t = sum over n of (g l)^n delta_{t+n}, at chosen tokens."""
    rewards = answer.rewards(True)
    chosen = [t for t, m in enumerate(answer.mask) if m]
    v = [answer.values[t] for t in chosen] + [0.0]
    deltas = [rewards[t] + discount * v[i + 1] - v[i] for i, t in enumerate(chosen)]
    result = [0.0] * len(rewards)
    for i, t in enumerate(chosen):
        result[t] = sum((discount * trace) ** n * delta for n, delta in enumerate(deltas[i:]))
    return result


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("discount", "trace"), [(1.0, 1.0), (1.0, 0.95), (0.9, 0.5), (1.0, 0.0), (0.0, 1.0)])
def test_gae_agrees_with_its_paper(discount, trace, seed):
    answers = draw_answers(seed)
    algo = AlgorithmConfig(
        advantage="gae", gamma=discount, gae_lambda=trace, kl="k1", kl_in="reward", kl_coefficient=PENALTY
    )
    advantages, returns = ADVANTAGES["gae"](laid_end_to_end(answers, algo), algo)
    expected = [x for a in answers for x in gae(a, discount, trace)]
    values = [v if m else 0.0 for a in answers for v, m in zip(a.values, a.mask, strict=True)]
    assert advantages.tolist() == pytest.approx(expected, abs=1e-12)
    assert returns.tolist() == pytest.approx(
        [a + v for a, v in zip(expected, values, strict=True)], abs=1e-12
    )


def test_with_lambda_one_the_return_is_the_reward_still_to_come():
    answers = draw_answers(3)
    algo = AlgorithmConfig(advantage="gae", kl="k1", kl_in="reward", kl_coefficient=PENALTY)
    _, returns = ADVANTAGES["gae"](laid_end_to_end(answers, algo), algo)
    assert returns.tolist() == pytest.approx([x for a in answers for x in to_come(a, True)], abs=1e-12)


@pytest.mark.parametrize("seed", range(4))
def test_explained_variance_agrees_with_two_plain_variances(seed):
    draw = random.Random(seed)
    rows = [(draw.random() < 0.7, draw.gauss(2, 1), draw.gauss(2, 1)) for _ in range(40)]
    mask, values, returns = (
        torch.tensor(column, dtype=kind)
        for column, kind in zip(
            zip(*rows, strict=True), (torch.bool, torch.float64, torch.float64), strict=True
        )
    )

    def variance(xs):
        mean = sum(xs) / len(xs)
        return sum((x - mean) ** 2 for x in xs) / len(xs)

    expected = 1 - variance([r - v for m, v, r in rows if m]) / variance([r for m, _, r in rows if m])
    assert explained_variance(values, returns, mask, lambda x: x) == pytest.approx(expected, abs=1e-12)
    assert explained_variance(returns + 5, returns, mask, lambda x: x) == pytest.approx(1.0)
    assert math.isnan(explained_variance(values, torch.ones_like(values), mask, lambda x: x))


@pytest.mark.parametrize("seed", range(4))
def test_whitening_agrees_with_two_plain_passes(seed):
    draw = random.Random(seed)
    values = [draw.gauss(3, 2) for _ in range(50)]
    mask = [draw.random() < 0.7 for _ in values]
    chosen = [v for v, m in zip(values, mask, strict=True) if m]
    mean = sum(chosen) / len(chosen)
    deviation = math.sqrt(sum((v - mean) ** 2 for v in chosen) / len(chosen))
    expected = [(v - mean) / deviation if m else 0.0 for v, m in zip(values, mask, strict=True)]
    whitened = whiten(torch.tensor(values, dtype=torch.float64), torch.tensor(mask), lambda x: x)
    assert whitened.tolist() == pytest.approx(expected, abs=1e-12)
