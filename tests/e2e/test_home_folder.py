"""A run folder may be passed on: nothing in it names the home folder of who ran it, and the run goes on all the same."""

from __future__ import annotations

import json

import pytest
import yaml

from lightrft.datasets import response_file
from lightrft.testing import tiny_folder
from lightrft.utils.states import read_state
from tests.e2e.runs import PLAIN
from tests.e2e.test_media_learning import REWARD, picture, rows

pytest.importorskip("PIL.Image")


def everything(run):
    """Each file of a run as bytes; those that are packed, unpacked as well."""
    for file in (one for one in run.rglob("*") if one.is_file()):
        yield file, file.read_bytes()
        if file.suffix == response_file.SUFFIX:
            yield file, json.dumps(list(response_file.read(file))).encode()
        if file.name in ("state.pt", "capsule.pt"):
            yield file, repr(read_state(file)).encode()


def assert_nameless(run, home):
    places = [str(file.relative_to(run)) for file, held in everything(run) if str(home).encode() in held]
    assert places == [], f"they name {home}"


def begin(lightrft, *args, status=0):
    """A command of a user whose home folder is the test's, from a folder beside it."""
    done = lightrft.start(*args, env={"HOME": str(lightrft.cwd)}).wait()
    assert done.status == status, done.output
    return done.output


def test_a_run_about_pictures_names_no_folder_of_its_user_and_goes_on_from_elsewhere(lightrft, tmp_path):
    """Groups that are learned from again have their pictures' places in the checkpoint, a capsule has all settings, and rewards, rows
    and run are all told by their whole paths."""
    (tmp_path / "rewards.py").write_text(REWARD)
    rows(tmp_path, "train", 12, picture, "image", ".png")
    rows(tmp_path, "held", 4, picture, "image", ".png")
    flags = [
        *("--model", "random:llava", "--tasks.train", "file", "1"),
        *("--tasks.train-file", tmp_path / "train.jsonl", "--tasks.evaluate-file", tmp_path / "held.jsonl"),
        *("--tasks.rewards", f"{tmp_path}/rewards.py:said", "1", "--replay.groups-per-step", "2"),
        *("--evaluate.before-and-after=false", "--tasks.media-root", tmp_path),
        *("--checkpoint.every-steps", "2", "--log.capture-steps", "1"),
    ]
    begin(lightrft, "train", "tiny", *PLAIN, *flags, "--steps", "2", "--run", tmp_path / "run")
    assert_nameless(tmp_path / "run", tmp_path)
    settings = yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["tasks"]
    assert (settings["train_file"], settings["rewards"]) == ("~/train.jsonl", {"~/rewards.py:said": 1.0})
    assert "equal bit for bit" in begin(lightrft, "replay", tmp_path / "run", "--step", "1", "--run-code")
    (tmp_path / "elsewhere").mkdir()
    lightrft.cwd = tmp_path / "elsewhere"
    done = lightrft.start("train", "--resume", "../run", "--steps", "3", env={"HOME": str(tmp_path)}).wait()
    assert done.status == 0, done.output
    assert_nameless(tmp_path / "run", tmp_path)
    saved = response_file.read(tmp_path / "run" / "trajectories" / "step-000003.parquet")
    assert {m["content"][0]["image"] for row in saved for m in row["messages"]} <= {
        f"train-{n}.png" for n in range(12)
    }


def test_what_went_wrong_is_told_without_the_home_folder_and_whole_on_the_terminal(lightrft, tmp_path):
    (tmp_path / "bad.py").write_text("def bad(answer):\n    raise OSError(__file__)\n")
    flags = ["--rewards.functions", f"{tmp_path}/bad.py:bad", "1", "--rewards.on-failure", "drop"]
    output = begin(lightrft, "train", "tiny", *PLAIN, *flags, "--run", tmp_path / "run", status=2)
    assert f"{tmp_path}/bad.py" in output
    assert "~/bad.py" in (tmp_path / "run" / "log.txt").read_text()
    assert json.loads((tmp_path / "run" / "status.json").read_text())["state"] == "failed"
    assert_nameless(tmp_path / "run", tmp_path)


def test_fine_tuning_with_adapters_names_no_folder_of_its_user_either(lightrft, tmp_path):
    for name, count in (("train", 8), ("held", 4)):
        lines = [json.dumps({"prompt": f"{name} {n}", "target": "a"}) + "\n" for n in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(lines))
    flags = [
        *("--tasks.train", "file", "1", "--tasks.train-file", tmp_path / "train.jsonl"),
        *("--tasks.evaluate-file", tmp_path / "held.jsonl", "--steps", "2"),
        *("--model", tiny_folder(tmp_path / "m", "llama"), "--model.lora.rank", "2", *PLAIN[2:]),
    ]
    begin(lightrft, "sft", "sft_tiny", *flags, "--run", tmp_path / "run")
    assert_nameless(tmp_path / "run", tmp_path)
    assert yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())["model"]["path"] == "~/m"
    adapter = json.loads((tmp_path / "run" / "adapter" / "adapter_config.json").read_text())
    assert adapter["base_model_name_or_path"] == "~/m"
