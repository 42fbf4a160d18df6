"""`lightrft sft` from the command line: it learns, it resumes to the same end, and what it leaves behind can be used."""

from __future__ import annotations

import json
import random
import shutil
import signal
import time
from pathlib import Path

import pytest
import torch
import yaml
from peft import PeftModel
from PIL import Image
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightrft.config import ModelConfig
from lightrft.console.web import answers
from lightrft.models.load import load_model
from lightrft.runs.reader import Run
from tests.e2e.runs import PLAIN, Lightrft, assert_same_run, cold, model_bytes, rows, summary, wait_until

QUIET = ["--log.tensorboard=false", "--log.curves=false", "--log.progress=false"]
TWELVE = ["--steps", "12", "--checkpoint.every-steps", "5", "--evaluate.every-steps", "4", "--evaluate.limit", "12"]  # fmt: skip
VARIANTS = {
    "plain": [],
    "schedule": ["--optimizer.schedule", "cosine", "--optimizer.warmup-steps", "3", "--average", "sequence"],
    "lora": ["lora", "--model.lora.dropout", "0.2"],
    "bf16": ["bf16"],
    "epochs": ["--steps", "0", "--epochs", "0.4", "--tasks.train-limit", "300"],
}
DEMO_DATA = Path(__file__).resolve().parents[3] / "shared" / "data" / "sft_pref_demo"


def arguments(variant):
    layers = [x for x in VARIANTS[variant] if x in ("lora", "bf16")]
    return ["sft", "sft_tiny", *layers, *QUIET, *TWELVE, *(x for x in VARIANTS[variant] if x not in layers)]


@pytest.fixture(scope="session")
def learned(server, tmp_path_factory):
    """The folder of one finished run of the layer `sft_tiny` that tests read and never change."""
    folder = tmp_path_factory.mktemp("sft")
    Lightrft(server, folder)("sft", "sft_tiny", "--log.progress=false", "--run", "run")
    return folder / "run"


@pytest.fixture(scope="session")
def whole(server, tmp_path_factory):
    """Variant -> the folder of its uninterrupted run, made when first asked for, and how long it took."""
    made = {}

    def of(variant):
        if variant not in made:
            folder, start = tmp_path_factory.mktemp(variant), time.monotonic()
            Lightrft(server, folder)(*arguments(variant), "--run", "run")
            made[variant] = folder / "run", time.monotonic() - start
        return made[variant]

    return of


def test_epochs_count_passes_over_all_conversations(whole):
    run, _ = whole("epochs")
    assert updates(run)[-1]["step"] == 8  # 0.4 x 300 conversations, 16 a step
    assert updates(run)[-1]["epoch"] == 128 / 300
    assert not (run / "curves.png").exists(), "log.curves=false"


def test_a_run_whose_loss_is_no_number_stops_and_says_so(lightrft, tmp_path):
    flags = ["--optimizer.learning-rate", "1e38", "--optimizer.max-bad-steps", "3"]
    output = lightrft("sft", "sft_tiny", *QUIET, *flags, "--run", "run", status=2)
    assert "3 optimizer steps in a row had a NaN or infinite loss" in output
    assert [row["counts/skipped_updates"] for row in updates(tmp_path / "run")[1:]] == [1.0, 1.0]


def updates(run):
    return [row for row in rows(run) if "nll" in row]


def score(lightrft, model, name):
    lightrft("evaluate", "tiny", "--model", model, "--evaluate.max-tokens", "8", "--run", name)
    return json.loads((lightrft.cwd / name / "responses.json").read_text())["tiny"]["score"]["mean"]


def test_it_learns_the_gold_answers_of_a_task_for_questions_it_never_saw(lightrft, learned):
    losses = summary(learned)["held_out_nll"]
    assert losses["before"] > 5.0
    assert losses["after"] < 1.0
    before, after = score(lightrft, "random:llama", "before"), score(lightrft, learned / "model", "after")
    assert before < 0.2
    assert after > 0.9


def test_the_run_folder_holds_what_a_run_leaves_behind(learned):
    for name in ("config.yaml", "metrics.jsonl", "summary.json", "curves.png", "log.txt", "tensorboard"):
        assert (learned / name).exists(), name
    assert [row["step"] for row in updates(learned)] == list(range(1, 61))
    measured = [row["step"] for row in rows(learned) if "held_out_nll/mean" in row]
    assert measured == [0, 20, 40, 60]
    last = rows(learned)[-2]
    assert last["loss"] == pytest.approx(last["nll"], abs=1e-6)
    assert last["epoch"] == 60 * 16 / 600
    assert last["counts/tokens_learned"] == 16 * 4


def test_the_configuration_in_the_run_folder_alone_repeats_the_run(lightrft, whole, tmp_path):
    expected, _ = whole("plain")
    lightrft("sft", expected / "config.yaml", "--run", "again")
    assert_same_run(tmp_path / "again", expected)


def test_plain_transformers_loads_the_finished_model_and_it_answers(learned):
    model = AutoModelForCausalLM.from_pretrained(learned / "model")
    tokenizer = AutoTokenizer.from_pretrained(learned / "model")
    asked = tokenizer.apply_chat_template(
        [{"role": "user", "content": "472"}],
        add_generation_prompt=True,
        return_tensors="pt",
        return_dict=True,
    )
    with torch.no_grad():
        said = model.generate(**asked, max_new_tokens=8, do_sample=False)
    answer = said[0, asked["input_ids"].shape[1] :].tolist()
    assert answer[-1] == tokenizer.eos_token_id
    assert tokenizer.decode(answer[:-1]).isdigit()


def test_held_out_responses_are_saved_whenever_it_is_measured_with_what_the_model_says_itself(learned):
    run, tokenizer = Run(learned), AutoTokenizer.from_pretrained(learned / "model")
    assert (run.steps, run.learns_from_given) == ([0, 20, 40, 60], True)
    model = AutoModelForCausalLM.from_pretrained(learned / "model")
    groups = run.groups(-1)
    assert len(groups) == 16
    for group in groups[::5]:
        own, given = group.responses
        asked = tokenizer.apply_chat_template(own["messages"], add_generation_prompt=True, return_dict=True)
        prompt = torch.tensor([asked["input_ids"]])
        with torch.no_grad():
            said = model.generate(prompt, max_new_tokens=16, do_sample=False)[0, prompt.shape[1] :].tolist()
            read = torch.cat([prompt, torch.tensor([given["tokens"]["ids"]])], 1)
            log_probs = model(read).logits[0, prompt.shape[1] - 1 : -1].log_softmax(-1)
        new = log_probs.gather(1, torch.tensor([given["tokens"]["ids"]]).T).squeeze(1)
        assert own["tokens"]["ids"] == said
        assert given["tokens"]["new"] == pytest.approx(new.tolist(), abs=2e-5)
        assert given["parts"]["nll"] == pytest.approx(-float(new.mean()), abs=2e-5)
        assert own["reward"] == float(said == given["tokens"]["ids"])
        assert group.target == given["response"]
        assert given["statuses"] == ["held_out", "given"]
        assert "behavior" not in run.tokens(-1, given["place"])


def test_viewers_show_how_held_out_responses_change(lightrft, learned, tmp_path):
    shown = {when: answers.answer([Run(learned)], f"0/evaluation/{when}") for when in ("before", "after")}
    right = {when: sum(row["correct"] for row in found["responses"]) for when, found in shown.items()}
    assert [len(found["responses"]) for found in shown.values()] == [16, 16]
    assert right["before"] < 4
    assert right["after"] > 12
    assert [row["prompt_id"] for row in shown["before"]["responses"]] == [
        row["prompt_id"] for row in shown["after"]["responses"]
    ]
    assert "held-out responses are saved of steps 0, 20, 40, 60" in " ".join(
        lightrft("view", learned).split()
    )
    assert "held out, of the data" in lightrft("view", learned, "--step", "0", "--group", "0")
    lightrft("view", learned, "--export", "run.html")
    assert '"0/groups/60"' in (tmp_path / "run.html").read_text()


def test_a_run_that_is_to_save_no_responses_saves_none(lightrft, tmp_path):
    flags = ["--steps", "1", "--evaluate.limit", "4", "--log.held-out-prompts", "0"]
    flags += ["--log.sampled-tokens", "128"]  # the default: the layer's 16 would have no effect
    lightrft("sft", "sft_tiny", *QUIET, *flags, "--run", "run")
    assert not (tmp_path / "run" / "trajectories").exists()
    assert not (tmp_path / "run" / "evaluation").exists()


def test_with_weights_in_pieces_it_samples_where_that_is_asked_for(lightrft, tmp_path):
    flags = ["--strategy.backend", "fsdp", "--processes", "2", "--steps", "2", "--evaluate.every-steps", "0"]
    few = ["--evaluate.limit", "8", "--log.held-out-prompts", "5", "--log.sample-sharded=true"]
    lightrft("sft", "sft_tiny", *QUIET, *flags, *few, "--run", "run")
    assert_five_are_sampled(Run(tmp_path / "run"))


def assert_five_are_sampled(run):
    """By two ranks, in the order of the prompts, each beside its response of the data."""
    assert run.steps == [0, 2]
    for step, when in ((0, "before"), (2, "after")):
        assert [row["group"] for row in run.evaluation(when).responses] == [0, 1, 2, 3, 4]
        assert [len(group.responses) for group in run.groups(step)] == [2] * 5
        assert {row["rank"] for row in run.find("held_out", step=step)} == {0, 1}


def test_reinforcement_learning_goes_on_from_it(lightrft, learned, tmp_path):
    few = ["--steps", "2", "--optimizer.learning-rate", "1e-4"]
    lightrft("train", "tiny", *PLAIN, "--model", learned / "model", *few, "--run", "run")
    assert summary(tmp_path / "run")["evaluation"]["before"] > 0.9


@pytest.mark.parametrize("variant", VARIANTS)
def test_killed_after_a_random_step_it_goes_on_to_the_same_end(lightrft, whole, tmp_path, variant):
    expected, _ = whole(variant)
    running = lightrft.start(*arguments(variant), "--run", "run")
    kill_after_step(running, tmp_path / "run", random.Random(variant).randrange(1, len(updates(expected))))
    lightrft("sft", "--resume", "run")
    assert_same_run(tmp_path / "run", expected)


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_a_random_moment_it_goes_on_to_the_same_end(lightrft, whole, tmp_path, seed):
    expected, seconds = whole("plain")
    running = lightrft.start(*arguments("plain"), "--run", "run")
    wait_until(lambda: (tmp_path / "run" / "config.yaml").exists(), running=running)
    time.sleep(random.Random(seed).uniform(0, 0.9 * seconds))
    running.send(signal.SIGKILL)
    assert running.wait().status in (-signal.SIGKILL, 0)
    lightrft("sft", "--resume", "run")
    assert_same_run(tmp_path / "run", expected)


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)])
def test_asked_to_stop_it_saves_and_says_so_and_goes_on_to_the_same_end(
    lightrft, whole, tmp_path, number, status
):
    expected, _ = whole("plain")
    running = lightrft.start(*arguments("plain"), "--run", "run")
    wait_for_step(running, tmp_path / "run", 2)
    running.send(number)
    stopped = running.wait()
    assert stopped.status == status, stopped.output
    assert "lightrft sft --resume run" in stopped.output
    last = updates(tmp_path / "run")[-1]["step"]
    assert (tmp_path / "run" / "checkpoints" / f"step-{last:06d}").is_dir()
    lightrft("sft", "--resume", "run")
    assert_same_run(tmp_path / "run", expected)


def test_a_finished_run_goes_on_for_more_steps_as_if_it_had_never_stopped(lightrft, whole, tmp_path):
    expected, _ = whole("plain")
    lightrft(*arguments("plain"), "--run", "run", "--steps", "7")
    lightrft("sft", "--resume", "run", "--steps", "12")
    assert model_bytes(tmp_path / "run") == model_bytes(expected)
    assert "steps: 7" in (tmp_path / "run" / "config-until-step-000007.yaml").read_text()


def test_resuming_with_other_answers_is_refused(lightrft, tmp_path):
    rows_of(tmp_path / "rows.jsonl", [("hi", "yes"), ("and", "no")])
    file = [
        *("--tasks.train", "file", "1", "--tasks.train-file", "rows.jsonl", "--batch-size", "2"),
        *NO_HELD_OUT,
    ]
    lightrft("sft", "sft_tiny", *QUIET, *file, "--steps", "1", "--run", "run")
    rows_of(tmp_path / "rows.jsonl", [("hi", "yes"), ("and", "yes")])
    output = lightrft("sft", "--resume", "run", "--steps", "2", status=2)
    assert "training data of 'file' changed" in output


NO_HELD_OUT = ["--evaluate.before-and-after=false", "--evaluate.every-steps", "0"]


def rows_of(file, pairs):
    file.write_text("".join(json.dumps({"prompt": q, "completion": a}) + "\n" for q, a in pairs))


def test_ones_own_conversations_are_learned_turn_by_turn(lightrft, tmp_path):
    """Of two turns each, in a file of a user's own; the held-out file is named by itself."""
    for file, names in (("train.jsonl", "abcdefghijklmnop"), ("held.jsonl", "qrst")):
        talks = [
            [("user", name), ("assistant", "one"), ("user", "next"), ("assistant", "two")] for name in names
        ]
        lines = [{"messages": [{"role": r, "content": c} for r, c in talk]} for talk in talks]
        (tmp_path / file).write_text("".join(json.dumps(line) + "\n" for line in lines))
    files = [
        "--tasks.train",
        "file",
        "1",
        "--tasks.train-file",
        "train.jsonl",
        "--tasks.evaluate-file",
        "held.jsonl",
    ]
    lightrft("sft", "sft_tiny", *QUIET, *files, "--max-tokens", "32", "--run", "run")
    assert summary(tmp_path / "run")["held_out_nll"]["after"] < 0.2
    assert updates(tmp_path / "run")[0]["counts/tokens_learned"] == 16 * 8


def test_what_is_said_about_pictures_is_learned(lightrft, tmp_path):
    """The question is always the same: only the picture tells the answer."""
    colours = {"red": (255, 0, 0), "lime": (0, 255, 0), "blue": (0, 0, 255)}
    for name, colour in colours.items():
        Image.new("RGB", (28, 28), colour).save(tmp_path / f"{name}.png")
    talks = [
        {
            "image": f"{name}.png",
            "messages": [
                {"role": "user", "content": "<image>?"},
                {"role": "assistant", "content": name},
                {"role": "user", "content": "sure?"},
                {"role": "assistant", "content": "yes"},
            ],
        }
        for name in colours
    ]
    for file, rows_ in (("train.jsonl", talks * 8), ("held.jsonl", talks)):
        (tmp_path / file).write_text("".join(json.dumps(row) + "\n" for row in rows_))
    files = [
        "--tasks.train",
        "file",
        "1",
        "--tasks.train-file",
        "train.jsonl",
        "--tasks.evaluate-file",
        "held.jsonl",
    ]
    flags = ["--model", "random:llava", "--max-tokens", "32", "--evaluate.every-steps", "0"]
    lightrft("sft", "sft_tiny", *QUIET, *files, *flags, "--run", "run")
    assert summary(tmp_path / "run")["held_out_nll"]["after"] < 0.05  # blind, log 3 over 9 tokens: 0.12


def test_after_a_picture_that_cannot_be_read_the_steps_before_it_are_not_lost(lightrft, tmp_path):
    names = [f"{n}.png" for n in range(12)]
    for n, name in enumerate(names):
        Image.new("RGB", (28, 28), (20 * n, 0, 0)).save(tmp_path / name)
    talks = [{"image": name, "prompt": "<image>?", "completion": str(n)} for n, name in enumerate(names)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in talks))
    file = ["--tasks.train", "file", "1", "--tasks.train-file", "rows.jsonl", *NO_HELD_OUT]
    flags = ["--model", "random:llava", "--batch-size", "1", "--steps", "12", "--checkpoint.every-steps", "0"]
    lightrft("sft", "sft_tiny", *QUIET, *file, *flags, "--run", "whole")
    (tmp_path / "5.png").rename(tmp_path / "away.png")
    assert "5.png" in lightrft("sft", "sft_tiny", *QUIET, *file, *flags, "--run", "run", status=2)
    last = updates(tmp_path / "run")[-1]["step"]
    assert (tmp_path / "run" / "checkpoints" / f"step-{last:06d}").is_dir()
    (tmp_path / "away.png").rename(tmp_path / "5.png")
    lightrft("sft", "--resume", "run")
    assert_same_run(tmp_path / "run", tmp_path / "whole")


def test_long_answers_are_cut_or_left_out_and_the_run_says_so(lightrft, tmp_path):
    rows_of(tmp_path / "rows.jsonl", [("hi", "yes"), ("and", "something long")])
    file = [
        *("--tasks.train", "file", "1", "--tasks.train-file", "rows.jsonl", "--batch-size", "2"),
        *NO_HELD_OUT,
    ]
    more = [*file, "--steps", "1"]
    output = lightrft("sft", "sft_tiny", *QUIET, *more, "--run", "skip")
    assert "responses over max_tokens=8: 1 skipped, 0 truncated" in output
    output = lightrft("sft", "sft_tiny", *QUIET, *more, "--on-long-response", "truncate", "--run", "cut")
    assert "0 skipped, 1 truncated" in output
    assert updates(tmp_path / "cut")[0]["length/truncated_fraction"] == 0.5
    output = lightrft(
        "sft", "sft_tiny", *QUIET, *more, "--on-long-response", "raise", "--run", "raise", status=2
    )
    assert "rows.jsonl:2: what follows the prompt has 15 tokens, max_tokens=8" in output


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--tasks.train", "file", "1"], "tasks.train_file"),
        (["--tasks.train", "svamp", "1"], "has no training rows"),
        (["--model.chat-template", "plain"], "no end token after a response"),
        (["--strategy.backend", "singel"], "Did you mean 'single'"),
        (["--model.path", "random:lama"], "no such tiny model"),
    ],
)
def test_a_mistake_is_told_before_any_weight_loads(lightrft, flags, message):
    assert message in lightrft("sft", "sft_tiny", *QUIET, *flags, "--run", "run", status=2)


def test_held_out_rows_are_never_split_off_by_guess(lightrft, tmp_path):
    rows_of(tmp_path / "rows.jsonl", [("hi", "yes")])
    file = ["--tasks.train", "file", "1", "--tasks.train-file", "rows.jsonl"]
    output = lightrft("sft", "sft_tiny", *QUIET, *file, "--run", "run", status=2)
    assert "none are split off by guess" in output


def test_a_finished_run_that_is_resumed_says_that_nothing_is_left(lightrft, learned, tmp_path):
    shutil.copytree(learned, tmp_path / "run")
    before = model_bytes(tmp_path / "run")
    output = lightrft("sft", "--resume", "run")
    assert (
        "all its 60 steps: nothing is left to learn. To go on: lightrft sft --resume run --steps 120"
        in output
    )
    assert model_bytes(tmp_path / "run") == before


@pytest.mark.parametrize("layers", [["lora"], ["lora", "fsdp"]], ids=" ".join)
def test_adapters_are_saved_beside_the_model_that_they_make(lightrft, tmp_path, layers):
    many = ["--processes", "2"] if "fsdp" in layers else []
    flags = [*QUIET, *NO_HELD_OUT, "--steps", "2", "--optimizer.learning-rate", "0.1"]
    lightrft("sft", "sft_tiny", *layers, *many, *flags, "--run", "run")
    run, tokens = tmp_path / "run", torch.tensor([[1, 2, 3, 4]])
    base = load_model(ModelConfig(path="random:llama"), trainable=False)
    base.set_attn_implementation("eager")
    with torch.no_grad():
        before = base(tokens).logits
        theirs = PeftModel.from_pretrained(base, run / "adapter")(tokens).logits
        merged = AutoModelForCausalLM.from_pretrained(run / "model", attn_implementation="eager")(
            tokens
        ).logits
    torch.testing.assert_close(theirs, merged, atol=1e-5, rtol=0)
    assert (merged - before).abs().max() > 1e-2


def test_a_run_is_resumed_by_the_command_that_began_it(lightrft, learned):
    assert "settings of `lightrft sft`" in lightrft("train", "--resume", learned, status=2)


def test_a_fresh_interpreter_does_the_same(whole, tmp_path):
    expected, _ = whole("plain")
    done = cold(*arguments("plain"), "--run", "run", cwd=tmp_path)
    assert done.status == 0, done.output
    assert_same_run(tmp_path / "run", expected)


@pytest.mark.skipif(not DEMO_DATA.is_dir(), reason=f"needs {DEMO_DATA}")
@pytest.mark.parametrize("file", ["alpaca_en_demo.jsonl", "kto_en_demo.jsonl"])
def test_real_rows_are_read_and_learned_from(lightrft, tmp_path, file):
    lines = (DEMO_DATA / file).read_text(encoding="utf-8").splitlines()
    (tmp_path / "train.jsonl").write_text("\n".join(lines[:60]))
    (tmp_path / "held.jsonl").write_text("\n".join(lines[60:72]))
    files = [
        "--tasks.train",
        "file",
        "1",
        "--tasks.train-file",
        "train.jsonl",
        "--tasks.evaluate-file",
        "held.jsonl",
    ]
    room = ["--max-tokens", "128", "--on-long-response", "truncate", "--tasks.max-prompt-tokens", "300"]
    lightrft("sft", "sft_tiny", *QUIET, *files, *room, "--batch-size", "8", "--steps", "20", "--run", "run")
    losses = summary(tmp_path / "run")["held_out_nll"]
    assert losses["after"] < losses["before"] - 1.5


def test_the_settings_of_a_run_are_all_there(learned):
    saved = yaml.safe_load((learned / "config.yaml").read_text())
    assert (saved["batch_size"], saved["train_on"], saved["name"]) == (16, "all_turns", "sft_tiny")


def wait_for_step(running, run, step):
    def reached():
        return (run / "metrics.jsonl").exists() and any(row["step"] >= step for row in updates(run))

    wait_until(reached, running=running)


def kill_after_step(running, run, step):
    """SIGKILL once the line of this step is written; what comes after it in the step is hit by chance."""
    wait_for_step(running, run, step)
    running.send(signal.SIGKILL)
    running.wait()
