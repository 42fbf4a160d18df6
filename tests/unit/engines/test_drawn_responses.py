"""What responses that are pictures hold, how they are told apart, and which faults of other implementations cannot happen to them."""

from __future__ import annotations

import dataclasses

import pytest
import torch

pytest.importorskip("diffusers", reason="diffusers is not installed: pip install diffusers scikit-learn")

from lightrft.algorithms.algorithm import build
from lightrft.build.memory import build_memory_plan
from lightrft.config import AlgorithmConfig
from lightrft.strategy.memory import Phase
from lightrft.trainer.batching import pack
from lightrft.trainer.rollout import needs_old, rollout
from lightrft.types import Sampling
from lightrft.utils.imports import resolve
from tests.pipelines import made, prompts
from tests.unit.engines.test_denoise import WORDS, folder, settings

__all__ = ["folder"]


def drawn(folder, words=WORDS, n=4, **denoise):
    kind, module, engine = made(settings(folder, **denoise))
    groups = rollout(engine, prompts(kind, words), Sampling(n=n, seed=1), kind.processor)
    return kind, module, engine, [t for group in groups for t in group]


@pytest.mark.parametrize("options", [{}, {"window": 2}, {"likelihood": "normed"}])
def test_a_response_holds_its_states_and_the_conditions_of_its_prompt_are_there_once(folder, options):
    """4 bytes x numbers of a latent x states of the steps that noise entered, and no larger tensor behind them."""
    kind, _, engine, answers = drawn(folder, **options)
    numbers = torch.Size(kind.processor.shape).numel()
    for t in answers:
        assert t.states.shape[:2] == (len(t), engine.config.kept)
        assert t.states.untyped_storage().nbytes() == 4 * numbers * len(t) * engine.config.kept
        assert t.reference is None
    for name in answers[0].prompt.media:
        assert len({t.prompt.media[name].data_ptr() for t in answers}) == len(WORDS)


def test_text_encoders_read_a_text_once_however_often_it_is_asked_for(folder, monkeypatch):
    kind, _, engine = made(settings(folder))
    asked = prompts(kind, WORDS)
    reads, given = [], type(kind.pipeline).asked

    def counted(pipeline, text, config):
        reads.append(text)
        return given(pipeline, text, config)

    monkeypatch.setattr(type(kind.pipeline), "asked", counted)
    for seed in range(3):
        engine.generate([dataclasses.replace(p, media={}) for p in asked], Sampling(n=2, seed=seed))
    assert reads == []
    prompts(kind, ["a three", "a three"])
    assert reads == ["a three"]


def test_the_vae_is_on_the_device_in_the_rollout_phase_alone(folder):
    _, _, engine = made(settings(folder))
    rows = build_memory_plan({}, engine, {}, torch.device("cpu"))._rows
    (phases,) = (phases for name, (_, phases) in rows.items() if name == "engine vae")
    assert set(phases) == {Phase.ROLLOUT}


def test_two_draws_of_one_text_are_two_groups(folder):
    """Not found by their text, as in published code, where they would share a mean."""
    kind, _, _, answers = drawn(folder, ("a two", "a two"), n=2)
    assert [t.group for t in answers] == [0, 0, 1, 1]
    for t, reward in zip(answers, (0.0, 1.0, 5.0, 9.0), strict=True):
        t.reward = reward
    batch = pack(answers, layout=kind.layout)
    algorithm = build(AlgorithmConfig(advantage="group_mean"), resolve)
    algorithm.compute_advantages(batch, lambda x: x)
    assert [x[0].item() for x in batch.advantages.split([len(t) for t in answers])] == [-0.5, 0.5, -2.0, 2.0]


def test_in_bfloat16_states_are_float32_and_every_ratio_begins_at_one(folder):
    """Read in another order and batch. States kept in bfloat16, as published code has them, would have smaller log-probs than at sampling."""
    kind, module, engine = made(settings(folder, likelihood="mean"))
    module.bfloat16()
    engine.config = dataclasses.replace(engine.config, max_sequences=5)
    groups = rollout(engine, prompts(kind, WORDS), Sampling(n=8, seed=1), kind.processor)
    answers = [t for group in groups for t in group]
    assert {t.states.dtype for t in answers} == {torch.float32}

    def moved(answers):
        batch = pack(answers[::-1], layout=kind.layout)
        with torch.no_grad():
            return kind.logprobs(module, batch, kind.config).values - batch.behavior

    assert moved(answers).abs().max() < 1e-5
    rounded = [dataclasses.replace(t, states=t.states.bfloat16().float()) for t in answers]
    assert moved(rounded).mean() < -1e-5


def test_with_one_update_the_log_probs_at_sampling_take_no_pass_of_their_own(folder):
    config = settings(folder)
    algorithm = build(config.algorithm, resolve)
    for count, needed in ((1, False), (2, True)):
        update = dataclasses.replace(config.update, num_minibatches=count)
        assert needs_old(dataclasses.replace(config, update=update), algorithm) is needed
