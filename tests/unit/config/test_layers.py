"""Layers: YAML files as lists of flags."""

from __future__ import annotations

import dataclasses
import re
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lightrft.algorithms.losses import LOSSES
from lightrft.algorithms.online_preference import ONLINE_LOSSES
from lightrft.config import RUNS, AlgorithmConfig, Config, RolloutConfig, SFTConfig, TaskConfig, layers

PRINTABLE = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12)
NUMBERS = st.floats(allow_nan=False)


@dataclass(frozen=True, kw_only=True)
class Part:
    """A section."""

    size: int = 1
    """How large."""
    rate: float = 0.5
    """How fast."""
    mode: Literal["fast", "slow"] = "fast"
    """Which way."""


@dataclass(frozen=True, kw_only=True)
class Whole:
    """A whole."""

    name: str = ""
    """What it is called."""
    on: bool = True
    """Whether it runs."""
    words: list[str] = field(default_factory=list)
    """Some words."""
    numbers: list[float] = field(default_factory=lambda: [0.1, 0.2])
    """Some numbers."""
    shares: dict[str, float] = field(default_factory=dict)
    """Shares by name."""
    part: Part = field(default_factory=Part)


def write(folder: Path, text: str, name: str = "mine.yaml") -> str:
    (folder / name).write_text(text, encoding="utf-8")
    return str(folder / name)


def test_a_later_layer_wins_and_flags_win_over_layers(tmp_path: Path) -> None:
    one = write(tmp_path, "part: {size: 2, rate: 3}", "one.yaml")
    two = write(tmp_path, "part: {size: 4}", "two.yaml")
    assert layers.load([one, two], Whole).part == Part(size=4, rate=3.0)
    assert layers.load([one, two, "--part.size", "5"], Whole).part == Part(size=5, rate=3.0)


def test_a_later_dict_or_list_replaces_an_earlier_one_as_a_whole(tmp_path: Path) -> None:
    one = write(tmp_path, "shares: {a: 1, b: 2}\nwords: [x, y]", "one.yaml")
    two = write(tmp_path, "shares: {c: 3}\nwords: []", "two.yaml")
    loaded = layers.load([one, two], Whole)
    assert loaded.shares == {"c": 3.0}
    assert loaded.words == []


def test_a_value_is_read_as_the_text_that_was_written(tmp_path: Path) -> None:
    assert layers.load([write(tmp_path, "name: 0123")], Whole).name == "0123"
    assert layers.load([write(tmp_path, "name: on")], Whole).name == "on"
    assert layers.load([write(tmp_path, "part: {rate: 3e-5}")], Whole).part.rate == 3e-5
    assert layers.load([write(tmp_path, "part: {rate: .inf}")], Whole).part.rate == float("inf")


def test_an_option_that_is_set_to_an_equal_number_is_not_told_as_changed(tmp_path: Path) -> None:
    again = write(tmp_path, "optimizer: {learning_rate: 0.003}\nsteps: 2", "again.yaml")
    assert layers.undone(["tiny", again], Config) == ["again sets steps to 2, which tiny had set to 30."]


def test_a_file_about_rows_may_name_rewards_where_none_are_given(tmp_path: Path) -> None:
    """So that one file serves fine-tuning and reinforcement learning; as a flag the option is refused."""
    rows = write(
        tmp_path, "tasks: {train: {file: 1}, train_file: rows.jsonl, rewards: {math: 1}}", "rows.yaml"
    )
    assert layers.load([rows], Config).tasks.rewards == {"math": 1.0}
    assert layers.undone([rows], Config) == []
    taught = layers.load([rows], SFTConfig).tasks
    assert (taught.train_file, taught.rewards) == ("rows.jsonl", {})
    assert layers.undone([rows], SFTConfig) == [
        "rows sets tasks.rewards, and this command scores no responses: left out."
    ]
    with pytest.raises(ValueError, match="tasks.rewards=.* has no effect with lightrft sft"):
        layers.load([rows, "--tasks.rewards", "math", "1"], SFTConfig)
    for broken in ("[math, exact]", "math", "{math: high}"):
        with pytest.raises(ValueError, match="tasks.rewards"):
            layers.load([write(tmp_path, f"tasks: {{rewards: {broken}}}", "broken.yaml")], SFTConfig)


@pytest.mark.parametrize("nothing", ["null", "~", "None", "NULL", ""])
def test_a_null_is_an_empty_text_and_in_quotes_a_word(tmp_path: Path, nothing: str) -> None:
    assert layers.load([write(tmp_path, f"name: {nothing}")], Whole).name == ""
    assert layers.load([write(tmp_path, f"name: '{nothing}'")], Whole).name == nothing
    with pytest.raises(ValueError, match="part.size=: expected a whole number"):
        layers.load([write(tmp_path, "part: {size: null}")], Whole)


def test_true_and_false_are_written_as_in_yaml() -> None:
    assert not layers.load(["--on", "false"], Whole).on
    assert layers.load(["--on=True"], Whole).on


def test_dashes_and_underscores_name_the_same_flag() -> None:
    assert layers.load(["--rollout.group_size", "4"], Config).rollout.group_size == 4
    assert layers.load(["--rollout.group-size", "4"], Config).rollout.group_size == 4


def test_a_section_whose_options_are_all_commented_out_changes_nothing(tmp_path: Path) -> None:
    assert layers.load([write(tmp_path, "part:\n  # size: 3\n")], Whole) == Whole()
    assert layers.load([write(tmp_path, "# nothing here\n")], Whole) == Whole()


@settings(max_examples=40)
@given(
    name=st.text(max_size=12).filter(lambda text: text.isprintable() or "\n" in text),
    words=st.lists(
        PRINTABLE
        | st.sampled_from(["-x", "--", "--part.size", "\\-x", "-1", "-1x", "", "\n", "null", "~", "None"]),
        max_size=4,
    ),
    numbers=st.lists(NUMBERS, max_size=4),
    shares=st.dictionaries(PRINTABLE, NUMBERS, max_size=3),
    part=st.builds(Part, size=st.integers(), rate=NUMBERS, mode=st.sampled_from(["fast", "slow"])),
    on=st.booleans(),
)
def test_a_configuration_written_as_yaml_loads_as_the_same_configuration(tmp_path_factory, **values) -> None:  # type: ignore[no-untyped-def]
    config = Whole(**values)
    assert layers.load([write(tmp_path_factory.getbasetemp(), layers.to_yaml(config))], Whole) == config


def test_the_real_configuration_makes_the_round_trip(tmp_path: Path) -> None:
    config = Config(
        tasks=TaskConfig(train={"acme.tasks:sums": 1.0, "-x": 2e-7}, system="-a\nb: c # d"),
        rollout=RolloutConfig(stop=["--", "\n\n", "</answer>"]),
    )
    assert layers.load([write(tmp_path, layers.to_yaml(config))], Config) == config


def test_a_layer_fits_the_kind_of_training_whose_options_it_sets(tmp_path: Path) -> None:
    shipped = layers.shipped()
    assert layers.fits(shipped["grpo"], Config)
    assert not layers.fits(shipped["grpo"], SFTConfig)
    assert layers.fits(shipped["sft_tiny"], SFTConfig)
    assert not layers.fits(shipped["sft_tiny"], Config)
    assert layers.fits(shipped["lora"], SFTConfig)
    fitting = {n: [name for name, kind in RUNS.items() if layers.fits(shipped[n], kind)] for n in shipped}
    assert [fitting[n] for n in ("sft_tiny", "reward_tiny", "dpo_tiny")] == [["sft"], ["reward"], ["dpo"]]
    assert fitting["lora"] == list(RUNS)


@pytest.mark.parametrize("name", sorted(layers.shipped()))
def test_every_shipped_layer_loads_and_says_what_it_is_for(name: str) -> None:
    needs = ["--teacher.path", "random:llama"] if name == "distil" else []
    cls = next(kind for kind in (Config, *RUNS.values()) if layers.fits(layers.shipped()[name], kind))
    assert layers.load([name, *needs], cls) != cls()
    assert len(layers.describe(layers.shipped()[name])) > 20


def test_a_row_of_an_algorithm_says_itself_whether_it_stays_near_the_reference() -> None:
    """Laid over another row it must not keep that one's coefficient: `grpo dapo` is DAPO. Models that draw bring their own."""
    for name, file in layers.shipped().items():
        row = layers.read(file)
        algorithm = row.get("algorithm") or {}
        if "loss" in algorithm and "denoise" not in (row.get("rollout") or {}):
            assert "kl_coefficient" in algorithm, name


def test_a_row_whose_loss_reads_no_clip_takes_back_that_of_a_layer_below() -> None:
    """A changed clip that is not read is refused, and `dapo rloo` is RLOO."""
    losses = {**LOSSES, **ONLINE_LOSSES}
    for name, file in layers.shipped().items():
        algorithm = layers.read(file).get("algorithm") or {}
        if "clip" in getattr(losses.get(algorithm.get("loss")), "unused_settings", ()):
            assert [float(bound) for bound in algorithm["clip"]] == AlgorithmConfig().clip, name


@settings(max_examples=40)
@given(st.data())
def test_grouping_layers_differently_changes_nothing(tmp_path_factory, data) -> None:  # type: ignore[no-untyped-def]
    """(one, two), three == one, (two, three): only the last setting of each option counts."""
    folder = tmp_path_factory.getbasetemp()
    texts = [
        f"part: {{size: {data.draw(st.integers(0, 3))}}}",
        f"name: n{data.draw(st.integers(0, 3))}",
        "part: {rate: 2}",
    ]
    order = data.draw(st.permutations(texts))
    files = [write(folder, text, f"{i}.yaml") for i, text in enumerate(order)]
    first_two = write(folder, layers.to_yaml(layers.load(files[:2], Whole)), "first_two.yaml")
    assert layers.load([first_two, files[2]], Whole) == layers.load(files, Whole)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("part: {sise: 3}", "mine.yaml: no option 'part.sise'. Perhaps you meant: part.size."),
        ("zzz: 3", "mine.yaml: no option 'zzz'. There are: name, on"),
        ("part: 3", "'part' is a section"),
        ("shares: 3", "expected name-value pairs"),
        ("name: {a: 1}", "expected one value, found a dict"),
        ("name: a\nname: b", "'name' is given twice"),
        ("- a\n- b", "expected 'option: value' lines, found a list"),
        ("name: [", "not a YAML file"),
    ],
)
def test_what_does_not_fit_in_a_file_names_the_file_and_the_option(
    tmp_path: Path, text: str, message: str
) -> None:
    with pytest.raises(ValueError, match=r"mine\.yaml") as error:
        layers.load([write(tmp_path, text)], Whole)
    assert message in str(error.value)


def test_a_bad_value_in_a_file_names_the_option_and_the_file(tmp_path: Path) -> None:
    good = write(tmp_path, "name: fine", "good.yaml")
    with pytest.raises(ValueError, match=r"mine\.yaml: part\.size=many: expected a whole number"):
        layers.load([good, write(tmp_path, "part: {size: many}")], Whole)


def test_a_misspelled_flag_gets_a_suggestion() -> None:
    with pytest.raises(
        ValueError, match="no option --rollout.grup-size. Perhaps you meant: --rollout.group-size"
    ):
        layers.load(["--rollout.grup-size", "3"], Config)


def test_an_impossible_combination_is_one_sentence_that_names_its_file(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"^update.num_minibatches=99 but a step has only 64 responses.*Lower [\w.]+$"
    ):
        layers.load(["--update.num-minibatches", "99"], Config)
    file = write(tmp_path, "update: {num_minibatches: 99}")
    with pytest.raises(ValueError, match=r"The value stands in .*\.yaml\.$"):
        layers.load([file], Config)


def test_a_file_stands_on_the_layers_that_it_extends(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("extends: dapo\nsteps: 7\nrollout: {group_size: 6}\n")
    (tmp_path / "mine.yaml").write_text("extends: [base.yaml, lora]\nrollout: {group_size: 12}\n")
    loaded = layers.load([str(tmp_path / "mine.yaml")], Config)
    assert loaded == layers.load(["dapo", "lora", "--steps", "7", "--rollout.group-size", "12"], Config)
    assert layers.fits(tmp_path / "mine.yaml", Config)
    assert not layers.fits(tmp_path / "mine.yaml", SFTConfig)


def test_a_circle_of_files_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("extends: [b.yaml]\n")
    (tmp_path / "b.yaml").write_text("extends: [a.yaml]\n")
    with pytest.raises(ValueError, match=r"extends itself: .*a\.yaml -> .*b\.yaml -> .*a\.yaml"):
        layers.load([str(tmp_path / "a.yaml")], Config)
    (tmp_path / "a.yaml").write_text("extends: {grpo: 1}\n")
    with pytest.raises(ValueError, match=r"a\.yaml: extends=.*e\.g\. extends: \[grpo, fsdp\]"):
        layers.load([str(tmp_path / "a.yaml")], Config)


@pytest.mark.parametrize(
    ("text", "told"),
    [
        (
            "rollout: {max_draws: 3}",
            "rollout.max_draws is called rollout.max_sampling_rounds now.",
        ),
        ("algorithm: {beta: 0.1}", "In LightRFT this is algorithm.kl_coefficient."),
        ("rollout: {n: 4}", "In LightRFT this is rollout.group_size."),
        ("learning_rate: 1", "Perhaps you meant: optimizer.learning_rate, "),
        ("rollout: {zzz: 4}", "There are: rollout.engine, "),
    ],
)
def test_a_name_that_is_no_option_is_answered_in_a_file(tmp_path: Path, text: str, told: str) -> None:
    with pytest.raises(ValueError, match=re.escape(told)):
        layers.load([write(tmp_path, text)], Config)


def test_a_layer_that_does_not_exist_says_what_does(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="no layer named 'grop'. Perhaps you meant: grpo"):
        layers.load(["grop"], Config)
    with pytest.raises(ValueError, match="no configuration file 'nowhere.yaml'"):
        layers.load(["nowhere.yaml"], Config)
    write(tmp_path, "", "config.yaml")
    with pytest.raises(ValueError, match=r"is a folder. Name a file in it"):
        layers.load([str(tmp_path)], Config)


def test_field_docs_are_the_texts_under_the_fields() -> None:
    assert layers.field_docs(Part) == {"size": "How large.", "rate": "How fast.", "mode": "Which way."}
    assert [name for name, *_ in layers.options(Whole)][-3:] == ["part.size", "part.rate", "part.mode"]
    assert dataclasses.is_dataclass(Whole)
