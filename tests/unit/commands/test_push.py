"""The card of a run, and what would be uploaded with it: all that a reader needs, and no place on the machine that made it."""

import json
import shutil
from dataclasses import fields

import pytest
import yaml

from lightrft import cli
from lightrft.commands.push import ROW, algorithm_row, base_told, bases_of, card, public, uploaded
from lightrft.config import AlgorithmConfig, Config, LoraConfig, ModelConfig, SFTConfig, TaskConfig, layers
from lightrft.config.parser import parse
from lightrft.runs.folder import settings_text
from lightrft.runs.layout import RunFolder
from tests.made_runs import learning_run

SCORE = {"before": (0.25, 0.2, 0.31), "after": (0.75, 0.69, 0.8)}


def run_of(folder, config, summary):
    files = RunFolder(folder)
    for place, name in ((files.model, "model.safetensors"), (files.adapter, "adapter_model.safetensors")):
        place.mkdir(parents=True)
        (place / name).write_bytes(bytes(2000))
    (files.adapter / "adapter_config.json").write_text(
        json.dumps({"base_model_name_or_path": str(folder / "base")})
    )
    files.config.write_text(settings_text(config))
    files.write_format()
    files.write_summary(summary)
    return files


@pytest.fixture
def finished(tmp_path):
    by_task = {
        f"{label}_by_task": {
            "file": {"score": dict(zip(("mean", "low", "high"), s, strict=True)), "questions": 200}
        }
        for label, s in SCORE.items()
    }
    (tmp_path / "base").mkdir()
    config = Config(
        model=ModelConfig(path=str(tmp_path / "base"), lora=LoraConfig(rank=4, alpha=8)),
        tasks=TaskConfig(train={"file": 1.0}, train_file=str(tmp_path / "secret" / "rows.jsonl")),
        seed=7,
    )
    return run_of(tmp_path, config, {"steps": 12, "seconds": 3.0, "evaluation": by_task})


def test_a_card_has_algorithm_data_and_scores_with_intervals(finished):
    text = card(finished)
    for told in (
        "| base model | base |",
        "advantage group_norm",
        "group_size 8",
        "| data | file (1) |",
        "| files | rows.jsonl |",
        "| adapters | LoRA, rank 4, alpha 8 |",
        "| steps | 12 |",
        "| seed | 7 |",
        "| before | file | 0.250 | 0.200 to 0.310 | 200 |",
        "| after | file | 0.750 | 0.690 to 0.800 | 200 |",
    ):
        assert told in text, told
    assert yaml.safe_load(text.split("---")[1]) == {"library_name": "transformers", "tags": ["lightrft"]}


def test_a_base_of_the_hub_is_linked(tmp_path):
    files = run_of(
        tmp_path,
        Config(model=ModelConfig(path="owner/base"), tasks=TaskConfig(train={"tiny": 1.0})),
        {"steps": 1},
    )
    assert yaml.safe_load(card(files).split("---")[1])["base_model"] == "owner/base"
    assert "None were taken." in card(files)


def test_a_run_from_given_responses_tells_its_measures(tmp_path):
    files = run_of(
        tmp_path,
        SFTConfig(model=ModelConfig(path="random:llama"), tasks=TaskConfig(train={"tiny": 1.0})),
        {"steps": 3, "held_out_nll": {"before": 2.5, "after": 1.25}, "pair_accuracy": {"after": 0.75}},
    )
    text = card(files)
    assert "| held_out_nll | 2.5000 | 1.2500 |" in text
    assert "| pair_accuracy | not taken | 0.7500 |" in text
    assert algorithm_row({"train_on": "last_turn", "average": "token"}) == "train_on last_turn, average token"


def test_every_setting_of_the_row_is_one_of_an_algorithm():
    assert set(ROW) <= {field.name for field in fields(AlgorithmConfig)}


def test_a_dry_run_shows_card_and_files_and_no_place_of_the_machine(finished, capsys):
    assert cli.main(["push", str(finished.path), "me/mine", "--dry-run"]) == 0
    printed = capsys.readouterr().out
    assert "0.002 MB  model.safetensors" in printed
    assert "0.002 MB  adapter/adapter_model.safetensors" in printed
    assert "4 files and README.md would go to me/mine; nothing was uploaded." in printed
    assert "MB  training.yaml" in printed
    assert str(finished.path) not in printed


def test_the_settings_go_with_the_model_and_are_a_layer_without_places(finished):
    held = dict(uploaded(finished))["training.yaml"].decode()
    assert "`training.yaml`" in card(finished)
    assert str(finished.path) not in held
    (finished.path / "layer.yaml").write_text(held)
    found = parse(layers.file_flags(finished.path / "layer.yaml", Config), Config, prog="", description="")
    assert found.seed == 7
    assert found.model.lora.rank == 4
    assert found.tasks.train_file == ".../rows.jsonl"


def test_the_run_for_a_browser_goes_only_when_asked_for(tmp_path, capsys):
    run = learning_run(tmp_path)
    run_of(tmp_path, Config(tasks=TaskConfig(train={"tiny": 1.0})), {"steps": 1})
    assert "run.html" not in card(RunFolder(run)) + str(dict(uploaded(RunFolder(run))))
    assert cli.main(["push", str(run), "me/mine", "--dry-run", "--viewer"]) == 0
    printed = capsys.readouterr().out
    assert "`run.html` shows its curves" in printed
    assert "MB  run.html" in printed


def test_an_adapters_settings_lose_the_place_of_their_base(finished):
    held = dict(uploaded(finished))["adapter/adapter_config.json"]
    assert json.loads(held) == {"base_model_name_or_path": "base"}


@pytest.mark.parametrize(
    ("name", "told"),
    [("mine", "the hub names models OWNER/NAME"), ("me/mi ne", "the hub names models OWNER/NAME")],
)
def test_other_names_are_refused(finished, capsys, name, told):
    assert cli.main(["push", str(finished.path), name, "--dry-run"]) == 2
    assert told in capsys.readouterr().err


def test_a_run_that_has_not_finished_is_refused(finished, capsys):
    finished.summary.unlink()
    assert cli.main(["push", str(finished.path), "me/mine", "--dry-run"]) == 2
    assert "has not finished, so there is no model to push" in capsys.readouterr().err


def test_without_a_network_it_says_so(finished, capsys, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    assert cli.main(["push", str(finished.path), "me/mine"]) == 2
    assert "HF_HUB_OFFLINE is set. Look at the files with --dry-run" in capsys.readouterr().err


def began_with(folder, path):
    return run_of(
        folder, Config(model=ModelConfig(path=path), tasks=TaskConfig(train={"tiny": 1.0})), {"steps": 1}
    )


def test_a_base_that_another_run_made_is_named_with_what_that_one_began_with(tmp_path):
    before = began_with(tmp_path / "sft-1", "owner/base")
    text = card(began_with(tmp_path / "rl-1", str(before.model)))
    assert "| base model | model of sft-1, from owner/base |" in text
    assert yaml.safe_load(text.split("---")[1])["base_model"] == "owner/base"
    assert str(tmp_path) not in text


@pytest.mark.parametrize("lacking", ["config", "format", "summary"])
def test_a_folder_that_is_no_finished_run_is_not_followed_and_its_name_is_not_told(tmp_path, lacking):
    before = began_with(tmp_path / "alice", "owner/base")
    getattr(before, lacking).unlink()
    text = card(began_with(tmp_path / "rl-1", f"{before.model}/"))
    assert "| base model | model |" in text
    assert "base_model" not in text
    assert "alice" not in text


def test_settings_in_the_folder_above_a_base_are_those_of_something_else(tmp_path, monkeypatch):
    began_with(tmp_path, "other/model")
    monkeypatch.chdir(tmp_path)
    for base, told in (
        ("random:llama", "random:llama"),
        (f"{tmp_path}/base", "base"),
        ("mine/model", "mine/model"),
    ):
        assert list(bases_of(began_with(tmp_path / "rl-1", base))) == [base]
        assert base_told(base) == told
        shutil.rmtree(tmp_path / "rl-1")


@pytest.mark.parametrize(
    "settings", ["model: gpt2", "[a, b]", "model: {path: [", "model:", "", "\xff", "{model: {path: null}}"]
)
def test_settings_that_say_nothing_of_a_model_end_the_row_of_bases(tmp_path, settings):
    before = began_with(tmp_path / "sft-1", "owner/base")
    before.config.write_bytes(settings.encode("latin-1"))
    assert list(bases_of(began_with(tmp_path / "rl-1", str(before.model)))) == [str(before.model)]


def test_an_adapter_tells_its_base_by_no_name_that_the_hub_could_have(tmp_path):
    files = began_with(tmp_path / "rl-1", "owner/base")
    for base, told in (("/home/alice/model", "model"), ("owner/base", "owner/base")):
        (files.adapter / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        held = dict(uploaded(files))["adapter/adapter_config.json"]
        assert json.loads(held) == {"base_model_name_or_path": told}


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("/home/alice/model", "model"),
        ("owner/name", "owner/name"),
        ("/data/models/base", "base"),
        ("~/models/base", "base"),
        ("/place/of/mine/tasks.py:riddles", "tasks.py:riddles"),
        ("gsm8k", "gsm8k"),
        ("", ""),
    ],
)
def test_places_are_told_by_their_last_part(text, wanted):
    assert public(text) == wanted
