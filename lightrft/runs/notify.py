"""A word to an address when a run has ended, was stopped or has failed (log.notify). It is short, and no run waits long for it."""

from __future__ import annotations

import http.client
import json
import logging
import threading
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any
from urllib.parse import urlsplit

from lightrft.config.addresses import is_loopback, secret
from lightrft.runs.layout import EvaluationFolder, RunFolder
from lightrft.utils.interrupt import Stopped
from lightrft.utils.paths import without_home
from lightrft.utils.redirects import NoRedirects

log = logging.getLogger("lightrft")
ATTEMPTS = 3
"""Times that an address is asked at most."""
TIMEOUT = 10.0
"""Seconds that one attempt may take."""
FIRST_PAUSE = 1.0
"""Seconds before the second attempt; before the third twice as long."""
PASSING = (408, 425, 429)
"""Statuses, besides 5xx, after which the same request may succeed."""
MOST_TOLD = 600
"""Characters of an error's text that are sent, half of them its first, half its last."""


@dataclass(frozen=True)
class Receiver:
    """An address to be told, with the key for it."""

    url: str
    key: str = ""
    """Sent as a bearer token; empty: none."""

    @property
    def host(self) -> str:
        """All of the address that may be shown: its path may be a secret."""
        return str(urlsplit(self.url).hostname)


def found_receiver(notify: str, notify_key: str) -> Receiver | None:
    """Whom the options log.notify and log.notify_key name; None if nobody. ValueError for an environment variable that is not there, or holds no
    address; its content is never told."""
    if not notify:
        return None
    url = notify if "://" in notify else secret("log.notify", notify)
    parts = urlsplit(url)
    if parts.scheme not in ("http", "https") or not parts.hostname:
        raise ValueError(
            f"log.notify={notify}: the environment variable of this name holds no address. Set it to https://HOST/PATH."
        )
    if notify_key and parts.scheme == "http" and not is_loopback(parts.hostname):
        raise ValueError(
            f"log.notify={notify}: the key of log.notify_key would go unencrypted to another machine. Use https, or leave log.notify_key out."
        )
    return Receiver(url, secret("log.notify_key", notify_key) if notify_key else "")


class Notifier:
    """Tells the receiver how a run was left; a context manager around it, on its first rank."""

    def __init__(
        self, receiver: Receiver, run: Path, command: str, now: Callable[[], Mapping[str, Any]]
    ) -> None:
        """`now`: what the run does at this moment: steps done, of how many, and the phase."""
        self.receiver, self.run, self.command, self.now = receiver, run, command, now
        self.begun = time.monotonic()

    def __enter__(self) -> Notifier:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, Exception):  # who presses Ctrl-C twice waits for nothing
            self.tell(error)

    def tell(self, error: BaseException | None) -> None:
        """Sends it, and waits for as long as all attempts may take, and one more; looking up a host's name has no time limit of its own."""
        body = json.dumps(self.message(error), default=str).encode()
        sender = threading.Thread(target=self._send, args=(body,), name="log.notify", daemon=True)
        sender.start()
        sender.join((ATTEMPTS + 1) * TIMEOUT + (2 ** (ATTEMPTS - 1) - 1) * FIRST_PAUSE)
        if sender.is_alive():
            log.warning("log.notify: %s was not told within the time for it", self.receiver.host)

    def message(self, error: BaseException | None) -> dict[str, Any]:
        """What is sent: `event` is finished, stopped or failed; `text` says it for people."""
        name, now = self.run.absolute().name, self.now()
        found: dict[str, Any] = {"event": "finished", "run": name, "command": self.command}
        found |= {key: now[key] for key in ("done", "steps", "phase")}
        if isinstance(error, Stopped):
            found |= {"event": "stopped", "signal": str(error)}
        elif error is not None:
            found |= {
                "event": "failed",
                "error": _cut(f"{type(error).__name__}: {without_home(str(error)).strip()}"),
            }
        found["seconds"] = round(time.monotonic() - self.begun, 1)
        found["evaluation"] = _scores(self.run)
        told = {"stopped": f" by {error}", "failed": f": {found.get('error')}"}.get(found["event"], "")
        found["text"] = f"{name}: {found['event']}{told}, after step {found['done']} of {found['steps']}"
        return found

    def _send(self, body: bytes) -> None:
        told, pause = "", FIRST_PAUSE
        for attempt in range(ATTEMPTS):
            if attempt:
                time.sleep(pause)
                pause *= 2
            try:
                _post(self.receiver, body)
                return
            except urllib.error.HTTPError as error:
                told = f"status {error.code}"
                if error.code not in PASSING and error.code < 500:
                    break
            except (OSError, http.client.HTTPException) as error:
                told = type(error).__name__ if isinstance(error, http.client.HTTPException) else _why(error)
        log.warning("log.notify: %s could not be told (%s)", self.receiver.host, told)


def _post(receiver: Receiver, body: bytes) -> None:
    """One attempt. OSError, of which HTTPError is one, or HTTPException if it did not succeed."""
    headers = {"Content-Type": "application/json", "User-Agent": "lightrft"}
    if receiver.key:
        headers["Authorization"] = f"Bearer {receiver.key}"
    request = urllib.request.Request(receiver.url, body, headers)
    handlers: list[urllib.request.BaseHandler] = [NoRedirects()]
    if is_loopback(receiver.host):
        handlers.append(urllib.request.ProxyHandler({}))
    with urllib.request.build_opener(*handlers).open(request, timeout=TIMEOUT):
        pass


def _why(error: OSError) -> str:
    """What went wrong, in which no address stands."""
    reason = getattr(error, "reason", error)
    return f"{type(reason).__name__}: {getattr(reason, 'strerror', None) or 'no answer'}"


def _cut(text: str) -> str:
    return text if len(text) <= MOST_TOLD else f"{text[: MOST_TOLD // 2]} ... {text[-MOST_TOLD // 2 :]}"


def _scores(run: Path) -> dict[str, Any]:
    """Held-out scores with their intervals, by evaluation and task; of runs that have none in this form an empty dict."""
    found: dict[str, Any] = {}
    folder = RunFolder(run).evaluation
    for label in ("before", "after"):
        if not EvaluationFolder(folder).report(label).is_file():
            continue
        for task, one in EvaluationFolder(folder).read_report(label).items():
            score = one.get("score") if isinstance(one, dict) else None
            if isinstance(score, dict):
                found.setdefault(label, {})[task] = {
                    name: score.get(name) for name in ("mean", "low", "high")
                }
    return found
