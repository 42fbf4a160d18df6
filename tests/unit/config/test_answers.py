import pytest

from lightrft.config import RUNS, AlgorithmConfig, RolloutConfig, VllmConfig, layers
from lightrft.config.answers import answer, near
from lightrft.config.foreign_names import FOREIGN, RENAMED

TRAIN, SFT, REWARD = ([name for name, *_ in layers.options(RUNS[run])] for run in ("train", "sft", "reward"))


def test_every_answer_is_an_option_and_no_name_that_is_answered_is():
    ours = {one for known in FOREIGN.values() for one in ([known] if isinstance(known, str) else known)}
    assert ours <= {*TRAIN, *SFT, *REWARD}
    assert not (FOREIGN.keys() | RENAMED.keys()) & {*TRAIN, *SFT, *REWARD}
    now = {f"{old.rpartition('.')[0]}.{new}".lstrip(".") for old, new in RENAMED.items()}
    assert now <= {*TRAIN, *SFT, *REWARD}


@pytest.mark.parametrize(
    ("name", "told"),
    [
        ("--num_generations", "In LightRFT this is --rollout.group-size."),
        ("--actor_rollout_ref.rollout.n", "In LightRFT this is --rollout.group-size."),
        ("--algorithm.adv_estimator", "In LightRFT this is --algorithm.advantage."),
        ("--critic_learning_rate", "In LightRFT this is --critic.optimizer.learning-rate."),
        ("--algorithm.keep", "--algorithm.keep is called --algorithm.group-filter now."),
        ("--rollout.vllm.eager", "--rollout.vllm.eager is called --rollout.vllm.enforce-eager now."),
        ("--train.batch_size", "In LightRFT this is --update.num-minibatches."),
        ("--algo.kl.use_loss", "In LightRFT this is --algorithm.kl-in."),
        ("--algo.kl.init_coef", "In LightRFT this is --algorithm.kl-coefficient."),
        ("--algo.advantage.estimator", "In LightRFT this is --algorithm.advantage."),
        ("--rollout.batch_size", "In LightRFT this is --rollout.prompts-per-step."),
        ("--eval.steps", "In LightRFT this is --evaluate.every-steps."),
        ("--train.async_enable", "In LightRFT this is --rollout.max-staleness."),
        ("--reward_model.overlong_buffer.len", "In LightRFT this is --algorithm.overlong-buffer."),
        ("--num_train_epochs", "In LightRFT this is --steps."),
        ("--model_config.load_in_4bit", "In LightRFT this is --model.lora.quantize-base."),
        ("--zzzzzzzz", ""),
    ],
)
def test_a_foreign_or_an_earlier_name_is_answered_with_ours(name, told):
    assert answer(name, TRAIN, flags=True) == told


@pytest.mark.parametrize(
    ("name", "ours"),
    [("num_train_epochs", "epochs"), ("max_seq_length", "max_tokens"), ("train.batch_size", "batch_size")],
)
def test_a_command_answers_a_foreign_name_with_an_option_of_its_own(name, ours):
    assert answer(name, SFT) == f"In LightRFT this is {ours}."


@pytest.mark.parametrize(
    ("name", "ours"),
    [("num_labels", "outputs"), ("center_rewards_coefficient", "options"), ("max_length", "max_tokens")],
)
def test_options_of_other_reward_trainers_are_answered(name, ours):
    assert answer(name, REWARD) == f"In LightRFT this is {ours}."


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
