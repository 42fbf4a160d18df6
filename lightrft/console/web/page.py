"""The page of the viewer: its parts in the order in which they are read, as a page that asks a server, or as one with all in it."""

from __future__ import annotations

import base64
import hashlib
import html
from functools import cache
from importlib.resources import files

SCRIPTS = (
    "vendor/htm-preact.js",
    "vendor/uplot.js",
    "core.js",
    "diff.js",
    "colours.js",
    "charts.js",
    "overview.js",
    "responses.js",
    "tokens.js",
    "evaluation.js",
    "compare.js",
    "app.js",
)
"""Plain scripts, each a function of its own; each may use those before it."""
STYLES = ("vendor/uplot.css", "style.css")
KINDS = {".js": "text/javascript; charset=utf-8", ".css": "text/css; charset=utf-8"}
"""Type of a part by the ending of its name."""
NOTHING_ELSE = "default-src 'none'; img-src data:; media-src data:; base-uri 'none'; form-action 'none'"
"""The part of the content security policy that both pages have: no address, no frame, no form, no script but the listed ones."""


@cache
def part(name: str) -> str:
    """The text of a script or style. KeyError for a name that is not one of them."""
    if name not in (*SCRIPTS, *STYLES):
        raise KeyError(name)
    return (files("lightrft.console.web") / "static" / name).read_text(encoding="utf-8")


def served(title: str) -> tuple[str, str]:
    """The page that asks the server beside it, and its content security policy."""
    head = "".join(f'<link rel="stylesheet" href="static/{name}">' for name in STYLES)
    body = "".join(f'<script src="static/{name}"></script>' for name in SCRIPTS)
    policy = (
        f"{NOTHING_ELSE}; script-src 'self'; style-src 'self'; connect-src 'self'; frame-ancestors 'none'"
    )
    return _document(title, head, body), policy


def alone(title: str, saved: str) -> str:
    """The page as one file; `saved` is JSON without any `<`, whose form static/core.js reads.

    Its policy names each script by its hash, so that no other runs, whatever a text in the page says.
    """
    scripts, styles = [part(name) for name in SCRIPTS], [part(name) for name in STYLES]
    policy = f"{NOTHING_ELSE}; script-src {_hashes(scripts)}; style-src {_hashes(styles)}"
    head = f'<meta http-equiv="Content-Security-Policy" content="{html.escape(policy)}">'
    head += "".join(f"<style>{text}</style>" for text in styles)
    body = f'<script type="application/json" id="saved">{saved}</script>'
    return _document(title, head, body + "".join(f"<script>{text}</script>" for text in scripts))


def _document(title: str, head: str, body: str) -> str:
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>{html.escape(title)}</title>{head}</head>"
        f'<body><div id="app"><noscript>This page needs JavaScript.</noscript></div>{body}</body></html>\n'
    )


def _hashes(texts: list[str]) -> str:
    digests = [hashlib.sha256(text.encode("utf-8")).digest() for text in texts]
    return " ".join(f"'sha256-{base64.b64encode(digest).decode('ascii')}'" for digest in digests)
