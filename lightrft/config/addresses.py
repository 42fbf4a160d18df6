"""Addresses and keys of servers, ours and those that we ask."""

from __future__ import annotations

import ipaddress
import os
import re
from urllib.parse import SplitResult, urlsplit


def is_loopback(host: str) -> bool:
    """Whether an address is of this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def secret(option: str, variable: str) -> str:
    """The key that an option names by its environment variable, without white space around it, as files of secrets end with. ValueError, which
    never tells its content, if there is none of that name, or if a header of HTTP could not carry it."""
    if variable not in os.environ:
        raise ValueError(
            f"{option}={variable}: there is no such environment variable. Set it, or leave the option out."
        )
    found = os.environ[variable].strip()
    if not is_sendable(found):
        raise ValueError(
            f"{option}={variable}: the environment variable of this name holds white space, control characters or signs beyond ASCII, "
            "or nothing. Set it to printable ASCII."
        )
    return found


def is_sendable(text: str) -> bool:
    """Whether a key or an address can stand in a request of HTTP: printable ASCII without blanks, and not nothing."""
    return re.fullmatch("[!-~]+", text) is not None


def checked(option: str, url: str, key: str) -> SplitResult:
    """The parts of an address that an option names. ValueError for one without http, a host that can be looked up and a sound port, or with a
    name, a password or a key in it; `key`: the option that names a key's environment variable."""
    try:
        parts = urlsplit(url)
        host = str(parts.hostname or "")
    except ValueError:
        raise _no_address(option, url.rpartition("@")[2]) from None  # before the @ may stand a password
    if "@" in parts.netloc or parts.query:
        raise ValueError(
            f"{option}: the address of {host} holds a name, a password or a key, and settings are written to "
            f"RUN/config.yaml and messages. Give the address alone, http://HOST:PORT, and the servers' key in an environment "
            f"variable named by {key}."
        )
    if http_parts(url) is None:
        raise _no_address(option, url)
    return parts


def http_parts(url: str) -> SplitResult | None:
    """The parts of an address of HTTP with a host that can be looked up and a sound port; None for what is none."""
    try:
        parts = urlsplit(url)
        sound = (
            parts.scheme in ("http", "https")
            and parts.port != 0
            and bool(str(parts.hostname or "").encode("idna"))
        )
    except (
        ValueError
    ):  # a port that is no number; or UnicodeError, which is one: no name server could be asked for this host
        return None
    return parts if sound else None


def may_succeed_later(status: int) -> bool:
    """Whether the same request may succeed after a reply of HTTP with this status, which is an error: the server was too slow (408), too early
    (425), or asked too often (429), or failed itself (5xx)."""
    return status in (408, 425, 429) or status >= 500


def _no_address(option: str, url: str) -> ValueError:
    return ValueError(f"{option}={url} is no address. Write https://HOST:PORT, or http://localhost:PORT.")


def check_notify(notify: str, key: str) -> None:
    """ValueError for log.notify if it is neither an address nor the name of an environment variable, and for log.notify_key without it."""
    if key and not notify:
        raise ValueError(
            f"log.notify_key={key} has no effect without log.notify. Set log.notify, or leave it out."
        )
    if "://" in notify:
        if not is_sendable(notify):
            raise ValueError(
                "log.notify: the address has blanks, control characters or signs beyond ASCII. Write them percent-encoded."
            )
        checked("log.notify", notify, "log.notify_key")
    elif notify and not re.fullmatch(r"[A-Za-z_]\w*", notify):
        raise ValueError(
            f"log.notify={notify}: give an address, https://HOST/PATH, or the name of an environment variable that holds one."
        )
