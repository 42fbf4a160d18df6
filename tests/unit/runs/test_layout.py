"""The arrangement of a run folder: its number, its summary, its evaluations."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from lightrft import __version__
from lightrft.config import Config, layers
from lightrft.runs.folder import new_run
from lightrft.runs.layout import EvaluationFolder, RunFolder, newest_runs


def test_a_new_run_says_how_its_files_are_arranged_and_who_arranged_them(tmp_path: Path) -> None:
    run = new_run(layers.load(["tiny", "--run", str(tmp_path / "run")], Config))
    said = json.loads((run / "format.json").read_text())
    assert (said["format"], said["lightrft"]) == (2, __version__)
    RunFolder(run).check_format()


def test_a_folder_without_a_number_goes_on_only_where_nothing_must_be_read(tmp_path: Path) -> None:
    RunFolder(tmp_path).check_format()
    (tmp_path / "checkpoints" / "step-000002").mkdir(parents=True)
    with pytest.raises(
        ValueError, match=r"whose checkpoints this one cannot read\. .* model\.path=.*/model\."
    ):
        RunFolder(tmp_path).check_format()


def test_another_arrangement_is_refused_with_the_version_that_reads_it(tmp_path: Path) -> None:
    (tmp_path / "format.json").write_text('{"format": 7, "lightrft": "9.1.0"}')
    with pytest.raises(ValueError, match=r"the run has format 7, and LightRFT .* Use LightRFT 9\.1\.0"):
        RunFolder(tmp_path).check_format()


@pytest.mark.parametrize("text", ["", "[]", "7", '{"format": 1}', '{"format": "x", "lightrft": "1"}'])
def test_a_number_that_cannot_be_read_is_told_with_its_cure(tmp_path: Path, text: str) -> None:
    (tmp_path / "format.json").write_text(text)
    with pytest.raises(ValueError, match=r'format\.json: .* Write \{"format": 2, '):
        RunFolder(tmp_path).check_format()


def test_what_is_written_of_an_evaluation_is_read_again(tmp_path: Path) -> None:
    folder = EvaluationFolder(tmp_path / "evaluation")
    assert folder.read_responses("before") == []
    folder.write("before", {"sums": {"score": 0.5}}, [{"id": "a", "response": "Zwölf"}, {"id": "b"}])
    assert folder.read_report("before") == {"sums": {"score": 0.5}}
    assert folder.read_responses("before") == [{"id": "a", "response": "Zwölf"}, {"id": "b"}]
    assert {path.name for path in folder.path.iterdir()} == {"before.json", "before.jsonl"}


def test_a_summary_is_empty_until_it_is_written(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).read_summary() == {}
    RunFolder(tmp_path).write_summary({"steps": 3})
    assert RunFolder(tmp_path).read_summary() == {"steps": 3}


def test_the_newest_run_comes_first_and_other_folders_are_no_runs(tmp_path: Path) -> None:
    for name, time in (("old", 1_000), ("new", 3_000), ("middle", 2_000)):
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.yaml").write_text("")
        os.utime(tmp_path / name / "config.yaml", (time, time))
    (tmp_path / "no run").mkdir()
    assert [path.name for path in newest_runs(tmp_path)] == ["new", "middle", "old"]
