"""Each rule on a made run that is bad in its one way, and on runs that learn as they should."""

import json
import math
import re
from pathlib import Path

import pytest

from lightrft.cli import main
from lightrft.config import RUNS, layers
from lightrft.runs import trajectories
from lightrft.runs.advice import RULES, advise
from lightrft.runs.facts import Facts, rises
from lightrft.runs.layout import EvaluationFolder, RunFolder
from lightrft.runs.metrics import Logger
from lightrft.types import Prompt, Trajectory

NOISE = [0.01, -0.02, 0.015, -0.01, 0.02, -0.015, 0.005]


def good(steps):
    """A run that learns: reward from 0.2 to 0.9, entropy falls to a tenth of its start, nothing else to be seen."""
    rows = []
    for n in range(steps):
        share = n / max(1, steps - 1)
        rows.append(
            {
                "step": n + 1,
                "reward/mean": 0.2 + 0.7 * share + NOISE[n % 7],
                "reward/zero_std_fraction": 0.25 + 0.2 * share,
                "length/mean": 50 + NOISE[n % 7],
                "length/truncated_fraction": 0.6 if n == 0 else 0.05,
                "entropy": 1.78 - 1.65 * share,
                "grad_norm": 1.2 + NOISE[n % 7],
                "loss": NOISE[n % 7],
                "approx_kl": 1e-3,
                "clip/fraction": 0.02,
                "mismatch/max": 6e-5,
                "mismatch/mean_abs": 1e-5,
                "mismatch/ratio": 1.0,
                "kl": 0.01 + 0.001 * share,
                "seconds/step": 10.0,
                "seconds/rollout": 4.0,
                "memory/rss_gib": 4.0 + NOISE[n % 7],
                "counts/responses": 64,
                "counts/dropped_responses": 0,
                "counts/skipped_updates": 0,
                "critic/explained_variance": 0.5,
                "straggler/train": 1.1,
            }
        )
    return rows


def with_course(steps, **courses):
    """The good run with other courses: a function of the share of the run that is done."""
    rows = good(steps)
    for name, course in courses.items():
        for n, row in enumerate(rows):
            value = course(n / (steps - 1))
            row[name.replace("__", "/")] = (
                None if value is None else value + (NOISE[n % 7] if name == "reward__mean" else 0)
            )
    return rows


def flat(level):
    return lambda _share: level


def written(*texts, reward=1.0, finish="stop"):
    return [{"response": text, "reward": reward, "finish": finish} for text in texts]


SINGLE = {"model.dtype": "float32"}
BAD = {
    "skipped_updates": (
        with_course(20, counts__skipped_updates=lambda share: 1 if share > 0.9 else 0),
        {},
        {},
    ),
    "failing_rewards": (with_course(20, counts__dropped_responses=flat(2)), {}, {}),
    "reward_hacking": (good(40), {}, {"intervals": [("before", 0.4, 0.5), ("after", 0.1, 0.2)]}),
    "mismatch": (with_course(20, mismatch__max=flat(0.4)), SINGLE, {}),
    "critic": (with_course(20, critic__explained_variance=flat(-0.3)), {}, {}),
    "entropy_collapse": (with_course(60, reward__mean=lambda share: min(0.4, 0.2 + 2 * share)), {}, {}),
    "truncation": (with_course(20, length__truncated_fraction=flat(0.4), reward__mean=flat(0.5)), {}, {}),
    "zero_variance": (with_course(20, reward__zero_std_fraction=flat(0.6)), {}, {}),
    "clipping": (with_course(20, clip__fraction=flat(0.4)), {}, {}),
    "gradient_spike": (with_course(20, grad_norm=lambda share: 9.0 if share == 1 else 1.0), {}, {}),
    "divergence": (
        with_course(60, kl=lambda share: 0.01 + 0.2 * share, reward__mean=flat(0.85), entropy=flat(1.0)),
        {},
        {},
    ),
    "longer": (
        with_course(
            30, length__mean=lambda share: 50 + 100 * share, reward__mean=flat(0.5), entropy=flat(1.0)
        ),
        {},
        {},
    ),
    "format_alone": (
        with_course(
            30, reward__form=lambda share: min(1.0, 0.5 + 1.5 * max(0.0, share - 0.4)), reward__task=flat(0.1)
        ),
        {},
        {},
    ),
    "too_slow": (
        with_course(40, approx_kl=flat(1e-7), reward__mean=flat(0.5), entropy=flat(1.0)),
        {"update.num_minibatches": 4},
        {},
    ),
    "stragglers": (with_course(20, straggler__train=flat(1.9)), {}, {}),
    "slow_rollout": (with_course(20, seconds__rollout=flat(8.5)), {}, {}),
    "memory": (with_course(40, memory__rss_gib=lambda share: 4 + 8 * share), {}, {}),
    "garbled": (good(20), {}, {"responses": written("fine", "\ufffd\ufffd\ufffd", "a b c d " * 20, "good")}),
    "overfitting": (
        [
            {"step": n, "nll": 2 - 0.05 * n, "loss": 2 - 0.05 * n}
            | ({"held_out_nll/mean": 1 + abs(n - 8) / 20} if n % 4 == 0 else {})
            for n in range(25)
        ],
        {},
        {},
    ),
}


def rules(found):
    return [one.rule for one in found]


def test_pictures_are_learned_by_heart_as_words_are():
    rows = [
        {name.replace("nll", "error"): value for name, value in row.items()} for row in BAD["overfitting"][0]
    ]
    assert "held_out_error/mean" in rows[0]
    assert rules(advise(Facts(rows, {}))) == ["overfitting"]


def test_waiting_for_what_is_sampled_beside_the_step_counts_as_sampling():
    """As with rollout.max_staleness: neither is more than 70 % of a step by itself."""
    rows = with_course(20, seconds__rollout=flat(3.0), seconds__wait=flat(5.0))
    (one,) = advise(Facts(rows, {}))
    assert one.rule == "slow_rollout"
    assert "rollout 80% of a step" in one.evidence


def test_every_rule_has_a_bad_run_here():
    assert set(BAD) == set(RULES)


@pytest.mark.parametrize("name", list(RULES))
def test_a_bad_run_fires_exactly_its_rule(name):
    rows, config, more = BAD[name]
    (one,) = advise(Facts(rows, config, **more))
    assert one.rule == name
    assert one.evidence
    assert one.source


RECORDED = json.loads(Path(__file__).with_name("bad_runs.json").read_text())
"""Runs that were trained (tests/record_bad_runs.py says how), each spoiled in one way; what rules read of them, to 4 digits."""


def test_there_is_a_recorded_bad_run_for_every_rule():
    assert set(RECORDED) == set(RULES)


@pytest.mark.parametrize("name", RECORDED)
def test_a_recorded_bad_run_fires_exactly_its_rule(name):
    run = RECORDED[name]
    rows = [
        {metric: value for metric, value in zip(run["metrics"], values, strict=True) if value != ""}
        for values in zip(*run["metrics"].values(), strict=True)
    ]
    facts = Facts(rows, run["config"], [tuple(one) for one in run["intervals"]], run["responses"])
    assert rules(advise(facts)) == [name]


def test_groups_of_one_response_are_not_called_equal():
    """As folders of former versions have it of `lightrft train tiny ppo`, with 100 % of its groups."""
    rows = with_course(20, reward__zero_std_fraction=flat(1.0))
    assert rules(advise(Facts(rows, {"rollout.group_size": 2}))) == ["zero_variance"]
    assert rules(advise(Facts(rows, {"rollout.group_size": 1}))) == []


def test_truncation_is_told_where_it_costs_reward():
    rows = with_course(40, length__truncated_fraction=flat(0.5))
    cut, ended = written(*"abcd", reward=0.5, finish="length"), written(*"efgh", reward=0.5)
    assert rules(advise(Facts(rows, responses=cut + ended))) == []
    paid = written(*"efgh", reward=0.9)
    assert rules(advise(Facts(rows, responses=cut + paid))) == ["truncation"]
    assert rules(advise(Facts(rows, responses=cut))) == [], "all are truncated, and the reward rises"
    rows = with_course(40, length__truncated_fraction=flat(1.0), reward__mean=flat(0.5), entropy=flat(1.0))
    assert rules(advise(Facts(rows, responses=cut))) == ["truncation"]


def test_broken_characters_are_what_a_model_drawn_at_random_writes():
    broken, over = written(*["\ufffd\ufffd"] * 4), written(*["a b c d " * 20] * 4)
    assert rules(advise(Facts(good(20), {"model.path": "some/model"}, responses=broken))) == ["garbled"]
    assert rules(advise(Facts(good(20), {"model.path": "random:llama"}, responses=broken))) == []
    assert rules(advise(Facts(good(20), {"model.path": "random:llama"}, responses=over))) == ["garbled"]


def test_a_response_that_several_rewards_fail_on_is_lost_once():
    """20 of 64 sampled, 16 of which each of two rewards failed on and 4 were left alone in their group."""
    lost = {
        "counts/dropped_responses": 20,
        "counts/responses": 44,
        "counts/failed/a": 16,
        "counts/failed/b": 16,
    }
    (one,) = advise(Facts([row | lost for row in good(10)]))
    assert (one.rule, one.level) == ("failing_rewards", "alarm")
    assert one.evidence == "200 of 640 responses lost, first in step 1"


@pytest.mark.parametrize("steps", [1, 5, 16, 24, 60, 200])
def test_a_run_that_learns_is_left_alone_though_its_entropy_falls(steps):
    assert (
        rules(
            advise(
                Facts(good(steps), {"update.num_minibatches": 4}, [("before", 0.2, 0.3), ("after", 0.8, 0.9)])
            )
        )
        == []
    )
    assert advise(Facts([])) == []


def test_a_critic_that_knows_nothing_yet_is_no_alarm():
    """Values as a run of layers ppo and tiny has them, whose critic gives one number for all."""
    seen = [-0.0067, -0.0027, -0.0033, 0.0022, 0.0013, 0.0008]
    rows = with_course(20, critic__explained_variance=lambda share: seen[int(share * 19) % 6])
    assert rules(advise(Facts(rows))) == []


def test_alarms_come_without_advice():
    rows = with_course(20, clip__fraction=flat(0.4), critic__explained_variance=flat(-1.0))
    assert rules(advise(Facts(rows))) == ["critic"]


def test_more_truncation_with_a_falling_reward_is_an_alarm():
    rows = with_course(
        20, length__truncated_fraction=lambda share: share, reward__mean=lambda share: 1 - share
    )
    (one,) = advise(Facts(rows))
    assert (one.rule, one.level) == ("truncation", "alarm")


def test_a_line_is_measured_in_its_standard_errors():
    """Worked by hand: y = 0, 2, 1, 3 has slope 0.8, squares left 1.8, so a standard error of sqrt(0.9 / 5)."""
    assert rises([(0, 0.0), (1, 2.0), (2, 1.0), (3, 3.0)]) == pytest.approx(0.8 / math.sqrt(0.9 / 5))
    assert rises([(0, 1.0), (1, 2.0), (2, 3.0), (3, 4.0)]) == 100.0
    assert rises([(0, 1.0)] * 3) == 0.0


def test_every_option_that_a_rule_names_exists():
    known = {name for kind in RUNS.values() for name, *_ in layers.options(kind)}
    named = {name for rule in RULES.values() for name in re.findall(r"\b[a-z]+(?:\.[a-z_]+)+\b", rule.option)}
    assert len(named) > 15
    assert named <= known


def test_the_command_says_what_is_wrong_and_ends_with_1_on_an_alarm(tmp_path, capsys):
    (tmp_path / "config.yaml").write_text("model:\n  dtype: float32\n")
    with Logger(tmp_path, tensorboard=False) as logger:
        for row in with_course(20, mismatch__max=flat(0.4)):
            logger.log(
                row["step"], {name: math.nan if v is None else v for name, v in row.items() if name != "step"}
            )
    prompt = Prompt("q", [1], [{"role": "user", "content": "?"}], "5", "sums")
    trajectories.save(
        tmp_path, 1, [Trajectory(prompt, 0, [7], [True], [-0.5], "stop", answer="5", reward=1.0)]
    )
    EvaluationFolder(RunFolder(tmp_path).evaluation).write(
        "before", {"sums": {"score": {"mean": None, "low": None, "high": None}}}, []
    )
    assert main(["view", str(tmp_path), "--advice"]) == 1
    told = capsys.readouterr().out
    assert "alarm: mismatch" in told
    assert "algorithm.mismatch_correction" in told
