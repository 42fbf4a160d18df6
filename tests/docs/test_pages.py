"""The documents are whole: generated pages are current, every page is in the menu, and every link leads somewhere."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from lightrft.config import RUNS, layers
from lightrft.trainer.metrics import METRICS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").glob("*.md"))


def make_tables() -> Any:
    spec = importlib.util.spec_from_file_location("make_tables", ROOT / "docs" / "make_tables.py")
    assert spec is not None
    assert spec.loader is not None
    tables = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tables)
    return tables


def test_the_generated_pages_are_current() -> None:
    tables = make_tables()
    assert tables.PAGE.read_text(encoding="utf-8") == tables.page(), "run: make docs-tables"
    assert tables.METRICS_PAGE.read_text(encoding="utf-8") == tables.metrics_page(), "run: make docs-tables"
    assert tables.API_PAGE.read_text(encoding="utf-8") == tables.api_page(), "run: make docs-tables"
    text = tables.ALGORITHMS_PAGE.read_text(encoding="utf-8")
    assert text == tables.algorithms_page(text), "run: make docs-tables"
    text = tables.COMING_PAGE.read_text(encoding="utf-8")
    assert text == tables.coming_page(text), "run: make docs-tables"


def test_the_menu_names_every_page_once() -> None:
    menu = yaml.safe_load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"))["nav"]
    sections = [pages for section in menu for pages in section.values()]
    assert len(sections) == 5
    assert sorted(file for pages in sections for entry in pages for file in entry.values()) == [
        page.name for page in PAGES
    ]


@pytest.mark.parametrize(
    "page", [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *PAGES], ids=lambda page: page.name
)
def test_links_lead_to_files_and_headings_that_exist(page: Path) -> None:
    text = re.sub(r"^```.*?^```$", "", page.read_text(encoding="utf-8"), flags=re.MULTILINE | re.DOTALL)
    for link in re.findall(r"\]\(([^)\s]+)\)", text):
        if link.startswith("http"):
            continue
        file, _, heading = link.partition("#")
        target = page.parent / file if file else page
        assert target.is_file(), f"{page.name} links to {link}"
        assert not heading or heading in anchors(target), f"{page.name} links to {link}"


PLACES = [
    ".",
    "lightrft",
    "tests",
    "docs",
    "tests/faults",
    "tests/distributed",
    "benchmarks",
    "lightrft/commands",
]
"""Folders below which a document may name a file."""


@pytest.mark.parametrize(
    "page",
    [ROOT / "README.md", ROOT / "CONTRIBUTING.md", ROOT / "tests" / "README.md", *PAGES],
    ids=lambda page: str(page.relative_to(ROOT)),
)
def test_every_named_file_of_the_repository_exists(page: Path) -> None:
    named = re.findall(r"`([\w/.]+\.(?:py|md|sh|toml))(?::\w+)?`", page.read_text(encoding="utf-8"))
    lost = {name for name in named if not any((ROOT / place / name).exists() for place in PLACES)}
    # A bare name is a file that the reader is to write, except for tests and in the description of the rooms.
    lost = {
        name for name in lost if "/" in name or name.startswith("test_") or page.name == "architecture.md"
    }
    assert not lost - {"path/to/file.py"}, f"{page.name} names {lost}"


def anchors(page: Path) -> set[str]:
    """The headings of a page as mkdocs turns them into anchors."""
    headings = re.findall(r"^#+ (.+)$", page.read_text(encoding="utf-8"), re.MULTILINE)
    return {re.sub(r"\s+", "-", re.sub(r"[^\w\s-]", "", heading).strip().lower()) for heading in headings}


def test_every_named_option_exists() -> None:
    """A dotted option in backquotes, like `rollout.max_tokens`, is one of the configuration."""
    known = {name for kind in RUNS.values() for name, *_ in layers.options(kind)}
    sections = {name.split(".")[0] for name in known if "." in name}
    for page in PAGES:
        for name in re.findall(r"`([a-z_]+(?:\.[a-z_]+)+)(?:=[^`]*)?`", page.read_text(encoding="utf-8")):
            if name.split(".")[0] in sections and not name.endswith(
                (".yaml", ".py", ".json", ".jsonl", ".txt")
            ):
                assert name in known or any(k.startswith(f"{name}.") for k in known), f"{page.name}: {name}"


def test_every_named_metric_exists() -> None:
    """A backquoted name with a slash, like `reward/mean`, is in the table, where its first word is that of a metric."""
    words = {name.split("/")[0] for name in METRICS if "/" in name}
    for page in PAGES:
        for name in re.findall(r"`([a-z_]+/[a-zA-Z_/]+)`", page.read_text(encoding="utf-8")):
            if name.split("/")[0] in words:
                general = re.sub(r"[A-Z]+$", "PART", name)
                assert name in METRICS or general in METRICS, f"{page.name}: {name}"
