"""Times and sizes for people."""

from __future__ import annotations

GIB = 2**30


def clock(seconds: float) -> str:
    """4:05, or 1:04:05 from an hour on."""
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def duration(seconds: float) -> str:
    """0.04 s, 5.2 s, 3:20, 2:05:00."""
    return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s" if seconds < 100 else clock(seconds)


def unit(largest: int) -> tuple[str, int]:
    """What a table of bytes is written in, GiB or MiB, and the bytes of one."""
    return ("GiB", GIB) if largest >= GIB else ("MiB", 2**20)


def size(count: int) -> str:
    """Bytes for people: 12 MiB, 3.4 GiB."""
    return f"{count / GIB:.1f} GiB" if count >= GIB else f"{count / 2**20:.1f} MiB"
