"""What no program can do in a box, at each level that this machine has."""

import contextlib
import os
import platform
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lightrft.sandbox import box
from lightrft.sandbox.levels import LEVELS, _tried, levels, make_box
from lightrft.sandbox.lifetime import Limits, SandboxError
from lightrft.sandbox.syscalls import rules
from tests.unit.sandbox.programs import HOSTILE, SOME

SMALL = Limits(cpu_seconds=1, wall_seconds=3.0, memory_mib=256)
REASONS = levels()


@pytest.fixture(params=list(LEVELS))
def level(request):
    if REASONS[request.param]:
        pytest.skip(f"{LEVELS[request.param]} cannot be had here: {REASONS[request.param]}")
    return request.param


@pytest.fixture
def around(tmp_path, monkeypatch):
    """A neighbour, a listener, a secret and a folder: what a program would like to reach."""
    monkeypatch.setenv("SECRET_KEY", "1")
    os.chmod(tmp_path, 0o777)
    gold = tmp_path / "gold.txt"
    gold.write_text("42")
    os.chmod(gold, 0o666)
    victim = subprocess.Popen(["sleep", "60"])
    abstract = socket.socket(socket.AF_UNIX)
    abstract.bind("\0lightrft-test")
    named, nameless = tmp_path / "s", tmp_path / "d"
    with (
        socket.create_server(("127.0.0.1", 0)) as server,
        abstract,
        datagrams(str(nameless)) as one,
        datagrams("\0lightrft-datagram") as other,
    ):
        abstract.listen()
        words = {
            "GOLD": gold,
            "MARK": tmp_path,
            "PORT": server.getsockname()[1],
            "SOCKET": named,
            "DATAGRAM": nameless,
        }
        words["HOME"] = Path.home()
        yield words | {"VICTIM": victim.pid, "PARENT": os.getpid()}
        assert victim.poll() is None, "the neighbour was killed"
        assert gold.read_text() == "42"
        assert sorted(path.name for path in tmp_path.iterdir()) == ["d", "gold.txt"]
        for heard in (one, other):
            with pytest.raises(BlockingIOError):
                heard.recv(1)
    victim.kill()
    victim.wait()


def datagrams(name):
    """A socket under a name to which anybody may send."""
    found = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
    found.bind(name)
    found.setblocking(False)
    if name.startswith("/"):
        os.chmod(name, 0o777)
    return found


def filled(program, words):
    for name, value in words.items():
        program = program.replace(f"@{name}@", str(value))
    return program


def children():
    return Path(f"/proc/{os.getpid()}/task/{os.getpid()}/children").read_text().split()


def check(name, level, around):
    before, began = children(), time.monotonic()
    outcome = make_box(SMALL, level).run(filled(HOSTILE[name], around))
    assert "OUT" not in outcome.stdout, outcome
    assert len(outcome.stdout) <= 64 << 10
    assert len(outcome.stderr) <= 64 << 10
    assert outcome.cpu_seconds < 2.5
    assert time.monotonic() - began < 20
    assert children() == before


@pytest.mark.parametrize("name", SOME)
def test_a_hostile_program_is_held(name, level, around):
    check(name, level, around)


@pytest.mark.parametrize("name", sorted(set(HOSTILE) - set(SOME)))
def test_every_other_hostile_program_is_held(name, level, around):
    check(name, level, around)


@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_every_hostile_program_is_held_where_root_runs_nothing(name, level, tmp_path_factory):
    """As an ordinary user, who shares its number with the program."""
    if os.getuid():
        pytest.skip("the tests run as an ordinary user already")
    code = Path(__file__).parents[3] / "lightrft" / "sandbox"
    tmp_path = tmp_path_factory.mktemp("user")
    for folder in (tmp_path, *tmp_path.parents[:2]):  # those of pytest, which other users cannot enter
        os.chmod(folder, 0o755)
    (tmp_path / "lightrft").mkdir()
    (tmp_path / "lightrft/__init__.py").touch()
    subprocess.run(["cp", "-r", str(code), str(tmp_path / "lightrft/sandbox")], check=True)
    words = {
        "GOLD": "/etc/hostname",
        "HOME": Path.home(),
        "MARK": tmp_path,
        "PORT": 9,
        "SOCKET": "/none",
        "DATAGRAM": "/dev/log",
        "VICTIM": "NUMBER",
        "PARENT": "NUMBER",
    }
    source = filled(HOSTILE[name], words)
    program = (
        f"import os\nfrom lightrft.sandbox.box import Box, Limits\n"
        f"o = Box(Limits(cpu_seconds=1, wall_seconds=3.0, memory_mib=256), {level!r}, '/usr/bin/python3').run({source!r}.replace('NUMBER', str(os.getpid())))\n"
        "print('HELD' if 'OUT' not in o.stdout else o)"
    )
    command = [
        "setpriv",
        "--reuid",
        "1234",
        "--regid",
        "1234",
        "--clear-groups",
        "/usr/bin/python3",
        "-B",
        "-c",
        program,
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=60)
    assert done.stdout == "HELD\n", done


def test_a_program_reads_prints_and_ends(level):
    outcome = make_box(SMALL, level).run("print(int(input()) * 2)", "21\n")
    assert (outcome.status, outcome.stdout, outcome.stderr) == ("ended", "42\n", "")


@pytest.mark.parametrize(
    ("program", "status"),
    [
        ("1 / 0", "failed"),
        ("while True: pass", "cpu"),
        ("import time; time.sleep(9)", "wall"),
        ("while 1: print('x' * 999)", "output"),
    ],
)
def test_an_end_is_told_by_its_reason(program, status, level):
    limits = (
        replace(SMALL, wall_seconds=60.0) if status == "cpu" else SMALL
    )  # on a busy machine it waits for its turns
    assert make_box(limits, level).run(program).status == status


def test_twenty_programs_leave_nothing(level, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    check_nothing_is_left(level, 20)
    assert list(tmp_path.iterdir()) == []


def test_a_thousand_programs_leave_nothing(level, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    check_nothing_is_left(level, 1000)
    assert list(tmp_path.iterdir()) == []


def check_nothing_is_left(level, count):
    made = make_box(SMALL, level)
    before, dead = (children(), len(os.listdir("/proc/self/fd")), files_of_boxes()), zombies()
    for n in range(count):
        source = f"open('left', 'w').close() if {level == 'bubblewrap'} else 0; print({n})"
        assert made.run(source).stdout == f"{n}\n"
    assert (children(), len(os.listdir("/proc/self/fd")), files_of_boxes()) == before
    latest = time.monotonic() + 5.0
    while zombies() - dead and time.monotonic() < latest:  # those of other tests are waited for by these
        time.sleep(0.1)
    assert zombies() <= dead


def is_of_a_box(user):
    """Whether a user number is one of those that boxes have, or that of an ordinary user who runs this."""
    return user == os.getuid() if os.getuid() else box.FIRST_UID <= user < box.FIRST_UID + box.UIDS


def zombies():
    """Dead programs of boxes that nobody waited for, whoever inherited them."""
    found = set()
    for path in Path("/proc").glob("[0-9]*/status"):
        try:
            lines = dict(line.split(":", 1) for line in path.read_text().splitlines() if ":" in line)
        except OSError:
            continue
        if lines["State"].split()[0] == "Z" and is_of_a_box(int(lines["Uid"].split()[0])):
            found.add((path.parent.name, lines["Name"]))
    return found


def files_of_boxes():
    """What users of boxes left where anybody may write."""
    found = []
    for entry in (entry for folder in ("/tmp", "/var/tmp", "/dev/shm") for entry in os.scandir(folder)):
        with contextlib.suppress(OSError):  # it is somebody else's, and gone
            if os.getuid() == 0 and is_of_a_box(entry.stat(follow_symlinks=False).st_uid):
                found.append(entry.path)
    return sorted(found)


STARTS = {
    "a program": "from lightrft.sandbox.levels import *\nmake_box(Limits(wall_seconds=60.0), {level!r}).run('import time; time.sleep(57.25)')",
    "a tool": """
from lightrft.config import EnvironmentConfig, SandboxConfig
from lightrft.environments.episodes import Episodes
episodes = Episodes(EnvironmentConfig(tools=['python'], workers=1), SandboxConfig(kind={level!r}, wall_seconds=60.0))
((number, _),) = episodes.begin([(0, {{}})])
call = '<tool_call>{{"name": "python", "arguments": {{"code": "import time; time.sleep(57.25)"}}}}</tool_call>'
episodes.step([(number, call, False)])
""",
}


@pytest.mark.parametrize("name", list(STARTS))
def test_programs_end_with_a_trainer_that_is_killed(name, level):
    """Those of its own, and those that its worker processes run."""
    trainer = subprocess.Popen([sys.executable, "-c", STARTS[name].format(level=level)])
    began, found, before = time.monotonic(), [], None
    while (not found or found != before) and time.monotonic() < began + 60:
        before = found
        time.sleep(1.5)  # longer than the boxes that try the level out
        found = descendants(trainer.pid)
    assert len(found) >= {"a program": 1, "a tool": 2}[name] + (level == "bubblewrap")
    trainer.kill()
    trainer.wait()
    time.sleep(1.0)
    assert [pid for pid in found if runs(pid)] == []


def descendants(pid):
    """Processes that it started, in whichever thread, and those that they started."""
    found = [
        child for path in Path(f"/proc/{pid}/task").glob("*/children") for child in path.read_text().split()
    ]
    return found + [grandchild for child in found for grandchild in descendants(child)]


def runs(pid):
    """Whether a process is there and no zombie that waits for the init process of this machine."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def test_installed_packages_are_not_seen(level, monkeypatch):
    """Beside a library that is: each level hides a part of a folder in its own way."""
    with tempfile.TemporaryDirectory() as folder:
        library = Path(folder) / "lib" / "python3"
        for name in ("site-packages/gold.py", "dist-packages/gold.py", "some/thing.py", "other.py"):
            (library / name).parent.mkdir(parents=True, exist_ok=True)
            (library / name).write_text("x")
        (library / "link.py").symlink_to(library / "site-packages" / "gold.py")
        os.chmod(folder, 0o755)
        places = box._places("/usr/bin/python3")
        for one, found in (
            ("_places", (*places, str(library.parent))),
            ("_packages", None),
            ("_opened", None),
        ):
            make = getattr(box, one).__wrapped__ if found is None else lambda _, found=found: found
            monkeypatch.setattr(box, one, make)
        names = ["some/thing.py", "other.py", "site-packages/gold.py", "dist-packages/gold.py", "link.py"]
        program = f"import json, colorsys\nfor name in {names}:\n    try: print(open('{library}/' + name).read(), end='')\n    except OSError: print('-', end='')"
        assert box.Box(SMALL, level, "/usr/bin/python3").run(program).stdout == "xx---"


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are those of x86_64")
@pytest.mark.parametrize("number", [44, 41, 56], ids=["sendto", "socket", "clone"])
def test_a_level_that_lets_out_is_found_out(number, level, monkeypatch):
    """The probe that decides whether a level holds, in a box whose filter forgot one rule."""
    monkeypatch.setattr(box, "rules", lambda machine, _: rules(machine) | {number: ""})
    assert "got out" in _tried.__wrapped__(level, "/usr/bin/python3")[1]


def test_a_machine_without_a_sandbox_is_told_why():
    with pytest.raises(
        SandboxError, match=r"sandbox.kind=landlock: programs of the policy cannot be run here.*/nowhere"
    ):
        make_box(SMALL, "landlock", "/nowhere")
