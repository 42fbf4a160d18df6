"""Links of pages to files of the repository that are no pages: mkdocs copies these files into the site, below files/."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File, Files, InclusionLevel

ROOT = Path(__file__).resolve().parents[1]
LINK = re.compile(r"\]\(\.\./([\w./-]+)\)")


def on_files(files: Files, config: Any) -> Files:
    """Adds the files that any page links to."""
    pages = [file.content_string for file in files.documentation_pages()]
    for name in sorted({found for text in pages for found in LINK.findall(text)}):
        added = File.generated(config, f"files/{name}.txt", abs_src_path=str(ROOT / name))
        added.inclusion = InclusionLevel.INCLUDED
        files.append(added)
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Points links to where those files are in the site."""
    return LINK.sub(r"](files/\1.txt)", markdown)
