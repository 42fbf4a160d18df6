"""The commands that install what is missing name packages that exist, and never this one."""

from __future__ import annotations

import pytest
from packaging.requirements import Requirement

from lightrft.utils import extras


def test_every_extra_has_packages_besides_this_one() -> None:
    found = extras.extras()
    assert {"demo", "media", "vllm", "sglang", "deepspeed", "dev"} <= found.keys()
    assert [r.name for r in found["vllm"]] == ["vllm"]
    assert "lightrft" not in [r.name for requirements in found.values() for r in requirements]


def test_the_command_has_what_is_missing_with_its_version(monkeypatch: pytest.MonkeyPatch) -> None:
    wanted = [Requirement("pytest>=8"), Requirement("no-such-one>=1.5"), Requirement("nor-this")]
    monkeypatch.setattr(extras, "extras", lambda: {"some": wanted, "there": wanted[:1]})
    assert extras.install_command("some") == 'pip install "no-such-one>=1.5" nor-this'
    assert extras.install_command("there") == 'pip install "pytest>=8"', (
        "an installed one is of the wrong version"
    )
    assert extras.install_command("unknown") == "pip install unknown", "run from a folder, never installed"
