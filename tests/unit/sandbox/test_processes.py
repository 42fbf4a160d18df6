"""Programs that may start processes: as many as they may, with what all of them may use, and none is left."""

import os
import subprocess
import sys
import time
from dataclasses import replace

import pytest

from lightrft.config import SandboxConfig
from lightrft.sandbox.box import Box
from lightrft.sandbox.judge import Calls, by_calls
from lightrft.sandbox.levels import LEVELS, levels, make_box
from lightrft.sandbox.lifetime import Limits, SandboxError
from lightrft.sandbox.places import place_among
from lightrft.sandbox.syscalls import rules
from lightrft.sandbox.watch import Watch
from lightrft.workers.boxes import check_box
from tests.unit.sandbox.programs import HOSTILE
from tests.unit.sandbox.test_box import around, children, descendants, filled, runs, zombies

__all__ = ["around"]
FEW = Limits(cpu_seconds=2, wall_seconds=6.0, memory_mib=256, processes=6)
NEEDED = pytest.mark.skipif(bool(levels()["bubblewrap"]), reason=f"needs {LEVELS['bubblewrap']}")
MAY = frozenset(
    [
        "a grandchild that holds the pipe",
        "a shell",
        "disk",  # that of /dev/shm as well
        "killing",
        "memory in children",
        "shared memory",
        "zombies",
    ]
)
"""What a program in such a box may do, as long as it is among its own processes and its own memory."""


def ran(program, **limits):
    before = children()
    outcome = make_box(replace(FEW, **limits)).run(program)
    assert children() == before
    return outcome


@NEEDED
def test_a_program_starts_a_shell_and_python_and_hears_of_their_ends():
    program = (
        "import subprocess, sys\n"
        "done = subprocess.run(['sh', '-c', 'echo one | cat; exit 3'], capture_output=True, text=True)\n"
        "print(done.stdout, done.returncode, subprocess.check_output([sys.executable, '-c', 'print(2)'], text=True))"
    )
    assert ran(program).stdout == "one\n 3 2\n\n"


@NEEDED
def test_a_pool_of_processes_works():
    program = "from concurrent.futures import ProcessPoolExecutor as Pool\nwith Pool(3) as p: print(list(p.map(abs, [-1, -2])))"
    assert ran(program).stdout == "[1, 2]\n"


@NEEDED
@pytest.mark.parametrize(
    ("program", "status", "why"),
    [
        ("raise SystemExit(7)", "failed", "exit code 7"),
        ("import os; os.kill(os.getpid(), 15)", "failed", "SIGTERM"),
        ("import os; os.kill(1, 9); print(1)", "ended", "exit code 0"),
    ],
)
def test_an_end_is_that_of_the_program_itself(program, status, why):
    outcome = ran(program)
    assert (outcome.status, outcome.why) == (status, why)


@NEEDED
@pytest.mark.parametrize("count", [1, 5])
def test_there_are_just_as_many_processes_as_there_may_be(count):
    program = "import os, time\nn = 0\ntry:\n    while n < 99:\n        if not os.fork(): time.sleep(9)\n        n += 1\nexcept OSError: print(n)"
    assert ran(program, processes=count).stdout == f"{count}\n"


@NEEDED
def test_memory_is_that_of_all_of_them():
    """Each stays below the limit, which three of them pass together; what they share counts once."""
    program = (
        "import os, time\n{before}\nfor _ in range(3):\n    if not os.fork():\n        {inside}\n        time.sleep({wait})\n        os._exit(0)\n"
        "for _ in range(3): os.wait()\nprint('all')"
    )
    apart = ran(program.format(before="", inside="x = bytearray(150 << 20)", wait=4))
    assert (apart.status, apart.why) == ("memory", "its processes took too much memory")
    shared = ran(program.format(before="x = bytearray(150 << 20)", inside="", wait=0.5))
    assert (shared.status, shared.stdout) == ("ended", "all\n")


@NEEDED
def test_processor_time_is_that_of_all_of_them():
    """One second together, where each has less."""
    program = "import os, time\nfor _ in range(6):\n    if not os.fork():\n        while time.process_time() < 0.7: pass\n        os._exit(0)\nfor _ in range(6): os.wait()\nprint('all')"
    outcome = ran(program, cpu_seconds=1, wall_seconds=30.0)
    assert (outcome.status, outcome.stdout) == ("cpu", "")
    assert outcome.cpu_seconds > 1.0


@NEEDED
def test_a_daemon_ends_with_its_program():
    program = "import os, time\nif not os.fork():\n    os.setsid()\n    if not os.fork():\n        time.sleep(56.5)\n    os._exit(0)\nos.wait(); print('left')"
    assert ran(program).stdout == "left\n"
    assert not running("56.5")


def running(word):
    """Processes of this machine whose command has a word."""
    found = subprocess.run(["ps", "-eo", "pid,args"], capture_output=True, text=True, check=True).stdout
    return [line for line in found.splitlines() if word in line]


STARTS = """
from lightrft.sandbox.levels import make_box
from lightrft.sandbox.lifetime import Limits
make_box(Limits(wall_seconds=60.0, processes=4)).run('''
import os, time
for _ in range(3):
    if not os.fork():
        os.setsid()
        break
time.sleep(57.75)
''')
"""


@NEEDED
def test_no_process_is_left_of_a_trainer_that_is_killed():
    trainer = subprocess.Popen([sys.executable, "-c", STARTS])
    began, found, before = time.monotonic(), [], None
    while (len(found) < 6 or found != before) and time.monotonic() < began + 60:
        before = found
        time.sleep(0.5)
        found = descendants(trainer.pid)
    assert len(found) == 6  # bubblewrap, the first process of the box, the program and three of its own
    trainer.kill()
    trainer.wait()
    time.sleep(1.0)
    assert [pid for pid in found if runs(pid)] == []


@NEEDED
def test_the_tests_of_a_program_start_none():
    fork = "def f():\n    import os\n    if not os.fork(): os._exit(0)\n    return os.wait()[1]"
    tests = Calls(tests=["assert f() == 0", "import os\nos.fork()"])
    assert by_calls(make_box(FEW), fork, tests).passed == [True, False]


@NEEDED
@pytest.mark.parametrize("name", sorted(HOSTILE))
def test_a_hostile_program_that_may_start_processes_is_held(name, around):
    began = time.monotonic()
    outcome = ran(filled(HOSTILE[name], around))
    assert name in MAY or "OUT" not in outcome.stdout, outcome
    assert time.monotonic() - began < 20


@NEEDED
def test_programs_with_processes_leave_nothing():
    limits = replace(FEW, machine_processes=64)
    dead, before = zombies(), (children(), len(os.listdir("/proc/self/fd")))
    for n in range(10):
        assert make_box(limits).run(f"import os\nos.fork() or os.fork() or print({n})").status == "ended"
    assert (children(), len(os.listdir("/proc/self/fd"))) == before
    assert zombies() <= dead


def test_no_rule_lets_a_namespace_be_made():
    for machine, clone in (("x86_64", 56), ("aarch64", 220)):
        assert rules(machine, processes=True)[clone] == "process"
        assert set(rules(machine)) < set(rules(machine, processes=True))


def test_what_is_used_is_that_of_all_below():
    """Against what this process says of itself, and a child of known size."""
    program = "import time; x = bytearray(64 << 20); print(1, flush=True); time.sleep(30)"
    with subprocess.Popen([sys.executable, "-S", "-c", program], stdout=subprocess.PIPE) as child:
        assert child.stdout.readline() == b"1\n"
        used, alone = Watch(os.getpid()).used(), Watch(child.pid).used()
        child.kill()
    assert alone.processes == 1
    assert 64 << 20 < alone.memory < 96 << 20
    assert used.processes >= 2
    assert used.memory > alone.memory
    assert used.cpu_seconds >= time.process_time() - 1.0


def test_a_place_is_free_again_when_its_holder_dies(tmp_path, monkeypatch):
    """Three of four processes each: a second place is free, a third is not until one is given back, in whichever process."""
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    limits = Limits(wall_seconds=0.2, processes=3, machine_processes=8)
    here = place_among(limits)
    waits = f"import tempfile, time; tempfile.tempdir = {str(tmp_path)!r}\nfrom lightrft.sandbox.places import *\nplace_among({limits}); print(1, flush=True); time.sleep(30)"
    with subprocess.Popen([sys.executable, "-c", waits], stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"1\n"
        with pytest.raises(SandboxError, match=r"sandbox\.machine_processes=8 are in use .* 4 did not"):
            place_among(limits)
        other.kill()
    second = place_among(limits)
    os.close(here)
    third = place_among(limits)
    for place in (second, third):
        os.close(place)
    assert place_among(Limits(processes=0, machine_processes=8)) == -1


def test_a_file_of_places_that_is_a_link_is_not_followed(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    (tmp_path / f"lightrft-processes-{os.getuid()}").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SandboxError, match="cannot be opened.*Set TMPDIR"):
        place_among(Limits(processes=1, machine_processes=2))
    assert not (tmp_path / "elsewhere").exists()


def test_settings_that_cannot_be_had_are_refused():
    for kind in ("landlock", "none"):
        with pytest.raises(ValueError, match=r"sandbox\.processes=2 needs .*sandbox\.kind=bubblewrap"):
            SandboxConfig(kind=kind, processes=2)
    with pytest.raises(ValueError, match=r"sandbox\.machine_processes=4 has no room .* at least 5"):
        SandboxConfig(processes=4, machine_processes=4)
    with pytest.raises(ValueError, match="may begin after 10 seconds.*at least 22"):
        check_box(SandboxConfig(processes=1), "rewards.timeout_seconds", 20.0)
    with pytest.raises(SandboxError, match="a landlock box start no processes"):
        Box(FEW, "landlock").run("1")
