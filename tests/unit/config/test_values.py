"""Classes of options that are made in Python refuse values of another kind, and say what is expected."""

import pytest

from lightrft.config import (
    AlgorithmConfig,
    Config,
    EnvironmentConfig,
    EvaluateConfig,
    LogConfig,
    ModelConfig,
    OptimizerConfig,
    SFTConfig,
    SglangConfig,
    TaskConfig,
    VllmConfig,
)


@pytest.mark.parametrize(
    ("make", "told"),
    [
        (lambda: Config(steps="ten"), "steps='ten': expected a whole number. For example: steps=8"),
        (lambda: Config(steps=True), "steps=True: expected a whole number."),
        (lambda: Config(steps=2.0), "steps=2.0: expected a whole number."),
        (lambda: Config(model="x"), "For example: model=ModelConfig(path='x')"),
        (lambda: SFTConfig(log=3), "log=3: expected the section's own class, SamplingLogConfig."),
        (lambda: AlgorithmConfig(clip=0.2), "algorithm.clip=0.2: expected a list, each entry a number."),
        (lambda: LogConfig(progress=1), "log.progress=1: expected true or false. For example: progress=True"),
        (
            lambda: TaskConfig(train={"a": "b"}),
            "tasks.train={'a': 'b'}: expected a dict of names, each with a number.",
        ),
        (
            lambda: TaskConfig(on_bad_record="stop"),
            "tasks.on_bad_record='stop': expected one of raise, skip.",
        ),
        (lambda: ModelConfig(path=3), "model.path=3: expected a text."),
    ],
)
def test_a_value_of_another_kind_is_refused_with_option_value_and_example(make, told):
    with pytest.raises(ValueError) as raised:  # noqa: PT011  # the message is compared below
        make()
    assert told in str(raised.value)
    assert "\n" not in str(raised.value)


def test_a_whole_number_is_a_number():
    assert OptimizerConfig(learning_rate=1).learning_rate == 1
    assert TaskConfig(train={"tiny": 1}).train == {"tiny": 1}


def test_numbers_that_are_beyond_their_range_are_left_to_the_ranges():
    with pytest.raises(ValueError, match="must be at least 1 and at most 2"):
        VllmConfig(sleep_level=3)
    with pytest.raises(ValueError, match="must be at least"):
        EvaluateConfig(limit=float("nan"))


def test_an_unknown_option_names_the_one_that_was_meant():
    with pytest.raises(TypeError, match="Config has no option 'stepz'. Perhaps you meant: steps"):
        Config(stepz=1)


def test_further_arguments_of_engines_are_read_as_yaml_and_do_not_replace_ours():
    options = {
        "chunked_prefill_size": "512",
        "attention_backend": "fa3",
        "disable_radix_cache": "true",
        "model_loader": "{a: 1}",
    }
    assert SglangConfig(options=options).further() == {
        "chunked_prefill_size": 512, "attention_backend": "fa3", "disable_radix_cache": True, "model_loader": {"a": 1},
    }  # fmt: skip
    for config, setting, name, cure in (
        (VllmConfig, "rollout.vllm", "max_model_len", r"Set rollout\.vllm\.max_model_len\."),
        (VllmConfig, "rollout.vllm", "load_format", "Training needs it as it is."),
        (SglangConfig, "rollout.sglang", "context_length", r"Set rollout\.sglang\.context_length\."),
        *(
            (VllmConfig, "rollout.vllm", name, "processes hold the engine.* Leave it out")
            for name in ("pipeline_parallel_size", "data_parallel_size")
        ),
        *(
            (VllmConfig, "rollout.vllm", name, "the trainer's model and tokens.* under model")
            for name in ("hf_overrides", "tokenizer")
        ),
        *(
            (SglangConfig, "rollout.sglang", name, "processes hold the engine")
            for name in ("tp_size", "dp_size", "pp_size")
        ),
        (SglangConfig, "rollout.sglang", "tokenizer_path", "the trainer's model and tokens"),
    ):
        with pytest.raises(ValueError, match=rf"{setting}.options.{name}='1': .*{cure}"):
            config(options={name: "1"})
    for config, setting in ((VllmConfig, "rollout.vllm"), (EnvironmentConfig, "environment")):
        with pytest.raises(ValueError, match=f"{setting}.options.a='{{' is not YAML"):
            config(options={"a": "{"})
