"""One Python program in a box: what it may use is limited, what it says is cut, and nothing of it stays behind.

Box(Limits()).run("print(6 * 7)").stdout        # "42\\n"
"""

from __future__ import annotations

import os
import platform
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from functools import cache
from pathlib import Path
from types import MappingProxyType
from typing import Literal

from lightrft.sandbox.lifetime import Limits, Outcome, SandboxError, Started, finish
from lightrft.sandbox.places import place_among
from lightrft.sandbox.syscalls import AUDIT_ARCH, rules
from lightrft.sandbox.watch import Watch

Kind = Literal["bubblewrap", "landlock", "none"]
FIRST_UID, UIDS = 61184, 4336
"""Users that belong to nobody (those of systemd's dynamic users); a box started by root is one of them, another one each time."""
THREADS = 32
SYSTEM = ("/usr/lib", "/usr/lib64", "/lib", "/lib64", "/usr/share/zoneinfo", "/etc/ld.so.cache")
PROGRAMS = ("/usr/bin", "/bin")
"""What is seen besides where a program may start others."""
INSTALLED = ("site-packages", "dist-packages")
FIRST = """
import marshal, os, sys
parts, given = [], int(sys.argv[1])
while part := os.read(given, 1 << 20):
    parts.append(part)
os.close(given)
text = b"".join(parts)
size = int(text[:8], 16) + 8
code, names = marshal.loads(text[8:size]), {"JOB": text[size:], "__name__": "inside"}
del parts, part, text
exec(code, names)
"""
"""What a boxed interpreter is started with: it reads what it shall run, compiled, and the job of that."""
COMPILES = "import marshal, sys; sys.stdout.buffer.write(marshal.dumps(compile(sys.stdin.buffer.read(), 'box.py', 'exec')))"


NO_FILES: Mapping[str, bytes] = MappingProxyType({})
NOTHING: Mapping[str, str] = MappingProxyType({})


class Box:
    """Runs programs one after the other, each in a box of its own. SandboxError where none can be made."""

    def __init__(
        self,
        limits: Limits,
        kind: Kind = "bubblewrap",
        python: str = "/usr/bin/python3",
        readable: Mapping[str, str] = NOTHING,
    ) -> None:
        """`readable`: files and folders that programs may read besides -> where they find them; only with bubblewrap."""
        self.limits, self.kind, self.python, self.readable = limits, kind, python, dict(readable)

    def run(
        self, source: str, stdin: str = "", files: Mapping[str, bytes] = NO_FILES, before: str = ""
    ) -> Outcome:
        """What became of a Python program that was given this text to read. `files`: what lies in its folder, by path; `before`: code
        before it. SandboxError if the box failed."""
        started = self.start([before, source], stdin.encode("utf-8", "surrogateescape"), files=files)
        finish([started], self.limits)
        assert started.outcome is not None
        return started.outcome

    def start(
        self,
        sources: Sequence[str | bytes],
        stdin: bytes = b"",
        channels: Sequence[int] = (),
        report: tuple[int, int] | None = None,
        files: Mapping[str, bytes] = NO_FILES,
    ) -> Started:
        """A box that begins with the sources, one after the other in one module; bytes are code that is `compiled`. `channels`: descriptors it has besides the usual three;
        `report`: a pipe of which it has the second end. `files`: what lies in its folder, by path. Whoever calls lets `finish` end it."""
        if files and self.kind != "bubblewrap":
            raise SandboxError(f"a {self.kind} box has no folder for files; bubblewrap's has.")
        if self.limits.processes and self.kind != "bubblewrap":
            raise SandboxError(
                f"programs in a {self.kind} box start no processes; those in bubblewrap's may."
            )
        inside = compiled(self.python, _text("inside.py"))
        job = (
            b"%08x" % len(inside) + inside + repr(self._job(sources, files)).encode("utf-8", "surrogatepass")
        )
        place = place_among(self.limits)
        given, told = os.pipe(), os.pipe()
        inner = [given[0], told[1], *channels, *([report[1]] if report else [])]
        began, other = time.monotonic(), _another_user(self.kind)
        try:
            process = subprocess.Popen(
                self._command(given[0], told[1]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env={"PATH": "/usr/bin:/bin", "LANG": "C.UTF-8", "LC_ALL": "C.UTF-8"},
                cwd="/",
                pass_fds=inner,
                start_new_session=True,
                user=other,
                group=other,
                extra_groups=None if other is None else [],
            )
        except OSError as error:
            for descriptor in (*given, *told, *([place] if place >= 0 else [])):
                os.close(descriptor)
            raise SandboxError(f"a {self.kind} box did not start: {error}.") from None
        os.close(given[0])
        os.close(told[1])
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        streams = {process.stdin: "stdin", process.stdout: "stdout", process.stderr: "stderr"}
        ends = {given[1]: "job", told[0]: "told"} | {s.fileno(): name for s, name in streams.items()}
        if report:
            ends[report[0]] = "report"
        for descriptor in ends:
            os.set_blocking(descriptor, False)
        said = {name: bytearray() for name in ends.values()}
        alive = os.pidfd_open(process.pid)
        seconds, free = self.limits.cpu_seconds, self.kind == "none"
        watch = Watch(process.pid) if self.limits.processes else None
        return Started(process, job, stdin, ends, began, seconds, free, said, alive, watch, place)

    def _job(self, sources: Sequence[str | bytes], files: Mapping[str, bytes]) -> dict[str, object]:
        machine = platform.machine()
        limits = self.limits
        confined = self.kind != "none"
        return {
            "sources": list(sources),
            "files": dict(files),
            "cpu_seconds": limits.cpu_seconds,
            "memory": limits.memory_mib << 20,
            "disk": limits.disk_mib << 20 if self.kind == "bubblewrap" else 0,
            "threads": self._threads(),
            "processes": limits.processes,
            "parent": 0 if self.kind == "bubblewrap" else os.getpid(),
            "folder": "/box" if self.kind == "bubblewrap" else "/",
            "landlock": _opened(self.python) if self.kind == "landlock" else None,
            "rules": rules(machine, limits.processes > 0) if confined else {},
            "arch": AUDIT_ARCH.get(machine, 0),
        }

    def _threads(self) -> int:
        """What the kernel lets the user of a program have: processes, and their threads."""
        if self.limits.processes:
            return self.limits.processes + 2  # itself, and the first process, which waits for it
        return THREADS + (_threads_of_user() if os.getuid() and self.kind != "bubblewrap" else 0)

    def _command(self, given: int, told: int) -> list[str]:
        program = [self.python, "-I", "-S", "-B", "-c", FIRST, str(given), str(told)]
        return [*self._around(), *program] if self.kind == "bubblewrap" else program

    def _around(self) -> list[str]:
        """bubblewrap with nothing to be seen but the interpreter and its libraries, and one small folder in memory."""
        words = [
            "bwrap",
            "--unshare-all",
            "--unshare-user",
            "--disable-userns",
            "--die-with-parent",
            "--new-session",
        ]
        words += ["--as-pid-1", "--clearenv", "--setenv", "LC_ALL", "C.UTF-8", "--cap-drop", "ALL"]
        for place in _places(self.python):
            words += ["--ro-bind-try", place, place]
        hidden = _packages(self.python)
        for place in hidden:
            words += ["--tmpfs", place]
        for place, inside in self.readable.items():
            words += ["--ro-bind-try", place, inside]
        for place in hidden:
            words += ["--remount-ro", place]
        if self.limits.processes:
            words += ["--setenv", "PATH", "/usr/bin:/bin"]
            words += [word for place in PROGRAMS for word in ("--ro-bind-try", place, place)]
            words += ["--size", str(self.limits.disk_mib << 20), "--tmpfs", "/dev/shm"]  # for semaphores
        for device in ("/dev/null", "/dev/zero", "/dev/urandom"):
            words += ["--dev-bind", device, device]
        return [
            *words,
            "--size",
            str(self.limits.disk_mib << 20),
            "--tmpfs",
            "/box",
            "--remount-ro",
            "/",
            "--chdir",
            "/box",
            "--",
        ]


def _another_user(kind: Kind) -> int | None:
    """For a box that root starts a user that is nobody else's: root is exempt from limits, and could do what root can."""
    if os.getuid() or kind == "none":
        return None
    _COUNTER[0] += 1
    return FIRST_UID + (os.getpid() * 61 + _COUNTER[0]) % UIDS


_COUNTER = [0]


def _threads_of_user() -> int:
    """Threads that this user has at present, which the kernel counts against the limit of each of its programs."""
    found = 0
    for folder in os.scandir("/proc"):
        with suppress(OSError, IndexError):
            if folder.name.isdigit() and folder.stat().st_uid == os.getuid():
                found += len(os.listdir(f"/proc/{folder.name}/task"))
    return found


@cache
def compiled(python: str, source: str) -> bytes:
    """Our own code as this interpreter compiles it, which each box would else do anew. SandboxError if the interpreter does not run."""
    command = [python, "-I", "-S", "-B", "-c", COMPILES]
    try:
        done = subprocess.run(command, input=source.encode(), capture_output=True, timeout=30, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise SandboxError(f"the interpreter does not run: {error}.") from None
    if done.returncode:
        why = done.stderr.decode("utf-8", "replace").strip()[-300:]
        raise SandboxError(f"the interpreter compiles nothing: {why}.")
    return done.stdout


@cache
def _text(name: str) -> str:
    return Path(__file__).with_name(name).read_text(encoding="utf-8")


@cache
def _places(python: str) -> tuple[str, ...]:
    """What programs see: system libraries and where an interpreter lies, the file, where links to it lead, and the folder of its library."""
    path = Path(python)
    real = path.resolve()
    return (*SYSTEM, str(path), str(real), str(real.parent.parent / "lib"))


@cache
def _packages(python: str) -> tuple[str, ...]:
    """Folders of installed packages among these places, which programs do not see: some may hold answers."""
    found = [Path(place).glob(f"*/{name}") for place in _places(python) for name in INSTALLED]
    return tuple(sorted({str(folder) for folders in found for folder in folders if folder.is_dir()}))


@cache
def _opened(python: str) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """For Landlock, which opens a folder with all that is below it: (what may be read, folders of which only the names may be)."""
    hidden = {os.path.realpath(folder) for folder in _packages(python)}
    read, listed, left = dict[str, None](), dict[str, None](), [os.path.realpath(p) for p in _places(python)]
    while left:
        place = left.pop()
        if place in hidden or place in listed:
            continue
        if any(folder.startswith(f"{place}/") for folder in hidden):
            listed[place] = None
            left += [entry.path for entry in os.scandir(place) if not entry.is_symlink()]
        else:
            read[place] = None
    return tuple(read), tuple(listed)
