"""DiffusionNFT against the equation of its paper in plain Python, and against the factors of its published code over a network of diffusers."""

from __future__ import annotations

import random
from dataclasses import replace

import pytest
import torch

from lightrft.algorithms.requirements import build_for
from lightrft.algorithms.trust_regions import diffusion_nft
from lightrft.config import AlgorithmConfig, Config, DenoiseConfig, RolloutConfig, UpdateConfig, layers
from lightrft.models.flows import divergence, logprob, match
from lightrft.testing import make_batch
from lightrft.utils.imports import resolve

LEVEL = 0.5**0.5


def paper(guess, old, true, advantage, beta, bound):
    """(bound / beta) (r |v_plus - v|^2 + (1 - r) |v_minus - v|^2), squares being means over the numbers of a state."""
    r = 0.5 + 0.5 * max(-1.0, min(1.0, advantage / bound))
    plus = minus = 0.0
    for g, o, v in zip(guess, old, true, strict=True):
        plus += ((1 - beta) * o + beta * g - v) ** 2 / len(true)
        minus += ((1 + beta) * o - beta * g - v) ** 2 / len(true)
    return bound / beta * (r * plus + (1 - r) * minus)


def columns(guess, old, true, level):
    """Log-probs under new and old weights and how far they are apart, (T,), as the model says them with likelihood=mean."""
    s, numbers = torch.ones(len(guess), 1, dtype=guess.dtype), guess.shape[1]
    new, before = (match(true, v, s, s, level, s) for v in (guess, old))
    return [x / numbers for x in (logprob(true, new), logprob(true, before), divergence(new, old))]


@pytest.mark.parametrize(("beta", "bound"), [(1.0, 5.0), (0.1, 2.0), (2.5, 1.0)])
def test_it_is_the_equation_of_the_paper_up_to_what_no_weight_changes(beta, bound):
    draw = random.Random(1)
    rows = [[[draw.gauss(0, 1) for _ in range(6)] for _ in range(3)] for _ in range(5)]
    guess, old, true = (torch.tensor([row[k] for row in rows], dtype=torch.float64) for k in range(3))
    advantages = [0.0, 0.7, -0.4, 9.0, -9.0]
    guess.requires_grad_(True)
    for level in (LEVEL, 2.0):
        new, before, moved = columns(guess, old, true, level)
        batch = make_batch([5], old=before, advantages=torch.tensor(advantages, dtype=torch.float64))
        batch.moved = moved
        found = diffusion_nft(new, batch, AlgorithmConfig(), beta=beta, advantage_bound=bound).loss
        weight = 1 / (2 * level**2)
        for k, advantage in enumerate(advantages):
            theirs = paper(guess[k].tolist(), old[k].tolist(), true[k].tolist(), advantage, beta, bound)
            still = paper(old[k].tolist(), old[k].tolist(), true[k].tolist(), advantage, beta, bound)
            assert found[k].item() == pytest.approx(weight * (theirs - still), rel=1e-9, abs=1e-12)
        (ours,) = torch.autograd.grad(found.sum(), guess)
        r = 0.5 + 0.5 * (torch.tensor(advantages, dtype=torch.float64) / bound).clamp(-1, 1)[:, None]
        plus, minus = (1 - beta) * old + beta * guess, (1 + beta) * old - beta * guess
        written = bound / beta * (r * (plus - true) ** 2 + (1 - r) * (minus - true) ** 2).mean(1).sum()
        (right,) = torch.autograd.grad(written, guess)
        torch.testing.assert_close(ours, weight * right, rtol=1e-9, atol=1e-12)


def test_by_hand():
    """One number: v = 1, old 0, new 0.5, beta 1, bound 2, A = 1, so r = 3/4: 2 (3/4 (0.5 - 1)^2 + 1/4 (-0.5 - 1)^2) - 2 (1 - 0)^2 = 1.5 - 2."""
    new, before, moved = columns(*(torch.tensor([[x]], dtype=torch.float64) for x in (0.5, 0.0, 1.0)), LEVEL)
    batch = make_batch([1], old=before, advantages=torch.tensor([1.0], dtype=torch.float64))
    batch.moved = moved
    terms = diffusion_nft(new, batch, AlgorithmConfig(), beta=1.0, advantage_bound=2.0)
    assert terms.loss.tolist() == pytest.approx([-0.5])
    assert terms.metrics["ratio/mean"].item() == pytest.approx(2.718281828**0.75)  # (1 - 0)^2 - (0.5 - 1)^2


@pytest.mark.parametrize(("advantage", "gradient"), [(5.0, 2.0), (1.0, -6.0), (-5.0, -18.0)])
def test_a_log_ratio_of_a_whole_picture_keeps_its_gradient_however_large_it_is(advantage, gradient):
    """With likelihood=sum of 64 numbers, v = 0, v_old = 1, v_new = 0.2: log ratio 64 (1 - 0.04) > 20. By the paper 5 (r g_plus + (1 - r) g_minus)
    of each number, g_plus = 2 v_plus = 0.4 and g_minus = -2 v_minus = -2 (2 - 0.2) = -3.6, r = (1 + A / 5) / 2."""
    guess = torch.full((1, 64), 0.2, dtype=torch.float64, requires_grad=True)
    old, true = torch.ones(1, 64, dtype=torch.float64), torch.zeros(1, 64, dtype=torch.float64)
    new, before, moved = (64 * column for column in columns(guess, old, true, LEVEL))
    assert (new - before).item() == pytest.approx(64 * 0.96)
    batch = make_batch([1], old=before, advantages=torch.tensor([advantage], dtype=torch.float64))
    batch.moved = moved
    terms = diffusion_nft(new, batch, AlgorithmConfig(), beta=1.0, advantage_bound=5.0)
    terms.loss.sum().backward()
    assert guess.grad.tolist()[0] == pytest.approx([gradient] * 64)
    assert all(torch.isfinite(value).all() for value in terms.metrics.values())


def test_what_is_not_chosen_has_no_loss_and_no_gradient():
    new = torch.tensor([0.1, 0.2], requires_grad=True)
    batch = make_batch([2], mask=[True, False], old=torch.zeros(2), advantages=torch.tensor([1.0, torch.nan]))
    batch.moved = torch.tensor([0.3, torch.nan])
    diffusion_nft(new, batch, AlgorithmConfig()).loss.sum().backward()
    assert new.grad.tolist() == [-1.0, 0.0]


def settings(**changes):
    denoise = DenoiseConfig(noise="match", level=LEVEL, keep_means=True)
    plain = {
        "rollout": RolloutConfig(engine="denoise", denoise=denoise),
        "algorithm": AlgorithmConfig(loss="diffusion_nft"),
        "update": UpdateConfig(num_minibatches=2),
    }
    return Config(**{**plain, **changes})


def test_what_it_cannot_do_without_is_asked_for_by_name():
    build_for(settings(), resolve)
    build_for(layers.load(["digits_sd3", "diffusion_nft"], Config), resolve)
    with pytest.raises(ValueError, match=r"keep_means=false. Set rollout.denoise.keep_means=true and"):
        build_for(settings(rollout=RolloutConfig()), resolve)
    with pytest.raises(ValueError, match=r"keep_means=true has no effect with algorithm.loss=clipped"):
        build_for(settings(algorithm=AlgorithmConfig()), resolve)
    with pytest.raises(ValueError, match=r"update.num_minibatches=1 .* no ratio leaves 1"):
        build_for(settings(update=UpdateConfig()), resolve)
    with pytest.raises(ValueError, match=r"algorithm.options.beta=0: must be"):
        build_for(settings(algorithm=AlgorithmConfig(loss="diffusion_nft", options={"beta": 0.0})), resolve)
    with pytest.raises(ValueError, match=r"rollout.denoise.keep_means=true with rollout.denoise.noise=sde: .* Set rollout.denoise.noise=match, or leave rollout.denoise.keep_means out"):  # fmt: skip
        DenoiseConfig(keep_means=True)


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """A tiny Stable Diffusion 3, what it drew, and the batch of that."""
    pytest.importorskip("diffusers", reason="diffusers is not installed: pip install diffusers scikit-learn")
    from lightrft.config import ModelConfig, TaskConfig
    from lightrft.trainer.batching import pack
    from lightrft.trainer.rollout import rollout
    from lightrft.types import Sampling
    from tests.pipelines import made, prompts, sd3_pipeline

    folder = tmp_path_factory.mktemp("sd3") / "pipeline"
    sd3_pipeline().save_pretrained(folder)
    denoise = DenoiseConfig(steps=5, first=1, max_text_tokens=8, noise="match", level=LEVEL, keep_means=True)
    kind, module, engine = made(
        settings(
            model=ModelConfig(path=str(folder)),
            rollout=RolloutConfig(engine="denoise", denoise=denoise),
            tasks=TaskConfig(train={"digits": 1.0}),
        )
    )
    groups = rollout(engine, prompts(kind, ["a two", "nine"]), Sampling(n=2, seed=5), kind.processor)
    answers = [t for group in groups for t in group]
    return kind, module, engine, answers, pack(answers, layout=kind.layout)


def test_its_gradient_is_that_of_the_published_factors_over_the_network_of_diffusers(drawn):
    kind, module, engine, answers, batch = drawn
    levels = engine._noisy.levels.before
    with torch.no_grad():
        found = kind.logprobs(module, batch, kind.config)
    torch.testing.assert_close(found.values, batch.behavior, rtol=0, atol=1e-5)
    assert found.moved.max() < 1e-10, "nothing has moved since"
    assert batch.inputs.states.shape[1] == 3

    def guess(t, k):
        time = 1000 * levels[t.token_ids[k]][None]
        return module(hidden_states=t.states[k, :1], timestep=time, return_dict=False, **t.prompt.media)[0][0]

    old = [[guess(t, k).detach() for k in range(len(t))] for t in answers]
    began = {name: p.detach().clone() for name, p in module.named_parameters()}
    g = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for p in module.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=g))
    advantages = [1.5, -0.7, 8.0, -8.0]
    batch.old = found.values
    batch.advantages = torch.tensor(
        [a for a, t in zip(advantages, answers, strict=True) for _ in range(len(t))]
    )
    now = kind.logprobs(module, batch, kind.config)
    batch.moved = now.moved
    diffusion_nft(now.values, batch, AlgorithmConfig(), beta=0.5).loss.mean().backward()
    ours = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    module.zero_grad()
    losses = []
    for t, before, advantage in zip(answers, old, advantages, strict=True):
        for k in range(len(t)):
            true, forward = t.states[k, 1], guess(t, k)
            r = min(max(advantage / 5 / 2 + 0.5, 0), 1)
            positive = 0.5 * forward + (1 - 0.5) * before[k]
            negative = (1 + 0.5) * before[k] - 0.5 * forward
            plus, minus = ((x - true).pow(2).mean() for x in (positive, negative))
            losses.append((r * plus / 0.5 + (1 - r) * minus / 0.5) * 5)
    torch.stack(losses).mean().backward()
    for name, gradient in ours.items():
        expected = module.get_parameter(name).grad
        most = float(expected.abs().max())
        assert torch.allclose(gradient, expected, rtol=1e-3, atol=1e-4 * most + 1e-8), name
    with torch.no_grad():
        for name, p in module.named_parameters():
            p.copy_(began[name])


def test_a_response_from_before_means_were_kept_is_refused(drawn):
    kind, _, _, answers, _ = drawn
    short = replace(answers[0], states=answers[0].states[:, :2])
    with pytest.raises(ValueError, match="rollout.denoise.keep_means=true: they need 3 states of each step"):
        kind.layout([short], True)
