"""The optional packages of this one, and the commands that install them."""

from __future__ import annotations

import importlib.metadata

from packaging.requirements import Requirement


def install_command(extra: str) -> str:
    """The command that installs what an extra needs and is missing: all of it, where nothing is or an unfit version.

    It names those packages and not this one with its extra: `lightrft` on the package index is another project.
    """
    wanted = extras().get(extra) or [Requirement(extra)]
    missing = [requirement for requirement in wanted if not installed(requirement.name)] or wanted
    return "pip install " + " ".join(
        f'"{requirement.name}{requirement.specifier}"' if requirement.specifier else requirement.name
        for requirement in missing
    )


def extras() -> dict[str, list[Requirement]]:
    """What each extra needs besides this package, as pyproject.toml says; none where this package is not installed."""
    try:
        required = [Requirement(line) for line in importlib.metadata.requires("lightrft") or []]
        names = importlib.metadata.metadata("lightrft").get_all("Provides-Extra") or []
    except importlib.metadata.PackageNotFoundError:
        return {}
    optional = [r for r in required if r.marker is not None and r.name != "lightrft"]
    return {name: [r for r in optional if r.marker and r.marker.evaluate({"extra": name})] for name in names}


def installed(package: str) -> str:
    """The version of an installed package; "" if it is not there."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""
