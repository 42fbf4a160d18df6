import hashlib
import logging
import math
import random

import numpy
import pytest
import torch

from lightrft.config import LogConfig
from lightrft.runs.capsule import MOST_UNASKED, Capsules, compare, read, weights_hash
from lightrft.testing import tiny_model, tiny_trajectories
from lightrft.trainer.batching import pack, unpack
from lightrft.types import Prompt, Trajectory
from lightrft.utils.seeding import generator_states, restore_generators


def write(capsules: Capsules, step: int, trajectories=(), **changes):
    content = {
        "state": {"weights": {"w": torch.ones(2)}, "updates": 3},
        "config_yaml": "seed: 1\n",
        "weights_hash": "abc",
        "weight_version": 3,
        "rng": generator_states(),
        "start": 0,
    }
    return capsules.write(step, trajectories=list(trajectories), **{**content, **changes})


def answers() -> list[Trajectory]:
    found = tiny_trajectories([(4, [3, 1]), (2, [5]), (3, [0])], seed=3)
    found[0].behavior = [-0.1, -1e-300, -math.inf]
    found[1].mask, found[1].finish, found[1].answer, found[1].parts = [False], "length", "ü", {"format": 0.1}
    found[2].reward, found[2].weight_version = math.nan, 7
    whole = pack(found, inputs=False)
    unpack(torch.randn(whole.num_tokens), found, "advantages")
    unpack(torch.randn(whole.num_tokens), found, "old")
    found[3].columns.pop("old")
    return found


def test_answers_come_back_exactly(tmp_path):
    given = answers()
    write(Capsules(tmp_path, LogConfig(capture_steps=[7])), 7, given)
    back = read(tmp_path, 7).trajectories
    assert len(back) == 4
    for a, b in zip(given, back, strict=True):
        for name in (
            "group",
            "token_ids",
            "mask",
            "behavior",
            "finish",
            "answer",
            "parts",
            "weight_version",
            "prompt",
        ):
            assert getattr(a, name) == getattr(b, name), name
        assert a.reward.hex() == b.reward.hex()
        assert list(a.columns) == list(b.columns)
        for name, values in a.columns.items():
            assert torch.equal(values, b.columns[name])
            assert b.columns[name].dtype == torch.float32
    assert [type(x) for x in back[0].mask + back[0].token_ids + back[0].behavior] == [bool] * 3 + [
        int
    ] * 3 + [float] * 3


def test_siblings_go_on_sharing_one_prompt(tmp_path):
    write(Capsules(tmp_path, LogConfig()), 7, answers())
    back = read(tmp_path, 7).trajectories
    assert back[0].prompt is back[1].prompt
    assert back[0].prompt is not back[2].prompt


def test_equal_prompts_of_two_draws_stay_two(tmp_path):
    given = tiny_trajectories([(4, [1])]) + tiny_trajectories([(4, [1])])
    write(Capsules(tmp_path, LogConfig()), 7, given)
    back = read(tmp_path, 7).trajectories
    assert back[0].prompt == back[1].prompt
    assert back[0].prompt is not back[1].prompt


def test_positions_media_and_messages_of_a_prompt_come_back(tmp_path):
    prompt = Prompt(
        id="q",
        token_ids=[1, 2],
        messages=[{"role": "user", "content": [{"type": "image", "image": b"\x89PNG"}]}],
        target={"answer": [1, 2.5]},
        source="task",
        positions=torch.tensor([[0, 1], [0, 0], [0, 1]]),
        media={"pixel_values": torch.randn(2, 3).bfloat16()},
    )
    given = Trajectory(prompt=prompt, group=0, token_ids=[5], mask=[True], behavior=[-1.0], finish="stop")
    write(Capsules(tmp_path, LogConfig()), 7, [given])
    back = read(tmp_path, 7).trajectories[0].prompt
    assert back.messages == [{"role": "user", "content": [{"type": "image", "image": "bytes"}]}]
    assert back.target == prompt.target
    assert torch.equal(back.positions, prompt.positions)
    assert torch.equal(back.media["pixel_values"], prompt.media["pixel_values"])


def test_a_target_that_is_an_object_is_kept_as_text(tmp_path):
    prompt = Prompt(id="q", token_ids=[1], messages=[], target={3}, source="task")
    given = Trajectory(prompt=prompt, group=0, token_ids=[5], mask=[True], behavior=[-1.0], finish="stop")
    write(Capsules(tmp_path, LogConfig()), 7, [given])
    assert read(tmp_path, 7).trajectories[0].prompt.target == "{3}"


def test_a_packed_batch_of_the_capsule_equals_the_recorded_one(tmp_path):
    given = tiny_trajectories([(4, [3, 2]), (2, [5])])
    write(Capsules(tmp_path, LogConfig()), 7, given)
    a, b = pack(given), pack(read(tmp_path, 7).trajectories)
    assert torch.equal(a.inputs.token_ids, b.inputs.token_ids)
    assert a.inputs.prompt_spans == b.inputs.prompt_spans
    assert torch.equal(a.behavior, b.behavior)


def test_state_configuration_and_place_in_the_step_come_back(tmp_path):
    write(Capsules(tmp_path, LogConfig()), 7, start=2, weight_version=11, config_yaml="a: ü\n")
    capsule = read(tmp_path, 7)
    assert (capsule.step, capsule.start, capsule.weight_version, capsule.config_yaml) == (7, 2, 11, "a: ü\n")
    assert torch.equal(capsule.state["weights"]["w"], torch.ones(2))
    assert (capsule.updates, capsule.metrics) == ([], {})


def test_generators_go_on_as_in_the_step(tmp_path):
    write(Capsules(tmp_path, LogConfig()), 7)
    drawn = random.random(), numpy.random.rand(), float(torch.rand(()))
    restore_generators(read(tmp_path, 7).rng)
    assert (random.random(), numpy.random.rand(), float(torch.rand(()))) == drawn


def test_recorded_metrics_come_back_bit_for_bit(tmp_path):
    capsules = Capsules(tmp_path, LogConfig())
    write(capsules, 7)
    updates = [{"loss": 0.1 + 0.2, "norm": math.nan}, {"loss": -math.inf, "norm": 5e-324, "count": 3}]
    capsules.record(7, updates, {"kl": -0.0, "x": 1e308})
    assert "NaN" not in (tmp_path / "capsules" / "step-000007" / "recorded.json").read_text()
    capsule = read(tmp_path, 7)
    assert all(equal for *_, equal in compare(updates, capsule.updates))
    assert all(equal for *_, equal in compare([{"kl": -0.0, "x": 1e308}], [capsule.metrics]))


def test_recorded_updates_begin_where_the_capsule_begins(tmp_path):
    capsules = Capsules(tmp_path, LogConfig())
    write(capsules, 7, start=2)
    capsules.record(7, [{"loss": float(n)} for n in range(4)], {})
    assert read(tmp_path, 7).updates == [{"loss": 2.0}, {"loss": 3.0}]


def test_nothing_is_recorded_for_a_step_without_a_capsule(tmp_path):
    Capsules(tmp_path, LogConfig()).record(7, [], {})
    assert list(tmp_path.iterdir()) == []


def test_a_resumed_run_writes_the_step_anew(tmp_path):
    first = Capsules(tmp_path, LogConfig())
    write(first, 7, weight_version=1)
    first.record(7, [{"loss": 1.0}], {})
    write(Capsules(tmp_path, LogConfig()), 7, weight_version=2)
    assert read(tmp_path, 7).weight_version == 2
    assert read(tmp_path, 7).updates == []


def test_a_second_capsule_of_a_step_keeps_the_one_that_begins_earlier(tmp_path):
    capsules = Capsules(tmp_path, LogConfig())
    write(capsules, 7, start=0)
    write(capsules, 7, start=1)
    assert read(tmp_path, 7).start == 0


def test_capsules_that_nobody_asked_for_are_limited_and_those_asked_for_are_not(tmp_path, caplog):
    capsules = Capsules(tmp_path, LogConfig(capture_steps=[50]))
    for step in range(1, MOST_UNASKED + 1):
        assert write(capsules, step) is not None
    with caplog.at_level(logging.WARNING):
        assert write(capsules, 49) is None
    assert "step 49 is not captured" in caplog.text
    assert write(capsules, 50) is not None


def test_a_step_that_was_not_captured_is_refused_with_those_that_were(tmp_path):
    write(Capsules(tmp_path, LogConfig()), 7)
    with pytest.raises(ValueError, match=r"no capsule of step 8 \(there: 7\).*--log.capture-steps 8"):
        read(tmp_path, 8)


def test_steps_are_captured_as_asked(tmp_path):
    capsules = Capsules(tmp_path, LogConfig(capture_steps=[3, 7]))
    assert [step for step in range(10) if capsules.wanted(step)] == [3, 7]


def test_a_norm_far_above_the_median_is_a_spike_once_ten_were_seen(tmp_path):
    capsules = Capsules(tmp_path, LogConfig(capture_spikes=3.0))
    assert [capsules.spike(norm) for norm in [1.0] * 9 + [100.0]] == [False] * 10
    assert not capsules.spike(3.0)
    assert capsules.spike(3.01)


def test_the_median_forgets_norms_of_long_ago(tmp_path):
    capsules = Capsules(tmp_path, LogConfig(capture_spikes=3.0))
    for norm in [1.0] * 30 + [10.0] * 50:
        capsules.spike(norm)
    assert not capsules.spike(29.0)
    assert capsules.spike(31.0)


def test_a_norm_that_is_no_number_always_is_a_spike_and_is_not_remembered(tmp_path):
    capsules = Capsules(tmp_path, LogConfig())
    assert capsules.spike(math.nan)
    assert capsules.spike(math.inf)
    assert not capsules.spike(1e30)
    assert capsules.state() == {"norms": [1e30]}


def test_the_norms_seen_outlive_a_resume(tmp_path):
    before, after = (Capsules(tmp_path, LogConfig(capture_spikes=3.0)) for _ in range(2))
    for _ in range(10):
        before.spike(1.0)
    after.load(before.state())
    assert after.spike(4.0)


def test_spike_factors_up_to_one_are_refused():
    with pytest.raises(ValueError, match=r"log.capture_spikes=0.5"):
        LogConfig(capture_spikes=0.5)


def test_the_hash_is_sha256_of_names_types_shapes_and_bytes():
    tensor = torch.tensor([[1, 2]], dtype=torch.int16)
    expected = hashlib.sha256(b"w torch.int16 [1, 2]\n" + b"\x01\x00\x02\x00").hexdigest()
    assert weights_hash([("w", tensor)]) == expected


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_the_hash_changes_with_one_bit_and_not_with_the_layout(dtype):
    tensor = torch.randn(4, 6).to(dtype)
    other = tensor.clone()
    other.view(torch.uint8)[0, 0] ^= 1
    assert weights_hash([("w", tensor)]) == weights_hash([("w", tensor.t().contiguous().t())])
    assert weights_hash([("w", tensor)]) != weights_hash([("w", other)])
    assert weights_hash([("w", tensor)]) != weights_hash([("v", tensor)])
    assert weights_hash([("w", tensor)]) != weights_hash([("w", tensor.reshape(6, 4))])


def test_a_scalar_and_an_empty_tensor_have_a_hash():
    assert weights_hash([("a", torch.tensor(1.0))]) != weights_hash([("a", torch.empty(0))])


def test_other_weights_than_the_recorded_ones_are_refused(tmp_path):
    model = tiny_model()
    write(Capsules(tmp_path, LogConfig()), 7, weights_hash=weights_hash(model.named_parameters()))
    capsule = read(tmp_path, 7)
    capsule.verify(model.named_parameters())
    with torch.no_grad():
        next(model.parameters()).add_(1e-3)
    with pytest.raises(ValueError, match="not the one of step 7"):
        capsule.verify(model.named_parameters())


def test_metrics_are_compared_bit_for_bit_by_update_and_name():
    rows = compare(
        [{"loss": 0.1, "kl": math.nan}, {"loss": 1.0}], [{"loss": 0.1, "kl": math.nan, "new": 2.0}]
    )
    assert rows[0] == (0, "loss", 0.1, 0.1, True)
    assert rows[1][1] == "kl"
    assert rows[1][4]
    assert rows[2:] == [(0, "new", None, 2.0, True), (1, "loss", 1.0, None, False)], (
        "new is of a later version"
    )
    assert compare([], [{"loss": 1.0}]) == [(0, "loss", None, 1.0, False)], "an update more"


def test_the_smallest_difference_and_the_sign_of_zero_count():
    assert not compare([{"x": 0.1}], [{"x": math.nextafter(0.1, 1)}])[0][-1]
    assert not compare([{"x": 0.0}], [{"x": -0.0}])[0][-1]
