"""Rewards that other machines compute."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal
from urllib.parse import urldefrag

from lightrft.config.addresses import checked, is_loopback
from lightrft.config.ranges import check_ranges


@dataclass(frozen=True, kw_only=True)
class RemoteConfig:
    """Rewards over HTTP, from `lightrft serve-rewards` or a program that answers as it does; each name of urls is a reward."""

    urls: dict[str, str] = field(default_factory=dict)
    """Reward name -> where it is computed, e.g. {safe: "https://node7:8100"}; several addresses with commas between them share the responses
    out. ADDRESS#OTHER asks for the reward that is called OTHER there."""
    key: str = ""
    """Environment variable that holds the servers' key; empty: none."""
    protocol: Literal["lightrft", "openrlhf"] = "lightrft"
    """What is sent: the form of `lightrft serve-rewards`, or OpenRLHF's (query, prompts, labels -> rewards), to the path of the address."""
    batch: int = 64
    """Most responses of one request; groups stay whole, and a larger one goes alone."""
    requests: int = 8
    """Most requests at a time, over all addresses of a reward."""
    timeout_seconds: float = 60.0
    """Longest time for one request, without looking its host up."""
    retries: int = 2
    """How often a request is sent again, to the next address if there are several, after a failure that may pass: no connection, no reply in
    time, or the statuses 408, 425, 429 and 5xx."""
    send_media: bool = False
    """Send the pictures, clips and sounds of prompts with the responses, each once in a request, for reward models and judges there that
    see or hear; else their names alone."""
    plain_http: bool = False
    """Allow http to other machines: responses and the key can then be read on the way."""

    def __post_init__(self) -> None:
        check_ranges("remote", self)
        if self.send_media and self.protocol != "lightrft":
            raise ValueError(
                f"remote.send_media=true with remote.protocol={self.protocol}: that form has no place for media. Set remote.protocol=lightrft, or "
                "remote.send_media=false."
            )
        for name, urls in self.urls.items():
            for url in addresses(urls):
                self._check_url(name, url)

    def _check_url(self, name: str, url: str) -> None:
        parts = checked(f"remote.urls: {name}", url, "remote.key")
        if parts.scheme == "http" and not is_loopback(str(parts.hostname)) and not self.plain_http:
            raise ValueError(
                f"remote.urls: {name}={url} goes unencrypted to another machine. Use https, or set remote.plain_http=true where the network is "
                "trusted."
            )


def addresses(urls: str) -> list[str]:
    """The addresses of one reward."""
    return [url.strip() for url in urls.split(",")]


def named_there(name: str, urls: str) -> str:
    """What the servers call a reward, whatever machines they run on: commas between several names."""
    return ", ".join(sorted({urldefrag(url).fragment or name for url in addresses(urls)}))
