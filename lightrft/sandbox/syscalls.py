"""The system calls that a confined program may make, by machine; every other one is answered with ENOSYS or EPERM.

A list of what is allowed rather than of what is refused: calls that kernels learn later are refused without a change here. Numbers
are those of Linux's <asm/unistd_64.h> (x86_64) and <asm-generic/unistd.h> (aarch64).
"""

from __future__ import annotations

from collections.abc import Mapping

AUDIT_ARCH = {"x86_64": 0xC000003E, "aarch64": 0xC00000B7}
"""AUDIT_ARCH_* of <linux/audit.h>: a call by another convention (32 bits, x32) is never allowed."""
OWN = "own"
"""Allowed where the first argument is 0 or the number of the calling process: no other can be meant."""
THREAD = "thread"
"""Allowed where the flags ask for a thread: new processes are not."""
PROCESS = "process"
"""Allowed unless the flags ask for a namespace: where a program may start processes."""
IOCTL = "ioctl"
"""Allowed for the requests that files and terminals are asked in ordinary use."""
FCNTL = "fcntl"
"""Allowed but for the commands that send signals, take leases or enlarge pipes."""
NAMELESS = "nameless"
"""Allowed without an address: a socket may speak with the one it is connected to, and not with any other that has a name."""
UNIX = "unix"
"""Allowed for the family of Unix sockets."""

_PLAIN: Mapping[str, tuple[int | None, int | None]] = {
    "read": (0, 63), "write": (1, 64), "open": (2, None), "close": (3, 57), "stat": (4, None), "fstat": (5, 80),
    "lstat": (6, None), "poll": (7, None), "lseek": (8, 62), "mmap": (9, 222), "mprotect": (10, 226), "munmap": (11, 215),
    "brk": (12, 214), "rt_sigaction": (13, 134), "rt_sigprocmask": (14, 135), "rt_sigreturn": (15, 139), "pread64": (17, 67),
    "pwrite64": (18, 68), "readv": (19, 65), "writev": (20, 66), "access": (21, None), "pipe": (22, None), "select": (23, None),
    "sched_yield": (24, 124), "mremap": (25, 216), "msync": (26, 227), "madvise": (28, 233), "dup": (32, 23), "dup2": (33, None),
    "pause": (34, None), "nanosleep": (35, 101), "getitimer": (36, 102), "alarm": (37, None), "setitimer": (38, 103),
    "getpid": (39, 172), "recvfrom": (45, 207), "shutdown": (48, 210),
    "exit": (60, 93), "wait4": (61, 260), "uname": (63, 160), "flock": (73, 32), "fsync": (74, 82), "fdatasync": (75, 83),
    "ftruncate": (77, 46), "getdents": (78, None), "getcwd": (79, 17), "chdir": (80, 49), "fchdir": (81, 50), "rename": (82, None),
    "mkdir": (83, None), "rmdir": (84, None), "creat": (85, None), "unlink": (87, None), "readlink": (89, None), "umask": (95, 166),
    "gettimeofday": (96, 169), "getrlimit": (97, 163), "getrusage": (98, 165), "times": (100, 153), "getuid": (102, 174),
    "getgid": (104, 176), "geteuid": (107, 175), "getegid": (108, 177), "getppid": (110, 173), "getpgrp": (111, None),
    "getgroups": (115, 158), "getresuid": (118, 148), "getresgid": (120, 150), "getpgid": (121, 155), "getsid": (124, 156),
    "sigaltstack": (131, 132), "arch_prctl": (158, None), "gettid": (186, 178), "futex": (202, 98),
    "sched_getaffinity": (204, 123), "getdents64": (217, 61), "set_tid_address": (218, 96), "restart_syscall": (219, 128),
    "fadvise64": (221, 223), "clock_gettime": (228, 113), "clock_getres": (229, 114), "clock_nanosleep": (230, 115),
    "exit_group": (231, 94), "epoll_wait": (232, None), "epoll_ctl": (233, 21), "openat": (257, 56), "mkdirat": (258, 34),
    "newfstatat": (262, 79), "unlinkat": (263, 35), "renameat": (264, 38), "readlinkat": (267, 78), "faccessat": (269, 48),
    "pselect6": (270, 72), "ppoll": (271, 73), "set_robust_list": (273, 99), "epoll_pwait": (281, 22), "eventfd2": (290, 19),
    "epoll_create1": (291, 20), "dup3": (292, 24), "pipe2": (293, 59), "renameat2": (316, 276), "getrandom": (318, 278),
    "membarrier": (324, 283), "statx": (332, 291), "rseq": (334, 293), "faccessat2": (439, 439),
}  # fmt: skip
_WITH_RULE: Mapping[str, tuple[int, int, str]] = {
    "ioctl": (16, 29, IOCTL),
    "sendto": (44, 206, NAMELESS),
    "socketpair": (53, 199, UNIX),
    "clone": (56, 220, THREAD),
    "kill": (62, 129, OWN),
    "fcntl": (72, 25, FCNTL),
    "tgkill": (234, 131, OWN),
    "prlimit64": (302, 261, OWN),
}
_WITH_PROCESSES: Mapping[str, tuple[int | None, int | None, str]] = {
    "clone": (56, 220, PROCESS), "fork": (57, None, ""), "vfork": (58, None, ""), "execve": (59, 221, ""), "kill": (62, 129, ""),
    "link": (86, None, ""), "setpgid": (109, 154, ""), "setsid": (112, 157, ""), "rt_sigtimedwait": (128, 137, ""),
    "rt_sigsuspend": (130, 133, ""), "tkill": (200, 130, ""), "tgkill": (234, 131, ""), "waitid": (247, 95, ""),
    "linkat": (265, 37, ""), "close_range": (436, 436, ""),
}  # fmt: skip
"""What programs that may start processes can call besides; their signals end at the box's own processes, as these are all they see."""


def rules(machine: str, processes: bool = False) -> dict[int, str]:
    """Number -> "" (allowed), or the rule for its arguments. `processes`: whether a program may start some. ValueError for a machine whose
    calls are not known here."""
    if machine not in AUDIT_ARCH:
        raise ValueError(f"system calls of {machine} are not known here; there are {', '.join(AUDIT_ARCH)}")
    column = list(AUDIT_ARCH).index(machine)
    plain = {numbers[column]: "" for numbers in _PLAIN.values()}
    found: dict[int, str] = {number: rule for number, rule in plain.items() if number is not None}
    for row in (*_WITH_RULE.values(), *(_WITH_PROCESSES.values() if processes else ())):
        number = (row[0], row[1])[column]
        if number is not None:
            found[number] = row[2]
    return found
