"""What no program can do in a box, at each level that this machine has."""

import os
import platform
import socket
import subprocess
import sys
import time
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
    assert make_box(SMALL, level).run(program).status == status


def test_twenty_programs_leave_nothing(level):
    check_nothing_is_left(level, 20)


def test_a_thousand_programs_leave_nothing(level):
    check_nothing_is_left(level, 1000)


def check_nothing_is_left(level, count):
    made = make_box(SMALL, level)
    before = children(), len(os.listdir("/proc/self/fd")), sorted(os.listdir("/tmp")), zombies()
    for n in range(count):
        assert made.run(f"print({n})").stdout == f"{n}\n"
    assert (children(), len(os.listdir("/proc/self/fd")), sorted(os.listdir("/tmp")), zombies()) == before


def zombies():
    found = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        try:
            found += path.read_text().rpartition(")")[2].split()[0] == "Z" and "python" in path.read_text()
        except OSError:
            continue
    return found


def test_a_program_ends_with_a_trainer_that_is_killed(level):
    program = f"from lightrft.sandbox.levels import *\nmake_box(Limits(wall_seconds=60.0), {level!r}).run('import time; time.sleep(57.25)')"
    trainer = subprocess.Popen([sys.executable, "-c", program])
    began, found, before = time.monotonic(), [], None
    while (not found or found != before) and time.monotonic() < began + 60:
        before = found
        time.sleep(1.5)  # longer than the boxes that try the level out
        found = descendants(trainer.pid)
    assert found
    trainer.kill()
    trainer.wait()
    time.sleep(1.0)
    assert [pid for pid in found if runs(pid)] == []


def descendants(pid):
    children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return children + [grandchild for child in children for grandchild in descendants(child)]


def runs(pid):
    """Whether a process is there and no zombie that waits for the init process of this machine."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are those of x86_64")
@pytest.mark.parametrize("number", [44, 41, 56], ids=["sendto", "socket", "clone"])
def test_a_level_that_lets_out_is_found_out(number, level, monkeypatch):
    """The probe that decides whether a level holds, in a box whose filter forgot one rule."""
    monkeypatch.setattr(box, "rules", lambda machine: rules(machine) | {number: ""})
    assert "got out" in _tried.__wrapped__(level, "/usr/bin/python3")[1]


def test_a_machine_without_a_sandbox_is_told_why():
    with pytest.raises(
        SandboxError, match=r"sandbox.kind=landlock: programs of the policy cannot be run here.*/nowhere"
    ):
        make_box(SMALL, "landlock", "/nowhere")
