"""Held-out responses as they are saved for people: what each is, under which number it was measured, and what was right."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from lightrft.algorithms.policy_preference import POLICY_LOSSES
from lightrft.config import (
    DPOConfig,
    ModelConfig,
    NativeEngineConfig,
    OptimizerConfig,
    SamplingLogConfig,
    SFTConfig,
    SFTLogConfig,
    UpdateConfig,
)
from lightrft.console.web import answers
from lightrft.datasets.comparisons import Side
from lightrft.datasets.conversations import Answer
from lightrft.engines.native import NativeEngine
from lightrft.models.source import Source
from lightrft.models.words import dummy_answer
from lightrft.parallel.status import STATUS
from lightrft.parallel.world import World
from lightrft.runs import trajectories
from lightrft.runs.layout import EvaluationFolder, RunFolder
from lightrft.runs.reader import Run
from lightrft.strategy.memory import MemoryPlan
from lightrft.strategy.single import SingleTrainable
from lightrft.testing import tiny_processor
from lightrft.trainer.batching import Batching
from lightrft.trainer.held_out import HeldOutSamples
from lightrft.trainer.offline import HeldOut, OfflineTrainer
from lightrft.trainer.policy_preferences import OUTPUT, PolicyPreferences
from lightrft.trainer.run import Journal
from lightrft.trainer.sampler import Sampler
from lightrft.trainer.sft import Imitation
from lightrft.types import Prompt
from lightrft.utils.interrupt import Interrupt


@pytest.fixture(autouse=True)
def _before_the_first_step(monkeypatch):
    """Other tests of this process may have taken steps."""
    monkeypatch.setattr(STATUS, "step", 0)


@dataclass
class Listening(PolicyPreferences):
    """Notes the number of every group that it is asked for."""

    groups: list[int] = field(default_factory=list)

    def responses(self, prompt, group):
        self.groups.append(group)
        return super().responses(prompt, group)


def preferring(loss="simpo", **settings):
    return Listening(DPOConfig(loss=loss, **settings), partial(POLICY_LOSSES[loss]))


def trainer(folder, objective, tasks, *, opener=lambda prompt: prompt, log=None, sampled_tokens=0):
    """All that looks at held-out prompts, around a small random model."""
    world, plan = World(), MemoryPlan(lambda: 0)
    module = Source(ModelConfig(path="random:llama")).full()
    model, processor = SingleTrainable(module, OptimizerConfig(), 1), tiny_processor()
    blank = dummy_answer(processor.blank())
    outputs = [OUTPUT] if isinstance(objective, PolicyPreferences) else []
    sampler = None
    if sampled_tokens:
        engine = NativeEngine(module, processor.stop_ids, processor.text, NativeEngineConfig())
        sampler = Sampler(engine, model, plan, world)
    held_out = [HeldOut(name, prompts, 1.0) for name, prompts in tasks.items()]
    return OfflineTrainer(
        config=objective.config, objective=objective, world=world, memory_plan=plan, model=model,
        batching=Batching(UpdateConfig(), world, torch.device("cpu"), blank, bool(outputs), outputs),
        prompts=SimpleNamespace(open=opener), held_out=held_out, journal=Journal(folder, None, None),
        interrupt=Interrupt(world.max), samples=HeldOutSamples(log or SFTLogConfig(), processor, sampler, sampled_tokens),
    )  # fmt: skip


def asked(name, target, **changes):
    prompt = Prompt(name, [72, 105], [{"role": "user", "content": "Hi"}], target, "test")
    return replace(prompt, **changes)


def side(tokens, grade, **more):
    return Side(tokens, {OUTPUT: grade}, [True] * len(tokens), **more)


def pair(name, tokens=(65, 66)):
    return asked(name, [side([n] * 3, float(place)) for place, n in enumerate(tokens)])


@pytest.fixture
def picture(tmp_path):
    image = pytest.importorskip("PIL.Image")
    image.new("RGB", (8, 8), "red").save(tmp_path / "red.png")
    image.new("RGB", (8, 8), "blue").save(tmp_path / "blue.png")
    return tmp_path


def test_order_is_by_what_the_loss_makes_of_a_response_as_the_measured_accuracy_is(tmp_path):
    """The better response is longer, so that its sum is lower and its mean higher."""
    losses = {"simpo": (True, -1.0), "dpo": (False, -10.0)}
    for loss, (is_right, reward) in losses.items():
        objective = preferring(loss)
        prompt = asked("p", [side([65] * 10, 1.0), side([66] * 5, 0.0)])
        found = objective.responses(prompt, 0)
        for t in found:
            t.columns["ref"] = torch.zeros(len(t))
        objective.tell(found, torch.tensor([-1.0] * 10 + [-1.5] * 5))
        assert [t.parts["ordered"] for t in found] == [float(is_right)] * 2
        assert found[0].reward == pytest.approx(reward)
        assert found[0].parts["logp"] == pytest.approx(-10.0)


def test_each_is_measured_under_the_same_number_as_for_the_accuracy_and_saved_under_its_own(tmp_path):
    objective = preferring()
    tasks = {"one": [pair("a"), pair("b"), pair("c")], "two": [pair("d", (67, 68)), pair("e")]}
    learner = trainer(tmp_path, objective, tasks, log=SFTLogConfig(held_out_prompts=2))
    learner.evaluate("before")
    assert objective.groups == [0, 1, 2, 0, 1, 0, 1, 0, 1]
    rows = trajectories.load(tmp_path, 0)
    assert [(row["prompt_id"], row["group"]) for row in rows[::2]] == [("a", 0), ("b", 1), ("d", 2), ("e", 3)]


def test_scores_of_an_evaluation_are_what_was_measured(tmp_path):
    learner = trainer(tmp_path, preferring(), {"one": [pair("a"), pair("b", (67, 68))]})
    found = learner.evaluate("before").values
    told = EvaluationFolder(RunFolder(tmp_path).evaluation).read_report("before")["one"]
    assert told["saved_step"] == 0
    assert told["preference/accuracy"] == found["one/preference/accuracy"]
    imitating = trainer(tmp_path, Imitation(SFTConfig()), {"one": [demonstrated([65, 66])]})
    found = imitating.evaluate("after").values
    assert Run(tmp_path).evaluation("after").scores == {
        "one": {"saved_step": 0, "held_out_nll": found["one"]}
    }


@pytest.mark.parametrize("kind", ["scored", "drawn"])
def test_a_response_that_is_a_picture_is_named_and_copied_and_no_folder_is_written(picture, kind):
    files = [str(picture / name) for name in ("red.png", "blue.png")]

    def one(file, grade):
        if kind == "drawn":
            return side([0], grade, medium=file)
        content = [{"type": "text", "text": "Hi"}, {"type": "image", "image": file}]
        own = asked("p#0", None, messages=[{"role": "user", "content": content}])
        return side([65], grade, prompt=own)

    run = picture / "run"
    prompt = asked("p", [one(file, float(place)) for place, file in enumerate(files)])
    trainer(run, preferring(), {"one": [prompt]}).evaluate("before")
    rows = trajectories.load(run, 0)
    assert [row["response"] for row in rows] == ["[image red.png]", "[image blue.png]"]
    last = [row["messages"][-1] for row in rows]
    assert [(one["role"], one["content"][0]["image"]) for one in last] == [
        ("assistant", "red.png"),
        ("assistant", "blue.png"),
    ]
    assert all((run / "media" / one["content"][0]["copy"]).is_file() for one in last)
    assert str(picture) not in json.dumps(rows)
    (run / "metrics.jsonl").write_text("")
    (group,) = answers.answer([Run(run)], "0/groups/0")["groups"]
    assert [one["text"] for one in group["messages"]] == ["Hi"]
    assert all(one["has_pictures"] for one in group["responses"])


def demonstrated(tokens, finish="stop", **changes):
    return asked("p", Answer(tokens, [True] * len(tokens), finish), **changes)


def test_a_right_response_is_one_and_data_too_long_to_be_said_again_has_no_number(tmp_path):
    """The model's own greedy tokens are the data: whole, as the first part of something longer, and cut off."""
    log = SamplingLogConfig(sampled_tokens=4)
    imitation = Imitation(SFTConfig(log=log))
    first = trainer(tmp_path / "a", imitation, {"one": [demonstrated([65])]}, log=log, sampled_tokens=4)
    first.evaluate("before")
    greedy = trajectories.load(tmp_path / "a", 0)[0]["tokens"]["ids"]
    data = {
        "right": demonstrated(greedy),
        "wrong": demonstrated([*greedy[:-1], greedy[-1] ^ 1]),
        "long": demonstrated([*greedy, 65]),
        "cut": demonstrated(greedy, "length"),
    }
    tasks = {name: [prompt] for name, prompt in data.items()}
    trainer(tmp_path / "b", imitation, tasks, log=log, sampled_tokens=4).evaluate("before")
    rows = [row for row in trajectories.load(tmp_path / "b", 0) if row["origin"] == "sampled"]
    assert [row["reward"] for row in rows] == [1.0, 0.0, None, None]
    assert ["exact" in row["parts"] for row in rows] == [True, True, False, False]


def test_media_are_opened_once_for_both_responses_and_what_cannot_be_is_left_out_of_both(tmp_path):
    seen = []

    def opener(prompt):
        """The second prompt can be read when it is measured, then not, then again."""
        seen.append(prompt.id)
        return None if prompt.id == "b" and seen.count("b") == 2 else prompt

    tasks = {"one": [demonstrated([65], id="a"), demonstrated([66], id="b")]}
    learner = trainer(tmp_path, Imitation(SFTConfig()), tasks, opener=opener, sampled_tokens=2)
    learner.evaluate("before")
    assert seen == ["a", "b", "a", "b"]
    assert [row["prompt_id"] for row in trajectories.load(tmp_path, 0)] == ["a", "a"]
