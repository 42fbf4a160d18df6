"""A whole run of the layer `tiny`: what it leaves behind, and that it can be had again."""

from __future__ import annotations

import itertools
import json
from collections import Counter
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightrft.algorithms.kl import adaptive_kl
from lightrft.config import ModelConfig
from lightrft.models.load import load_processor
from lightrft.runs import trajectories
from lightrft.runs.capsule import read
from lightrft.runs.layout import RunFolder
from lightrft.runs.live import described, status
from lightrft.runs.reader import Run
from lightrft.strategy.checkpoint import Stored
from tests.e2e.runs import PACKING, PLAIN, assert_same_run, cold, model_bytes, rows, steps, summary


def test_a_run_leaves_everything_a_reader_looks_for(tiny_run):
    names = {path.name for path in tiny_run.iterdir()}
    assert names >= {
        "config.yaml",
        "metrics.jsonl",
        "summary.json",
        "curves.png",
        "model",
        "checkpoints",
        "trajectories",
    }
    assert (tiny_run / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert sorted(p.name for p in (tiny_run / "trajectories").iterdir()) == [
        f"step-00000{n}.parquet" for n in (1, 2, 3, 4)
    ]
    assert {p.name for p in (tiny_run / "evaluation").iterdir()} >= {"before.jsonl", "after.jsonl"}


def test_a_default_run_saves_what_its_update_computed_of_each_token(tiny_run):
    run = Run(tiny_run)
    processor = load_processor(ModelConfig(path=str(tiny_run / "model")))
    read = 0
    for row in run.responses(1, "trained"):
        tokens = run.tokens(1, row["place"])
        if not any(
            tokens["advantages"]
        ):  # update.skip_zero_advantage: not read, or the one that stands for them
            continue
        read += 1
        assert {len(column) for column in tokens.values()} == {len(tokens["ids"])}
        assert "".join(tokens["pieces"]) == processor.text(tokens["ids"], special=True)
        assert tokens["new"] == pytest.approx(
            tokens["behavior"], abs=1e-4
        )  # one update: the weights that sampled
        assert set(tokens["ratio"]) == {1.0}
        assert all(nats > 0 for nats in tokens["entropy"])
    assert read
    weights = [w for row in run.responses(1, "trained") for w in row["tokens"]["weight"]]
    assert sum(weights) == pytest.approx(1.0, abs=1e-3)


def test_its_events_say_when_each_phase_ended_and_its_status_that_it_has(tiny_run):
    folder = RunFolder(tiny_run)
    events = [json.loads(line) for line in folder.events().read_text(encoding="utf-8").splitlines()]
    assert (events[0]["event"], events[0]["step"], events[0]["processes"]) == ("start", 0, 1)
    assert [e["time"] for e in events] == sorted(e["time"] for e in events)
    assert [e["label"] for e in events if e["event"] == "evaluated"] == ["before", "after"]
    assert events[-1]["event"] == "saved"
    logged = Run(tiny_run).metrics()
    for row in [
        row for row in logged if 0 < row["step"] < 4
    ]:  # the last one's phases are those of an evaluation too
        for phase in ("rollout", "score", "train"):
            mine = [
                e for e in events if e["event"] == "phase" and (e["step"], e["phase"]) == (row["step"], phase)
            ]
            assert sum(e["seconds"] for e in mine) == pytest.approx(row[f"seconds/{phase}"], abs=1e-3)
    assert described(status(tiny_run)) == "finished after step 4 of 4"


def test_it_says_what_it_ran_on_and_no_path_of_the_machine(tiny_run):
    written = RunFolder(tiny_run).environment.read_text(encoding="utf-8")
    (start,) = json.loads(written)["starts"]
    assert start["versions"]["torch"] == torch.__version__
    assert start["processes"] == 1
    assert str(Path.home()) not in written


def test_the_summary_says_how_long_how_many_and_how_good(tiny_run):
    found = summary(tiny_run)
    assert found["seconds"] > 0
    assert found["steps"] == 4
    assert 0 <= found["evaluation"]["before"] <= 1
    assert 0 <= found["evaluation"]["after"] <= 1
    logged = {row["step"]: row["evaluation/mean"] for row in rows(tiny_run) if "evaluation/mean" in row}
    assert logged == {0: found["evaluation"]["before"], 4: found["evaluation"]["after"]}


def test_every_step_is_logged_once(tiny_run):
    assert [row["step"] for row in steps(tiny_run)] == [1, 2, 3, 4]


def test_plain_transformers_loads_the_model_that_was_trained(tiny_run):
    """Weight for weight the last checkpoint's; and it speaks through its own tokenizer and template."""
    model = AutoModelForCausalLM.from_pretrained(tiny_run / "model")
    tokenizer = AutoTokenizer.from_pretrained(tiny_run / "model")
    (last,) = (tiny_run / "checkpoints").glob("step-000004")
    stored, named = Stored(last / "tensors", "actor"), dict(model.named_parameters())
    trained = {f"weights/{name}": torch.zeros_like(weight) for name, weight in named.items()}
    assert {name for name in stored.shapes() if name.startswith("weights/")} == trained.keys()
    stored.into(trained)
    assert all(torch.equal(weight, trained[f"weights/{name}"]) for name, weight in named.items())
    text = tokenizer.apply_chat_template(
        [{"role": "user", "content": "kfi"}], add_generation_prompt=True, tokenize=False
    )
    tokens = tokenizer(text, return_tensors="pt", add_special_tokens=False)
    written = model.generate(**tokens, max_new_tokens=8, do_sample=False, pad_token_id=0)
    answer = tokenizer.decode(written[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True)
    lines = (tiny_run / "evaluation" / "after.jsonl").read_text(encoding="utf-8").splitlines()
    saved = {row["messages"][-1]["content"]: row["response"] for row in map(json.loads, lines)}
    assert answer == saved["kfi"]


def test_the_checkpoints_are_the_newest_two(tiny_run):
    assert sorted(p.name for p in (tiny_run / "checkpoints").iterdir()) == ["step-000002", "step-000004"]


def test_a_cold_start_and_all_defaults_give_the_same_run(tiny_run, tmp_path):
    """Another process, another hash seed, TensorBoard, live progress, rewards in processes of their own: no number moves."""
    done = cold("train", "tiny", "--run", "again", cwd=tmp_path)
    assert done.status == 0, done.output
    assert_same_run(tmp_path / "again", tiny_run)
    assert list((tmp_path / "again" / "tensorboard").iterdir())


def test_the_runs_own_config_reproduces_it(lightrft, tiny_run, tmp_path):
    lightrft("train", tiny_run / "config.yaml", "--run", "again")
    assert_same_run(tmp_path / "again", tiny_run)
    assert (tmp_path / "again" / "config.yaml").read_text() == (tiny_run / "config.yaml").read_text()


def test_leaving_out_the_pass_over_old_log_probs_changes_no_bit(lightrft, tiny_run, tmp_path):
    """With one update per step the new log-probs are the old ones."""
    (tmp_path / "careful.py").write_text(
        "from lightrft.trainer.rl import RLTrainer\n\nclass Careful(RLTrainer):\n"
        "    def score(self, trajectories):\n        self.scorer.needs_old = True\n        return super().score(trajectories)\n"
    )
    lightrft("train", "tiny", *PLAIN, "--run", "run", "--trainer", "careful.py:Careful")
    assert model_bytes(tmp_path / "run") == model_bytes(tiny_run)
    assert rows(tmp_path / "run") == rows(tiny_run)


@pytest.mark.parametrize(
    "flags",
    [
        ["--update.tokens-per-micro-batch", "20"],
        ["--update.share-prompts", "false"],
        ["--update.logits-per-chunk", "500"],
        ["--model.attention", "separate"],
        ["--model.gradient-checkpointing", "true"],
        ["--rollout.native.max-sequences", "3"],
        ["--rollout.native.prefill-tokens", "1"],
    ],
    ids=lambda flags: " ".join(flags),
)
def test_settings_of_speed_and_memory_change_no_result(lightrft, tiny_run, tmp_path, flags):
    lightrft(
        "train", "tiny", *PLAIN, "--run", "run", *flags, "--steps", "1", "--evaluate.before-and-after=false"
    )
    expected, (found,) = steps(tiny_run)[0], steps(tmp_path / "run")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        if name.startswith(PACKING):
            continue
        assert found[name] == pytest.approx(value, rel=1e-4, abs=1e-5), name


def test_the_finished_model_scores_on_its_own_what_the_run_said(lightrft, tiny_run, tmp_path):
    output = lightrft(
        "evaluate",
        "tiny",
        "--model",
        tiny_run / "model",
        "--evaluate.limit",
        "16",
        "--run",
        "scored",
        "--rewards.workers",
        "0",
    )
    report = json.loads((tmp_path / "scored" / "responses.json").read_text())
    assert report["tiny"]["score"]["mean"] == summary(tiny_run)["evaluation"]["after"]
    assert "pass@1" in output


def test_another_seed_is_another_run(lightrft, tiny_run, tmp_path):
    lightrft(
        "train",
        "tiny",
        *PLAIN,
        "--run",
        "other",
        "--seed",
        "1",
        "--steps",
        "1",
        "--evaluate.before-and-after=false",
    )
    assert steps(tmp_path / "other")[0] != steps(tiny_run)[0]


def test_a_finished_run_can_be_resumed_to_no_effect(lightrft, tiny_run, tmp_path):
    lightrft("train", "tiny", *PLAIN, "--run", "run")
    before = model_bytes(tmp_path / "run")
    lightrft("train", "--resume", "run")
    assert model_bytes(tmp_path / "run") == before
    assert_same_run(tmp_path / "run", tiny_run)


def test_a_finished_run_can_be_made_longer(lightrft, tiny_run, tmp_path):
    lightrft("train", "tiny", *PLAIN, "--run", "long", "--steps", "6")
    lightrft("train", "tiny", *PLAIN, "--run", "run")
    lightrft("train", "--resume", "run", "--steps", "6")
    assert [row["step"] for row in steps(tmp_path / "run")] == [1, 2, 3, 4, 5, 6]
    assert model_bytes(tmp_path / "run") == model_bytes(tmp_path / "long")
    assert (
        summary(tmp_path / "run")["evaluation"]["after"] == summary(tmp_path / "long")["evaluation"]["after"]
    )


def test_a_second_run_does_not_overwrite_the_first(lightrft, tiny_run):
    output = lightrft("train", "tiny", "--run", tiny_run, status=2)
    assert "there is a run already" in output
    assert "--resume" in output


def test_settings_that_were_refused_do_not_block_the_folder(lightrft, tmp_path):
    lightrft("train", "tiny", "--run", "run", "--algorithm.loss", "cliped", status=2)
    lightrft("train", "tiny", *PLAIN, "--run", "run", "--steps", "1", "--evaluate.before-and-after=false")
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["steps"] == 1


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_the_saved_model_of_a_lora_run_has_its_adapters_inside(lightrft, tmp_path, dtype):
    lightrft(
        "train",
        "tiny",
        "lora",
        *PLAIN,
        "--run",
        "run",
        "--model.dtype",
        dtype,
        "--evaluate.limit",
        "4",
        "--optimizer.learning-rate",
        "0.01",
    )
    saved = load_file(tmp_path / "run" / "model" / "model.safetensors")
    assert not [name for name in saved if "lora" in name or "base_layer" in name]
    assert not list((tmp_path / "run" / "model").glob("adapter*"))
    model = AutoModelForCausalLM.from_pretrained(tmp_path / "run" / "model")
    assert model.generate(torch.tensor([[1, 2, 3]]), max_new_tokens=2, pad_token_id=0).shape[1] > 3
    assert steps(tmp_path / "run")[-1]["grad_norm"] > 0


def test_in_its_warm_up_only_the_critic_learns(lightrft, tmp_path):
    flags = ["--rollout.prompts-per-step", "8", "--critic.warmup-steps", "2", "--steps", "4"]
    lightrft("train", "tiny", "ppo", *PLAIN, *flags, "--run", "run")
    taken = steps(tmp_path / "run")
    assert [row["rollout/oldest_weight_version"] for row in taken] == [0, 0, 0, 1]
    assert ["grad_norm" in row for row in taken] == [False, False, True, True]
    assert all(row["critic/grad_norm"] > 0 for row in taken)


def test_advantages_are_clipped(lightrft, tmp_path):
    lightrft("train", "tiny", *PLAIN, "--steps", "1", "--algorithm.advantage-clip", "0.25", "--run", "run")
    found = {a for row in trajectories.load(tmp_path / "run", 1) for a in row["tokens"]["advantages"]}
    assert max(map(abs, found)) == 0.25


def test_long_answers_lose_as_much_of_their_reward_as_is_set(lightrft, tmp_path):
    """A buffer of 4 of 8 tokens: an answer of 6 pays half of the penalty, one of 8 all of it."""
    flags = ["--algorithm.overlong-buffer", "4", "--algorithm.overlong-penalty", "0.5"]
    lightrft("train", "tiny", *PLAIN, *flags, "--steps", "1", "--run", "run")
    rows_of = trajectories.load(tmp_path / "run", 1)
    for row in rows_of:
        assert row["parts"]["overlong"] == max(0, row["length"] - 4) / 4
        assert row["reward"] == pytest.approx(row["parts"]["same_kind"] - 0.5 * row["parts"]["overlong"])
    assert {row["parts"]["overlong"] for row in rows_of} != {0.0}


def test_only_the_answers_that_a_filter_leaves_are_learned_from(lightrft, tmp_path):
    lightrft("train", "tiny", "pf_ppo", *PLAIN, "--steps", "1", "--capture-steps", "1", "--run", "run")
    uses = Counter(row["use"] for row in trajectories.load(tmp_path / "run", 1))
    assert uses == {"trained": 8, "unselected": 8}, "all are recorded"
    assert len(read(tmp_path / "run", 1).trajectories) == 8, "of four groups two each"
    assert "equal bit for bit" in lightrft("replay", "run", "--step", "1")


def test_the_weight_of_the_divergence_is_steered_and_replayed(lightrft, tmp_path):
    flags = ["--algorithm.kl-target", "0.0001", "--algorithm.kl-gain", "0.5", "--capture-steps", "4"]
    lightrft("train", "tiny", "grpo", *PLAIN, *flags, "--steps", "4", "--run", "run")
    taken = steps(tmp_path / "run")
    assert taken[0]["kl_coefficient"] == 0.04
    assert len({row["kl_coefficient"] for row in taken}) > 2
    for row, following in itertools.pairwise(taken):
        assert following["kl_coefficient"] == pytest.approx(
            adaptive_kl(row["kl_coefficient"], row["kl"], target=0.0001, gain=0.5)
        )
    assert "equal bit for bit" in lightrft("replay", "run", "--step", "4")


def test_a_reference_that_follows_each_step_is_where_the_policy_is(lightrft, tmp_path):
    lightrft("train", "tiny", "grpo", *PLAIN, "--algorithm.reference-update-steps", "1", "--run", "follows")
    lightrft("train", "tiny", "grpo", *PLAIN, "--algorithm.reference-update-steps", "3", "--run", "late")
    assert [row["kl"] for row in steps(tmp_path / "follows")] == [0.0] * 4
    assert [row["kl"] > 0 for row in steps(tmp_path / "late")] == [False, True, True, False]


def test_answers_of_earlier_steps_are_learned_from_again(lightrft, tmp_path):
    flags = ["--replay.groups-per-step", "2", "--replay.max-age", "1", "--capture-steps", "3"]
    lightrft("train", "tiny", *PLAIN, *flags, "--run", "run")
    learned = [
        Counter(row["weight_version"] for row in trajectories.load(tmp_path / "run", step))
        for step in (1, 2, 3)
    ]
    assert learned == [{0: 16}, {1: 16, 0: 8}, {2: 16, 1: 8}]
    origins = Counter(row["origin"] for row in trajectories.load(tmp_path / "run", 3))
    assert origins == {"sampled": 16, "replayed": 8}
    ratios = [row["ratio/mean"] for row in steps(tmp_path / "run")]
    assert ratios[0] == 1.0
    assert all(ratio != 1.0 for ratio in ratios[1:]), "by the log-probs of the policy that sampled them"
    assert all(row["counts/responses"] == 16 for row in steps(tmp_path / "run"))
    assert "equal bit for bit" in lightrft("replay", "run", "--step", "3")


def test_groups_drawn_too_much_are_learned_from_in_the_next_step(lightrft, tmp_path):
    flags = [
        "--algorithm.group-filter",
        "mixed_outcomes",
        "--rollout.extra-groups",
        "carry_over",
        "--rollout.group-size",
        "2",
    ]
    lightrft("train", "tiny", *PLAIN, *flags, "--rollout.max-sampling-rounds", "9", "--run", "run")
    taken = steps(tmp_path / "run")
    waiting = [int(row["rollout/groups_carried_over"]) for row in taken]
    assert any(waiting[:-1])
    for before, step in itertools.pairwise((1, 2, 3, 4)):
        rows_of = trajectories.load(tmp_path / "run", step)
        trained = [row for row in rows_of if row["use"] == "trained"]
        older = [row for row in trained if row["weight_version"] < step - 1]
        assert older == [row for row in rows_of if row["origin"] == "carried_over"]
        assert len(older) == 2 * waiting[before - 1]
        assert len(trained) == 8, "they take the place of new ones"
        rest = Counter(row["use"] for row in rows_of if row["use"] != "trained")
        assert rest["waiting"] == 2 * waiting[step - 1]
        assert rest["filtered_out"] + rest["extra"] == 2 * taken[step - 1]["rollout/groups_filtered_out"]
        sampled = [row["reward"] for row in rows_of if row["origin"] == "sampled"]
        assert taken[step - 1]["reward/mean"] == pytest.approx(sum(sampled) / len(sampled), abs=1e-5)


def test_an_answer_that_waits_keeps_the_baseline_of_the_weights_that_sampled_it(lightrft, tmp_path):
    """Its greedy answer is drawn beside it, not in the step that learns from it: that one draws for its new groups only."""
    (tmp_path / "engines.py").write_text(COUNTING_ENGINE)
    flags = [
        "--algorithm.group-filter",
        "mixed_outcomes",
        "--rollout.extra-groups",
        "carry_over",
        "--rollout.group-size",
        "2",
    ]
    flags += ["--rollout.max-sampling-rounds", "9", "--rollout.engine", "engines.py:counting"]
    flags += ["--evaluate.before-and-after=false"]
    lightrft("train", "tiny", *PLAIN, "--algorithm.advantage", "greedy_baseline", *flags, "--run", "run")
    taken = steps(tmp_path / "run")
    waiting = [int(row["rollout/groups_carried_over"]) for row in taken]
    assert any(waiting[:-1])
    drawn = [int(line) for line in (tmp_path / "greedy").read_text().split()]
    learned = 4  # groups per step
    assert drawn == [learned - before + now for before, now in zip([0, *waiting], waiting, strict=False)]


COUNTING_ENGINE = '''
from lightrft.engines.native import native_engine

def counting(module, processor, config):
    """The native engine; writes down how many greedy answers each call for training asks for."""
    engine = native_engine(module, processor, config)
    draw = engine.generate

    def generate(prompts, sampling, progress=None):
        if sampling.temperature == 0:
            with open("greedy", "a") as file:
                file.write(f"{len(prompts)}\\n")
        return draw(prompts, sampling, progress)

    engine.generate = generate
    return engine
'''


def test_a_constraint_that_is_added_later_begins_with_answers_that_know_their_cost(lightrft, tmp_path):
    flags = ["--replay.groups-per-step", "2", "--checkpoint.every-steps", "1", "--run", "run", "--steps", "1"]
    lightrft("train", "tiny", *PLAIN, *flags)
    lightrft("train", "--resume", "run", "--constraint.cost", "length", "--steps", "3")
    learned = [Counter(r["weight_version"] for r in trajectories.load(tmp_path / "run", s)) for s in (2, 3)]
    assert learned == [{1: 16}, {2: 16, 1: 8}]


def test_a_constraint_holds_its_cost_down_and_rewards_are_normalised(lightrft, tmp_path):
    """Two answers of a group differ by their cost alone where their rewards are equal."""
    flags = ["--constraint.cost", "length", "--constraint.limit", "0", "--constraint.learning-rate", "1000"]
    more = ["--rewards.normalise", "scale", "--rewards.scale", "tiny", "0", "--constraint.multiplier", "0"]
    lightrft("train", "tiny", *PLAIN, *flags, *more, "--steps", "1", "--run", "run")
    (row,) = steps(tmp_path / "run")
    assert row["constraint/multiplier"] == pytest.approx(min(100, 1000 * row["reward/length"]))
    for _, group in itertools.groupby(trajectories.load(tmp_path / "run", 1), key=lambda row: row["group"]):
        by_length = sorted(group, key=lambda row: row["length"])
        advantages = [row["tokens"]["advantages"][0] for row in by_length]
        assert advantages == sorted(advantages, reverse=True), "with a scale of 0 only the cost is left"


def test_the_check_and_the_run_agree_about_a_constraint_and_a_teacher(lightrft, tmp_path):
    """The cost of an answer is no mark that a right answer must reach."""
    flags = [
        "--constraint.cost",
        "length",
        "--algorithm.teacher-coefficient",
        "0.1",
        "--teacher.path",
        "random:llama",
    ]
    output = lightrft("check", "tiny", *PLAIN, *flags)
    assert "full marks" in output
    assert "the teacher random:llama" in output


def test_going_on_without_a_surplus_answers_that_waited_keep_their_ratio(lightrft, tmp_path):
    flags = [
        "--algorithm.group-filter",
        "mixed_outcomes",
        "--rollout.extra-groups",
        "carry_over",
        "--rollout.group-size",
        "2",
    ]
    flags += [
        "--rollout.max-sampling-rounds",
        "9",
        "--checkpoint.every-steps",
        "1",
        "--run",
        "run",
        "--steps",
        "1",
    ]
    lightrft("train", "tiny", *PLAIN, *flags)
    waited = steps(tmp_path / "run")[-1]["rollout/groups_carried_over"]
    assert waited > 0
    lightrft("train", "--resume", "run", "--rollout.extra-groups", "drop", "--steps", "2")
    assert steps(tmp_path / "run")[-1]["ratio/mean"] != 1.0


def test_an_engine_that_does_not_agree_with_the_trainer_is_told_once_with_likely_causes(lightrft, tmp_path):
    (tmp_path / "engines.py").write_text(DISAGREEING_ENGINE)
    flags = ["--evaluate.before-and-after=false", "--run"]
    lightrft("train", "tiny", *PLAIN, "--rollout.engine", "engines.py:shifted", *flags, "run")
    told = (
        "engine and trainer do not agree: the largest difference is 0.5, usual for float32 is at most 0.001"
    )
    said = (tmp_path / "run" / "log.txt").read_text()
    assert said.count(told) == 1
    assert "logged as mismatch/*; algorithm.mismatch_correction=truncate weighs against it." in said, "auto"
    lightrft("train", "tiny", *PLAIN, *flags, "agreeing")
    assert "do not agree" not in (tmp_path / "agreeing" / "log.txt").read_text()


DISAGREEING_ENGINE = '''
from dataclasses import replace
from lightrft.engines.native import native_engine

def shifted(module, processor, config):
    """The native engine, all of whose log-probs are half a nat too low."""
    engine = native_engine(module, processor, config)
    draw = engine.generate

    def generate(prompts, sampling, progress=None):
        groups = draw(prompts, sampling, progress)
        return [[replace(a, logprobs=[x - 0.5 for x in a.logprobs]) for a in answers] for answers in groups]

    engine.generate = generate
    return engine
'''
