"""The card of a run, and what would be uploaded with it: all that a reader needs, and no place on the machine that made it."""

import json
from dataclasses import fields

import pytest
import yaml

from lightrft import cli
from lightrft.commands.push import ROW, algorithm_row, card, public
from lightrft.config import AlgorithmConfig, Config, LoraConfig, ModelConfig, SFTConfig, TaskConfig
from lightrft.runs.folder import settings_text
from lightrft.runs.layout import RunFolder

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
    assert "3 files and README.md would go to me/mine; nothing was uploaded." in printed
    assert str(finished.path) not in printed


def test_an_adapters_settings_lose_the_place_of_their_base(finished):
    from lightrft.commands.push import uploaded

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


def test_a_base_that_another_run_made_is_named_with_what_that_one_began_with(finished, tmp_path):
    taught = SFTConfig(model=ModelConfig(path="owner/base"), tasks=TaskConfig(train={"tiny": 1.0}))
    before = run_of(tmp_path / "sft-1", taught, {"steps": 3})
    config = Config(model=ModelConfig(path=f"{before.model}"), tasks=TaskConfig(train={"tiny": 1.0}))
    text = card(run_of(tmp_path / "rl-1", config, {"steps": 1}))
    assert "| base model | sft-1/model, from owner/base |" in text
    assert yaml.safe_load(text.split("---")[1])["base_model"] == "owner/base"
    assert str(tmp_path) not in text
    before.config.unlink()
    assert "| base model | sft-1/model |" in card(RunFolder(tmp_path / "rl-1"))


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("/runs/sft-1/model", "sft-1/model"),
        ("~/runs/sft-1/model/", "sft-1/model"),
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
