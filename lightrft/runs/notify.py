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

from lightrft.config.addresses import http_parts, is_loopback, may_succeed_later, secret
from lightrft.parallel.explain import with_cause
from lightrft.parallel.status import STATUS
from lightrft.runs.layout import EvaluationFolder, RunFolder
from lightrft.utils.finite import finite_number
from lightrft.utils.interrupt import Stopped
from lightrft.utils.paths import without_home

log = logging.getLogger("lightrft")
ATTEMPTS = 3
"""Times that an address is asked at most."""
TIMEOUT = 10.0
"""Seconds that one attempt may take."""
FIRST_PAUSE = 1.0
"""Seconds before the second attempt; before the third twice as long."""
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
    address or no key that can be sent; its content is never told."""
    if not notify:
        return None
    url = notify if "://" in notify else secret("log.notify", notify)
    parts = http_parts(url)
    if parts is None:
        raise ValueError(f"log.notify={notify}: it holds no address. Set it to https://HOST/PATH.")
    if notify_key and parts.scheme == "http" and not is_loopback(str(parts.hostname)):
        raise ValueError(
            f"log.notify={notify}: the key of log.notify_key would go unencrypted to another machine. Use https, or leave log.notify_key out."
        )
    return Receiver(url, secret("log.notify_key", notify_key) if notify_key else "")


def _loading() -> Mapping[str, Any]:
    """What a run does before its journal is made."""
    return {"done": None, "steps": None, "phase": STATUS.phase}


class Notifier:
    """Tells the receiver how a run was left; a context manager around it, on its first rank."""

    def __init__(
        self,
        receiver: Receiver,
        run: Path,
        command: str,
        now: Callable[[], Mapping[str, Any]] = _loading,
    ) -> None:
        """`now`: what the run does at this moment: steps done, of how many (None while it is loaded), and the phase."""
        self.receiver, self.run, self.command, self.now = receiver, run, command, now
        self.begun = time.monotonic()
        self._told = False
        self._sender: threading.Thread | None = None

    def __enter__(self) -> Notifier:
        if STATUS.watch is not None:
            STATUS.watch.farewell = self.say_farewell
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if error is None or isinstance(error, Exception):  # who presses Ctrl-C twice waits for nothing
            self.tell(with_cause(error), ATTEMPTS)
        if STATUS.watch is not None:
            STATUS.watch.farewell = None

    def say_farewell(self, why: str) -> None:
        """Tells, in one attempt, that the watch of several processes ends this one: another is gone, or none gets on."""
        self.tell(RuntimeError(why), 1)

    def tell(self, error: BaseException | None, attempts: int) -> None:
        """Sends it, once, and waits for as long as so many attempts may take, and one more; looking up a host's name has no time limit of its
        own. Nothing that fails here is raised: it would stand in the place of the run's own end."""
        if self._told:
            if self._sender is not None:  # of the run's own thread, which is not to be cut off
                self._sender.join(TIMEOUT)
            return
        self._told = True
        try:
            body = json.dumps(self.message(error), allow_nan=False).encode()
        except Exception as broken:  # whatever a user's error makes of its text
            log.warning(
                "log.notify: what is to be told could not be put together (%s)", type(broken).__name__
            )
            return
        sender = threading.Thread(target=self._send, args=(body, attempts), name="log.notify", daemon=True)
        self._sender = sender
        sender.start()
        sender.join((attempts + 1) * TIMEOUT + (2 ** (attempts - 1) - 1) * FIRST_PAUSE)
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
        # A run that was to go on has an `after` of its earlier end.
        found["evaluation"] = self._scores("before", *(["after"] if error is None else []))
        told = {"stopped": f" by {error}", "failed": f": {found.get('error')}"}.get(found["event"], "")
        place = "while loading" if now["done"] is None else f"after step {now['done']} of {now['steps']}"
        found["text"] = f"{name}: {found['event']}{told}, {place}"
        return found

    def _scores(self, *labels: str) -> dict[str, Any]:
        """Held-out scores with their intervals, by evaluation and task, where there are any in this form; nothing where they cannot be read."""
        try:
            return {label: found for label in labels if (found := _estimates(self.run, label))}
        except Exception as broken:  # a report that was cut off
            log.warning("log.notify: the scores could not be read (%s)", type(broken).__name__)
            return {}

    def _send(self, body: bytes, attempts: int) -> None:
        told, pause = "", FIRST_PAUSE
        for attempt in range(attempts):
            if attempt:
                time.sleep(pause)
                pause *= 2
            try:
                _post(self.receiver, body)
                return
            except urllib.error.HTTPError as error:
                told = f"status {error.code}"
                if not may_succeed_later(error.code):
                    break
            except (OSError, http.client.HTTPException) as error:
                told = type(error).__name__ if isinstance(error, http.client.HTTPException) else _why(error)
            except (
                Exception
            ) as error:  # its text may hold the key or the address, and a thread's traceback would show it
                told = type(error).__name__
                break
        log.warning("log.notify: %s could not be told (%s)", self.receiver.host, told)


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry what is sent, and its key, to another host."""

    def redirect_request(self, *args: Any, **options: Any) -> None:  # noqa: ARG002  # as urllib calls it
        """None: the status of the redirect is then an error."""
        return


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


def _estimates(run: Path, label: str) -> dict[str, Any]:
    """Task -> its score and the interval of it, of one evaluation; None for a number that is none."""
    folder, found = EvaluationFolder(RunFolder(run).evaluation), {}
    if not folder.report(label).is_file():
        return {}
    for task, one in folder.read_report(label).items():
        score = one.get("score") if isinstance(one, dict) else None
        if isinstance(score, dict):
            found[task] = {name: finite_number(score.get(name)) for name in ("mean", "low", "high")}
    return found
