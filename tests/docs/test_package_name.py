"""No text of ours tells people to install `lightrft` from the package index: that name is another project's."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
KINDS = {".py", ".md", ".yaml", ".yml", ".toml", ".txt", ".cfg", ".sh", ".ipynb", ".cff", ""}
LEFT_OUT = {".git", ".venv", "build", "dist", "site", "node_modules", "__pycache__", "runs"}
COMMAND = re.compile(r"""(?:pip3?|uv\s+add|pipx)\s+(?:install\s+)?(?:-\S+\s+)*["']?lightrft\b(?!\s*@)""")
HERE = Path(__file__).name


def texts():
    for path in sorted(ROOT.rglob("*")):
        inside = set(path.relative_to(ROOT).parts[:-1])
        named = path.suffix in KINDS and path.name != HERE and path.stat().st_size < 2_000_000
        if path.is_file() and named and not inside & LEFT_OUT:
            yield path


def test_nobody_is_told_to_install_the_other_project():
    found, seen = [], 0
    for path in texts():
        seen += 1
        for number, line in enumerate(
            path.read_text(encoding="utf-8", errors="replace").splitlines(), start=1
        ):
            if COMMAND.search(line):
                found.append(f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}")
    assert found == []
    assert seen > 500, "the tree was searched"


@pytest.mark.parametrize(
    "line",
    ["pip install lightrft", "pip install 'lightrft[vllm]'", "pip install -U lightrft", "uv add lightrft"],
)
def test_the_search_finds_the_command(line):
    assert COMMAND.search(line)


@pytest.mark.parametrize(
    "line", ["pip install -e .", "pip install vllm", 'pip install "lightrft @ git+https://host/x"']
)
def test_the_search_leaves_other_commands(line):
    assert not COMMAND.search(line)
