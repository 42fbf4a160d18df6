"""What a boxed interpreter runs first: it confines itself for good, then becomes the program. Sent compiled, read by no import.

Nothing here is a secret of the program's judge; everything is gone or harmless once the program runs. Standard library alone, and as
little of it as will do, since each program pays for it: ctypes takes a third of an interpreter's start, what it is made of far less.
"""

from __future__ import annotations

import _ctypes
import builtins
import marshal
import os
import resource
import struct
import sys

TYPE_CHECKING = False
if TYPE_CHECKING:  # what types alone need costs each program nothing
    from collections.abc import Sequence
    from typing import Any

SET_DEATH_SIGNAL, NO_NEW_PRIVILEGES, SET_SECCOMP = 1, 38, 22
LOAD, EQUAL, ANY_BIT, RETURN = 0x20, 0x15, 0x45, 0x06
ALLOW, REFUSE = 0x7FFF0000, 0x00050000
EPERM, ENOTTY, ENOSYS = 1, 25, 38
CLONE_THREAD, CLONE3, AF_UNIX = 0x00010000, 435, 1
CLONE_NEW = 0x7E020000
"""The flags of clone that ask for namespaces."""
REQUESTS = (
    0x5401,
    0x5413,
    0x541B,
    0x5421,
    0x5450,
    0x5451,
    0x802C542A,
)  # TCGETS, window size, FIONREAD, FIONBIO, FIO(N)CLEX, TCGETS2
COMMANDS = (
    8,
    10,
    15,
    1024,
    1026,
    1031,
)  # F_SETOWN, F_SETSIG, F_SETOWN_EX, F_SETLEASE, F_NOTIFY, F_SETPIPE_SZ
CREATE, ADD, RESTRICT = 444, 445, 446  # landlock_*, the same on all machines
READ_FILE, READ_FOLDER = 1 << 2, 1 << 3


class Long(_ctypes._SimpleCData):  # type: ignore[type-arg]
    """C's long."""

    _type_ = "l"


class Pointer(_ctypes._SimpleCData):  # type: ignore[type-arg]
    """A pointer to bytes."""

    _type_ = "z"


class Function(_ctypes.CFuncPtr):
    """A function of C that sets errno."""

    _flags_, _restype_ = _ctypes.FUNCFLAG_CDECL | _ctypes.FUNCFLAG_USE_ERRNO, Long


SYSCALL = Function(_ctypes.dlsym(_ctypes.dlopen(None, 0), "syscall"))  # type: ignore[arg-type]  # None: this program
PRCTL = {"x86_64": 157, "aarch64": 167}


def called(number: int, *arguments: int | bytes | None) -> int:
    """The result of a system call. OSError where it failed."""
    words = [Long(one) if isinstance(one, int) else one for one in arguments]
    result: int = SYSCALL(Long(number), *words)
    if result < 0:
        raise OSError(_ctypes.get_errno(), os.strerror(_ctypes.get_errno()))
    return result


def prctl(option: int, value: int, more: int | bytes = 0) -> None:
    """Sets something of this process. OSError where that failed."""
    called(PRCTL[os.uname().machine], option, value, more, 0, 0)


def limit(kind: int, most: int) -> None:
    """A limit that the program cannot raise again."""
    _, hard = resource.getrlimit(kind)
    most = most if hard == resource.RLIM_INFINITY else min(most, hard)
    resource.setrlimit(kind, (most, most))


def set_limits(job: dict[str, Any]) -> None:
    """The kernel's limits on this process."""
    limit(resource.RLIMIT_CORE, 0)
    limit(resource.RLIMIT_CPU, job["cpu_seconds"])
    limit(resource.RLIMIT_AS, job["memory"])
    limit(resource.RLIMIT_FSIZE, job["disk"])
    limit(resource.RLIMIT_NOFILE, 64)
    limit(resource.RLIMIT_STACK, 64 << 20)
    limit(resource.RLIMIT_NPROC, job["threads"])


def landlock(read: Sequence[str], listed: Sequence[str]) -> None:
    """From now on only these places and a few harmless devices can be opened, to be read, or a folder to be listed; no port, no socket or
    signal outside."""
    version = called(CREATE, None, 0, 1)
    files = (1 << (13 if version < 2 else 14 if version < 3 else 15 if version < 5 else 16)) - 1
    attributes = struct.pack("QQQ", files, 3 if version >= 4 else 0, 3 if version >= 6 else 0)
    size = 8 if version < 4 else 16 if version < 6 else 24
    rules = called(CREATE, attributes, size, 0)
    for path in [*read, *listed, "/dev/null", "/dev/urandom", "/dev/zero"]:
        try:
            place = os.open(path, os.O_PATH)
        except OSError:
            continue
        rights = READ_FILE | (READ_FOLDER if os.path.isdir(path) else 2 if path == "/dev/null" else 0)
        rights = READ_FOLDER if path in listed else rights
        called(ADD, rules, 1, struct.pack("=Qi", rights, place), 0)
        os.close(place)
    prctl(NO_NEW_PRIVILEGES, 1)
    called(RESTRICT, rules, 0)
    os.close(rules)


def of_argument(rule: str) -> list[tuple[int, int, int, int]]:
    """Instructions that end with a verdict on a call whose number fits; the low half of its argument is looked at, or a whole address."""
    load = {"own": 16, "thread": 16, "process": 16, "unix": 16, "ioctl": 24, "fcntl": 24, "nameless": 48}[
        rule
    ]
    code = [(LOAD, 0, 0, load)]
    allow, refuse = (RETURN, 0, 0, ALLOW), (RETURN, 0, 0, REFUSE | (ENOTTY if rule == "ioctl" else EPERM))
    if rule == "thread":
        return [*code, (ANY_BIT, 1, 0, CLONE_THREAD), refuse, allow]
    if rule == "process":
        return [*code, (ANY_BIT, 0, 1, CLONE_NEW), refuse, allow]
    if rule == "nameless":
        return [*code, (EQUAL, 0, 2, 0), (LOAD, 0, 0, load + 4), (EQUAL, 1, 0, 0), refuse, allow]
    if rule == "fcntl":
        code += [(EQUAL, len(COMMANDS) - n, 0, one) for n, one in enumerate(COMMANDS)]
        return [*code, allow, refuse]
    known = {"ioctl": REQUESTS, "own": (0, os.getpid()), "unix": (AF_UNIX,)}[rule]
    code += [(EQUAL, len(known) - n, 0, one) for n, one in enumerate(known)]
    return [*code, refuse, allow]


def seccomp(arch: int, rules: dict[int, str]) -> None:
    """From now on only these system calls are made, in this process and its threads."""
    code = [(LOAD, 0, 0, 4), (EQUAL, 1, 0, arch), (RETURN, 0, 0, REFUSE | ENOSYS), (LOAD, 0, 0, 0)]
    for number, rule in rules.items():
        verdict = of_argument(rule) if rule else [(RETURN, 0, 0, ALLOW)]
        code += [(EQUAL, 0, len(verdict), number), *verdict]
    code += [(EQUAL, 0, 1, CLONE3), (RETURN, 0, 0, REFUSE | ENOSYS), (RETURN, 0, 0, REFUSE | EPERM)]
    packed = b"".join(struct.pack("HBBI", *one) for one in code)
    program = struct.pack("Hxxxxxx", len(code)) + bytes(Pointer(packed))
    prctl(NO_NEW_PRIVILEGES, 1)
    prctl(SET_SECCOMP, 2, program)


def confine(job: dict[str, Any]) -> None:
    """All of it, in an order in which no step forbids the next."""
    prctl(SET_DEATH_SIGNAL, 9)
    if job["parent"] and os.getppid() != job["parent"]:
        os._exit(1)
    set_limits(job)
    os.chdir(job["folder"])
    for name, content in job.pop("files").items():
        os.makedirs(os.path.join(job["folder"], os.path.dirname(name)), exist_ok=True)
        with open(name, "wb") as file:
            file.write(content)
    if job["landlock"]:
        landlock(*job["landlock"])
    if job["rules"]:
        seccomp(job["arch"], job["rules"])


def reap() -> None:
    """Returns in a child, which becomes the program. This process, the first of its namespace, waits for it and for all that it leaves
    behind, and ends with it, by which the kernel ends every other process in here."""
    program = os.fork()
    while program:
        child, status = os.wait()
        if child == program:
            code = os.waitstatus_to_exitcode(status)
            os._exit(code if code >= 0 else 128 - code)


def main() -> None:
    """Takes the job, confines itself, says so, and becomes the program."""
    told = int(sys.argv[2])
    job = eval(
        globals().pop("JOB"), {"__builtins__": {}}
    )  # from the judge; a parser would have to be imported
    try:
        confine(job)
    except BaseException as error:
        os.write(told, f"{type(error).__name__}: {error}".encode())
        os._exit(1)
    os.write(told, b"ready")
    os.close(told)
    if job["processes"]:
        reap()
    for leave in ("exit", "quit"):
        setattr(builtins, leave, sys.exit)
    sys.argv[:] = ["program.py"]
    program = sys.modules["__main__"] = type(sys)("__main__")
    program.__dict__["__builtins__"] = builtins
    for source in job["sources"]:
        code = marshal.loads(source) if isinstance(source, bytes) else compile(source, "program.py", "exec")
        exec(code, program.__dict__)


main()
