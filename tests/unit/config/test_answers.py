import pytest

from lightrft.config import AlgorithmConfig, Config, RolloutConfig, SFTConfig, VllmConfig, layers
from lightrft.config.answers import answer, near
from lightrft.config.foreign_names import FOREIGN, RENAMED

TRAIN, SFT = ([name for name, *_ in layers.options(cls)] for cls in (Config, SFTConfig))


def test_every_answer_is_an_option_and_no_name_that_is_answered_is():
    assert set(FOREIGN.values()) <= set(TRAIN)
    assert not (FOREIGN.keys() | RENAMED.keys()) & {*TRAIN, *SFT}
    now = {f"{old.rpartition('.')[0]}.{new}".lstrip(".") for old, new in RENAMED.items()}
    assert now <= {*TRAIN, *SFT}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("--num_generations", "In LightRFT this is --rollout.group-size."),
        ("--actor_rollout_ref.rollout.n", "In LightRFT this is --rollout.group-size."),
        ("--algorithm.adv_estimator", "In LightRFT this is --algorithm.advantage."),
        ("--critic_learning_rate", "In LightRFT this is --critic.optimizer.learning-rate."),
        ("--algorithm.keep", "--algorithm.keep is called --algorithm.group-filter now."),
        ("--rollout.vllm.eager", "--rollout.vllm.eager is called --rollout.vllm.enforce-eager now."),
        ("--zzzzzzzz", ""),
    ],
)
def test_a_foreign_or_an_earlier_name_is_answered_with_ours(name, told):
    assert answer(name, TRAIN, flags=True) == told


def test_near_names_are_ranked_by_section():
    assert near("learning_rate", TRAIN)[0] == "optimizer.learning_rate"
    assert near("max_tokens", TRAIN)[0] == "rollout.max_tokens"
    assert near("rollout.max_tokns", TRAIN) == ["rollout.max_tokens"]
    assert near("tempratur", TRAIN)[0] == "rollout.temperature"


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (
            lambda: RolloutConfig(max_draws=3),
            "RolloutConfig has no option 'max_draws'. rollout.max_draws is called",
        ),
        (lambda: AlgorithmConfig(beta=0.1), "In LightRFT this is algorithm.kl_coefficient."),
        (lambda: VllmConfig(memory_share=0.1), "is called rollout.vllm.gpu_memory_utilization now."),
        (lambda: RolloutConfig(grup_size=3), "Perhaps you meant: rollout.group_size."),
    ],
)
def test_a_keyword_that_is_no_option_is_answered_too(make, told):
    with pytest.raises(TypeError, match=told):
        make()
