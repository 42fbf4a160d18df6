"""A repository with a fault, for the policy to mend: it runs programs there and edits files, and the repository's own tests judge.

Records have the form of SWE-bench (https://arxiv.org/abs/2310.06770), see tasks/repair.py. Imports no torch: worker processes run this.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from lightrft.config.environment import USUAL_SECONDS
from lightrft.config.sandbox import SandboxConfig
from lightrft.environments.base import Observation, ToolError
from lightrft.environments.python import told
from lightrft.environments.repositories import NAME, Repository, of_commit, of_folder
from lightrft.environments.tools import Calls, Tools
from lightrft.sandbox.suite import judged, paths_of, restored, with_pytest
from lightrft.utils.patches import patched, touched
from lightrft.utils.paths import expanded
from lightrft.workers.boxes import USUAL, box_of

MOST_NAMES = 100
"""Names of files that the policy is told at first."""
LONGEST_NAME = 200
IN_FOLDER = "import sys\nsys.path += {paths!r}\nsys.dont_write_bytecode = True"


class Repair(Tools):
    """An environment with the tools `run` and `edit`; the response ends with a turn that calls none, and its reward is 1 if all tests of
    the record pass then, else 0."""

    def __init__(
        self,
        repositories: str,
        packages: str = "",
        calls: Calls = "json",
        sandbox: SandboxConfig = USUAL,
        seconds: float = USUAL_SECONDS,
    ) -> None:
        """repositories: the folder with one for each record, by its id: a folder of files, or a git repository called OWNER__NAME, which
        is read at the record's commit. packages: a folder with what the repositories import, besides pytest. ValueError for a folder that
        is not there, SandboxError without a box that has a folder to write in."""
        super().__init__([], calls, sandbox, seconds)
        self._repositories = _folder("repositories", repositories)
        self._packages = [str(_folder("packages", packages))] if packages else []
        self._box = with_pytest(box_of(sandbox), self._packages)
        self._base = Repository({}, {})
        self._files: dict[str, bytes] = {}
        self._gold: dict[str, bytes] = {}
        self._target: Mapping[str, Any] = {}
        self.add(self.run)
        self.add(self.edit)

    def reset(self, *, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:  # type: ignore[override]
        """The names of the files. ValueError for a record without tests, where its repository is not there or too large, and for a patch
        of tests that does not fit it."""
        self._target = options["target"]
        if not isinstance(self._target, Mapping) or not self._target.get("tests"):
            raise ValueError(
                f"{options['id']}: the target holds no tests of a repository; see tasks.format=swebench."
            )
        self._base = repository_of(self._repositories, self._target)
        self._files, self._gold = dict(self._base.files), gold_files(self._base, self._target)
        self._check_size(self._base.files | self._gold)
        names = sorted([*self._base.files, *self._base.links])
        more = [f"... and {len(names) - MOST_NAMES} more"] if len(names) > MOST_NAMES else []
        return "\n".join(["Files of the repository:", *names[:MOST_NAMES], *more]), {}

    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Answers the calls of a turn; one without any ends the episode, and has the reward of it."""
        said, _, over, cut, info = super().step(action)
        return said, self.final_reward() if over else 0.0, over, cut, info

    def final_reward(self) -> float:
        """1 if the repository as it stands passes all tests of the record, in a box of its own, else 0."""
        once = restored(self._base.files, self._files, self._gold)
        # Again with the links, so that what steers the tests through one is as it was, too.
        files = restored(self._base.whole(self._base.files | self._gold), self._base.whole(once), {})
        return float(judged(self._box, files, self._target["tests"], len(self._packages)).share == 1.0)

    def run(self, code: str) -> str:
        """Runs a Python program in the folder of the repository and returns what it prints, e.g. open('a.py').read(), or
        pytest.main(['-q']). Files that it writes are gone when it ends; use edit to change them."""
        path = [*paths_of(len(self._packages)), "/box"]
        files = self._base.whole(self._files)
        return told(self._box.run(code, files=files, before=IN_FOLDER.format(paths=path)))

    def edit(self, path: str, old: str, new: str) -> str:
        """Replaces the text `old`, which must stand just once in the file, with `new`. With an empty `old` the file is written anew."""
        name = str(PurePosixPath(path))
        if not _is_name(name):
            raise ToolError(f"{path[:200]!r} is no file of the repository")
        name = self._base.place(name)
        if not _is_name(name) or name in self._base.links:
            raise ToolError(f"{path} is a link that leads out of the repository, or nowhere")
        if any(name.startswith(f"{other}/") or other.startswith(f"{name}/") for other in self._files):
            raise ToolError(f"{path} is a folder, or lies below a file")
        before, wanted = self._files.get(name, b""), _bytes(old)
        if wanted and name not in self._files:
            raise ToolError(f"there is no file {path}")
        if wanted and before.count(wanted) != 1:
            raise ToolError(f"the old text stands {before.count(wanted)} times in {path}; it must stand once")
        after = before.replace(wanted, _bytes(new)) if wanted else _bytes(new)
        try:
            self._check_size(self._files | {name: after})
        except ValueError as error:
            raise ToolError(str(error)) from None
        self._files[name] = after
        return f"{path} is changed" if name in self._base.files else f"{path} is written"

    def _check_size(self, files: Mapping[str, bytes]) -> None:
        whole = self._base.whole(files)
        used = sum(map(len, whole.values())) + 4096 * len(whole)
        if used > self._box.limits.disk_mib << 19:
            raise ValueError(
                f"the repository takes {used >> 20} MiB, more than half of sandbox.disk_mib={self._box.limits.disk_mib}."
            )


def repository_of(repositories: Path, target: Mapping[str, Any]) -> Repository:
    """A record's repository, before anything is mended. ValueError where it is not there."""
    names = target["instance_id"], target["repo"].replace("/", "__")
    for name in names:
        if not NAME.fullmatch(name):
            raise ValueError(f"{name!r:.80} is no name of a repository.")
    place, clone = (repositories / name for name in names)
    if place.is_dir():
        return of_folder(place)
    if not clone.is_dir():
        raise ValueError(
            f"environment.options repositories={repositories} has neither the folder {place.name} nor the git repository {clone.name}."
        )
    return of_commit(clone, target["base_commit"])


def gold_files(base: Repository, target: Mapping[str, Any]) -> dict[str, bytes]:
    """The files of the tests as the record has them. ValueError where its patch of tests does not fit the repository, or where a file of
    a test is not there, so that nobody could pass it."""
    after = patched(base.files, target["test_patch"])
    whole = base.whole(after)
    files = {test.partition("::")[0] for test in target["tests"]}
    if missing := sorted(name for name in files if name not in whole):
        raise ValueError(
            f"{missing[0]} holds a test of the record, and is neither in the repository nor in its test_patch."
        )
    names = touched(target["test_patch"]) | {base.place(name) for name in files}
    return {name: after[name] for name in names if name in after}


def _folder(option: str, place: str) -> Path:
    found = expanded(place, f"environment.options {option}")
    if not found.is_dir():
        raise ValueError(f"environment.options {option}={place}: there is no such folder.")
    return found.resolve()


def _bytes(text: str) -> bytes:
    return text.encode("utf-8", "surrogatepass")


def _is_name(name: str) -> bool:
    """Whether a path lies in the repository and any box can write it."""
    parts = PurePosixPath(name).parts
    fits = len(_bytes(name)) <= LONGEST_NAME and not re.search("[\0\ud800-\udfff]", name)
    return fits and bool(parts) and not name.startswith("/") and ".." not in parts
