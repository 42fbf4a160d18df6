"""Requests over HTTP that go where they were sent and nowhere else."""

from __future__ import annotations

import urllib.request
from typing import Any


class NoRedirects(urllib.request.HTTPRedirectHandler):
    """A redirect would carry what is sent, and its key, to another host."""

    def redirect_request(self, *args: Any, **options: Any) -> None:  # noqa: ARG002  # as urllib calls it
        """None: the status of the redirect is then an error."""
        return
