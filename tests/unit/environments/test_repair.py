"""Repositories are mended by those who mend them, and by nobody else."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from lightrft.config import EnvironmentConfig, SandboxConfig, TaskConfig
from lightrft.environments.episodes import Episodes
from lightrft.environments.repair import Repair
from lightrft.environments.repositories import Repository
from lightrft.sandbox.levels import levels
from lightrft.sandbox.lifetime import SandboxError
from lightrft.sandbox.suite import judged, with_pytest
from lightrft.tasks.repair import swebench_row
from lightrft.tasks.table import load_task
from lightrft.utils.patches import patched
from lightrft.workers.boxes import box_of
from tests.unit.environments.repositories import CHEATS, FILES, PATCH, ROW, call, quixbugs, write

WHY = levels()["bubblewrap"]
boxed = pytest.mark.skipif(bool(WHY), reason=f"bubblewrap cannot be had here: {WHY}")
MENDED = "def add(a, b):\n    return a + b\n"
QUICK = SandboxConfig(cpu_seconds=3, wall_seconds=5.0, disk_mib=32)
SOME = (
    "nothing is done",
    "conftest.py makes all pass",
    "exit code 0",
    "tests do not run",
    "reports everywhere",
)


def record(row=ROW):
    return {"id": "1", "messages": [], "target": swebench_row(row, TaskConfig()).target, "source": "file"}


@pytest.fixture
def folder(tmp_path):
    write(tmp_path / ROW["instance_id"], FILES)
    return tmp_path


def begun(folder, row=ROW, sandbox=QUICK):
    environment = Repair(str(folder), sandbox=sandbox)
    environment.reset(options=record(row))
    return environment


def said(environment, action):
    (message,), reward, over, *_ = environment.step(action)
    assert (reward, over) == (0.0, False)
    return message["content"]


@boxed
def test_a_fault_is_looked_at_mended_and_judged(folder):
    environment = Repair(str(folder), sandbox=QUICK)
    names, _ = environment.reset(options=record())
    assert names.splitlines()[1:] == sorted(FILES)
    assert said(environment, call("run", code="from pkg.add import add\nprint(add(2, 1))")) == "1\n"
    assert (
        said(environment, call("edit", path="pkg/add.py", old="a - b", new="a + b"))
        == "pkg/add.py is changed"
    )
    assert said(environment, call("run", code="print(open('pkg/add.py').read(), end='')")) == MENDED
    test = "from pkg.add import add\ndef test(tmp_path):\n    assert add(2, 1) == 3\n"
    assert said(environment, call("edit", path="test_mine.py", old="", new=test)) == "test_mine.py is written"
    assert "1 passed" in said(
        environment, call("run", code="import pytest\npytest.main(['-q', 'test_mine.py'])")
    )
    assert environment.step("It is mended.")[1:3] == (1.0, True)


@boxed
@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ({"path": "no.py", "old": "a", "new": "b"}, "there is no file no.py"),
        ({"path": "pkg/add.py", "old": "a", "new": "b"}, "the old text stands 3 times in pkg/add.py"),
        ({"path": "../x", "old": "", "new": "b"}, "no file of the repository"),
        ({"path": "/etc/x", "old": "", "new": "b"}, "no file of the repository"),
        ({"path": "\ud800.py", "old": "", "new": "b"}, "no file of the repository"),
        ({"path": "é" * 150, "old": "", "new": "b"}, "no file of the repository"),
        ({"path": "", "old": "", "new": "b"}, "no file of the repository"),
        ({"path": "pkg", "old": "", "new": "b"}, "is a folder"),
        ({"path": "pkg/add.py/x", "old": "", "new": "b"}, "below a file"),
        ({"path": "big", "old": "", "new": "x" * (17 << 20)}, "more than half of sandbox.disk_mib=32"),
    ],
)
def test_an_edit_that_cannot_be_is_told(arguments, told, folder):
    reply = said(begun(folder), call("edit", **arguments))
    assert reply.startswith("error: ")
    assert told in reply


def score(folder, files):
    environment = begun(folder)
    for name, content in files.items():
        said(environment, call("edit", path=name, old="", new=content))
    return environment.final_reward()


@boxed
@pytest.mark.parametrize("name", SOME)
def test_a_repository_that_cheats_is_not_mended(name, folder):
    assert score(folder, CHEATS[name]) == 0.0


@boxed
@pytest.mark.parametrize("name", sorted(set(CHEATS) - set(SOME)))
def test_no_repository_that_cheats_is_mended(name, folder):
    assert score(folder, CHEATS[name]) == 0.0


@boxed
def test_cures_beside_which_other_files_were_written_are_right(folder):
    """What is restored or left out costs nobody who mended the fault."""
    right = {"pkg/add.py": MENDED}
    for name in (
        "conftest.py makes all pass",
        "pyproject.toml loads a plugin",
        "tests are edited",
        "pytest of its own",
    ):
        assert score(folder, CHEATS[name] | right) == 1.0


@boxed
@pytest.mark.parametrize("files", [{"tests": "x"}, {"tests/test_add.py/x": "x"}, {"odd.py": "\ud800"}])
def test_files_in_the_way_of_the_tests_are_no_failure_of_ours(files, folder):
    assert score(folder, files) == 0.0


def git(clone, *words):
    command = ["git", "-C", str(clone), "-c", "user.name=x", "-c", "user.email=x", *words]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def committed(clone):
    git(clone, "init", "-q")
    git(clone, "add", "-A")
    git(clone, "commit", "-qm", "one")
    return git(clone, "rev-parse", "HEAD")


@boxed
def test_a_git_repository_is_read_at_its_commit(tmp_path):
    clone = tmp_path / "owner__add"
    write(clone, FILES)
    commit = committed(clone)
    write(clone, {"pkg/add.py": "later"})
    git(clone, "commit", "-qam", "two")
    environment = begun(tmp_path, ROW | {"base_commit": commit})
    assert "return a - b" in said(environment, call("run", code="print(open('pkg/add.py').read())"))
    with pytest.raises(ValueError, match="cannot be read at 0123456789"):
        begun(tmp_path)
    with pytest.raises(ValueError, match="base_commit='--output=x' is no commit"):
        begun(tmp_path, ROW | {"base_commit": "--output=x"})


@pytest.mark.parametrize("is_folder", [True, False])
@boxed
def test_a_repository_is_what_a_checkout_of_it_is(is_folder, tmp_path):
    """Though its archives leave out the tests, its files are substituted there, and some of them are links: its right cure is right."""
    held = FILES | {
        ".gitattributes": "tests/ export-ignore\npkg/where.py export-subst\n",
        "pkg/where.py": "AT = '$Format:%H$'\n",
    }
    held |= {
        "real/words.py": "def words():\n    return 'many'\n",
        "tests/test_words.py": "import pkg.where, again.words\n",
    }
    clone = tmp_path / (ROW["instance_id"] if is_folder else "owner__add")
    write(clone, held)
    (clone / "again").symlink_to("real")
    (clone / "pkg" / "spoken.py").symlink_to("../again/words.py")
    (clone / "out").symlink_to("/etc")
    (clone / "round").symlink_to("round")
    test = "from pkg.spoken import words\nfrom pkg.where import AT\ndef test(): assert (words(), AT[:2]) == ('two', '$F')\n"
    patch = "".join(
        [
            "--- /dev/null\n+++ b/tests/test_both.py\n@@ -0,0 +1,3 @@\n",
            *(f"+{line}\n" for line in test.splitlines()),
        ]
    )
    row = ROW | {"test_patch": patch, "FAIL_TO_PASS": ["tests/test_both.py::test"], "PASS_TO_PASS": []}
    environment = begun(tmp_path, row | {"base_commit": committed(clone)})
    assert (
        said(
            environment,
            call("run", code="import again.words as a, pkg.spoken as b\nprint(a.words(), b.words())"),
        )
        == "many many\n"
    )
    assert "/etc" not in said(environment, call("run", code="import os\nprint(os.listdir('.'))"))
    assert environment.final_reward() == 0.0
    for path in ("out/x", "round"):
        assert said(environment, call("edit", path=path, old="", new="x")).startswith("error: ")
    assert (
        said(environment, call("edit", path="pkg/spoken.py", old="many", new="two"))
        == "pkg/spoken.py is changed"
    )
    assert environment.final_reward() == 1.0


@boxed
def test_what_a_link_called_conftest_leads_to_is_restored_as_well(folder):
    place = folder / ROW["instance_id"]
    (place / "conftest.py").rename(place / "common.py")
    (place / "conftest.py").symlink_to("common.py")
    assert score(folder, {"common.py": CHEATS["conftest.py makes all pass"]["conftest.py"]}) == 0.0
    assert score(folder, {"common.py": "", "pkg/add.py": MENDED}) == 1.0


@boxed
def test_no_link_is_a_way_to_steer_the_tests(folder):
    """One that leads nowhere yet, and one whose folder has been filled."""
    place = folder / ROW["instance_id"]
    (place / "tests").mkdir()
    (place / "tests" / "conftest.py").symlink_to("../hooks/c.py")
    (place / "meta").mkdir()
    (place / "meta" / "METADATA").write_text("Name: x\n")
    (place / "x-1.dist-info").symlink_to("meta")
    hooks = CHEATS["conftest.py makes all pass"]["conftest.py"]
    assert score(folder, {"hooks/c.py": hooks, "meta/entry_points.txt": "[pytest11]\nx = hooks.c\n"}) == 0.0
    assert score(folder, {"hooks/c.py": "", "pkg/add.py": MENDED}) == 1.0


def test_links_show_what_a_checkout_shows():
    """To a parent folder, and within a folder that another link leads to."""
    held = Repository(
        {"a.py": b"1", "dir/b.py": b"2"}, {"tests/all": "..", "x": "dir", "dir/l.py": "../a.py"}
    )
    assert held.whole(held.files) == held.files | {
        "tests/all/a.py": b"1",
        "tests/all/dir/b.py": b"2",
        "x/b.py": b"2",
        "x/l.py": b"1",
        "dir/l.py": b"1",
    }


@boxed
def test_the_policy_is_not_told_where_anything_lies_on_this_machine(folder):
    """Paths are those of the box, whose interpreter alone lies where it does outside."""
    environment = begun(folder)
    told = said(environment, call("run", code="import sys, pytest\nprint(pytest.__file__, sys.path)"))
    assert told.startswith("/packages/pytest/pytest/")
    assert str(Path(pytest.__file__).parent.parent) not in told


@boxed
def test_a_test_whose_file_is_nowhere_is_no_response_that_failed(folder):
    with pytest.raises(ValueError, match=r"tests/test_gone.py holds a test of the record, and is neither"):
        begun(folder, ROW | {"PASS_TO_PASS": ["tests/test_gone.py::test"]})


@boxed
def test_what_is_not_there_is_told_by_name(folder, tmp_path):
    with pytest.raises(ValueError, match=r"repositories=/nowhere: there is no such folder"):
        Repair("/nowhere", sandbox=QUICK)
    with pytest.raises(ValueError, match=r"neither the folder other nor the git repository owner__add"):
        begun(folder, ROW | {"instance_id": "other"})
    for change in ({"instance_id": ".."}, {"repo": "../x"}):
        with pytest.raises(ValueError, match="is no name of a repository"):
            begun(folder, ROW | change)
    with pytest.raises(ValueError, match=r"pkg/add.py has not the lines that the patch expects"):
        begun(folder, ROW | {"test_patch": PATCH.replace("a - b", "a * b")})
    write(folder / ROW["instance_id"], {"big": "x" * (1 << 20)})
    small = Repair(str(folder), sandbox=SandboxConfig(disk_mib=1))
    with pytest.raises(ValueError, match=r"more than half of sandbox.disk_mib=1"):
        small.reset(options=record())


def test_without_a_folder_to_write_in_it_is_refused(folder):
    if levels()["landlock"]:
        pytest.skip("Landlock cannot be had here")
    with pytest.raises(SandboxError, match=r"sandbox.kind=bubblewrap alone has; here is landlock"):
        Repair(str(folder), sandbox=SandboxConfig(kind="landlock"))


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"FAIL_TO_PASS": "[]"}, "'FAIL_TO_PASS' names no test"),
        ({"FAIL_TO_PASS": {"a": 1}}, "must be a list of node ids"),
        (
            {"FAIL_TO_PASS": ["test_add (tests.test_add.T)"]},
            r"names 'test_add \(tests.test_add.T\)', which is no node id",
        ),
        ({"PASS_TO_PASS": ["test_sums"]}, "'PASS_TO_PASS' names 'test_sums', which is no node id"),
        ({"test_patch": ""}, "'test_patch' is empty"),
        ({"test_patch": "a sentence"}, "no unified diff"),
        ({"repo": None}, "'repo'"),
    ],
)
def test_a_row_that_nothing_can_judge_is_a_bad_record(change, told):
    with pytest.raises(ValueError, match=told):
        swebench_row(ROW | change, TaskConfig())


def test_bad_records_of_a_file_are_skipped_and_counted(tmp_path):
    (tmp_path / "rows.jsonl").write_text(
        "".join(json.dumps(ROW | more) + "\n" for more in ({}, {"test_patch": ""}))
    )
    config = TaskConfig(train_file=str(tmp_path / "rows.jsonl"), format="swebench", on_bad_record="skip")
    found = load_task("file").load("train", config, "", 0)
    assert (len(found), found.skipped) == (1, 1)
    assert found[0].target["tests"][-1] == "tests/test_add.py::test_words"


@boxed
def test_episodes_hold_repositories(folder):
    """As a run does: by name, in a process of its own, with the settings of the sandbox."""
    config = EnvironmentConfig(name="repair", options={"repositories": str(folder)}, workers=1)
    with Episodes(config, QUICK) as episodes:
        assert [one["function"]["name"] for one in episodes.schemas()] == ["run", "edit"]
        (number, first), (_, failed) = episodes.begin(
            [(0, record()), (0, record(ROW | {"instance_id": "other"}))]
        )
        assert "pkg/add.py" in first.messages[0]["content"]
        assert "neither the folder other" in failed.reason
        episodes.step([(number, call("edit", path="pkg/add.py", old="a - b", new="a + b"), False)])
        (reply,) = episodes.finish([number])
    assert (reply.reward, reply.done) == (1.0, True)


def node_ids(folder, files):
    """The tests that pytest finds in trusted files."""
    write(folder, files)
    command = [
        sys.executable,
        "-B",
        "-m",
        "pytest",
        "--collect-only",
        "-q",
        "-p",
        "no:cacheprovider",
        "--import-mode=append",
        "tests",
    ]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True)
    return [line for line in done.stdout.splitlines() if "::" in line]


@boxed
@pytest.mark.timeout(900)
def test_quixbugs_as_forty_repositories(tmp_path):
    """The gold patch mends all 40, an empty one none. What fails and what stays is found by running both, as SWE-bench did."""
    data = Path(__file__).parents[4] / "shared" / "data" / "quixbugs"
    if not data.is_dir():
        pytest.skip(f"{data} is not there")
    rows = [json.loads(line) for line in (data / "quixbugs_python.jsonl").read_text().splitlines()]
    sandbox = SandboxConfig(cpu_seconds=8, wall_seconds=15.0)
    boxes, scores, skipped = (
        [with_pytest(box_of(one)) for one in (QUICK, sandbox)],
        {"gold": 0, "empty": 0},
        0,
    )
    for files, row in quixbugs(rows, (data / "node.py").read_text()):
        broken = patched({name: text.encode() for name, text in files.items()}, row["test_patch"])
        mended = patched(broken, row["patch"])
        ids = node_ids(
            tmp_path / "all" / row["instance_id"], {name: text.decode() for name, text in mended.items()}
        )
        before, after = (
            judged(box, state, ids).passed for box, state in zip(boxes, (broken, mended), strict=True)
        )
        skipped += after.count(False)
        found = {
            "FAIL_TO_PASS": [
                one for one, was, now in zip(ids, before, after, strict=True) if now and not was
            ],
            "PASS_TO_PASS": [one for one, was, now in zip(ids, before, after, strict=True) if now and was],
        }
        write(tmp_path / row["instance_id"], files)
        for name, patch, limits in (("gold", row["patch"], sandbox), ("empty", "", QUICK)):
            environment = begun(tmp_path, row | found, limits)
            environment._files = patched(environment._files, patch)
            scores[name] += environment.final_reward()
    assert scores == {"gold": 40, "empty": 0}
    assert skipped == 2  # which their authors skip, for the time they take
