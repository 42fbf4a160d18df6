"""Unified diffs in memory do what the program `git apply` does."""

import random
import subprocess

import pytest

from lightrft.utils.patches import PatchError, patched, touched

FILES = {"a.py": b"one\ntwo\nthree\nfour\nfive\n", "b/c.txt": b"no newline at the end", "gone": b"x\n"}


def git(folder, *words):
    return subprocess.run(["git", "-c", "user.name=x", "-c", "user.email=x", *words], cwd=folder, capture_output=True, check=True).stdout  # fmt: skip


def written(files, folder):
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def diff(before, after, folder):
    """What git makes of two states."""
    git(folder, "init", "-q")
    written(before, folder)
    git(folder, "add", "-A")
    git(folder, "commit", "-qm", "before")
    for name in before.keys() - after.keys():
        (folder / name).unlink()
    written(after, folder)
    git(folder, "add", "-A")
    return git(folder, "diff", "-M", "--cached").decode("utf-8", "surrogateescape")


def test_a_patch_of_git_is_applied(tmp_path):
    after = {
        "a.py": b"one\n2\nthree\nfour\nfive\nsix",
        "b/c.txt": b"a newline\n",
        "new/d": b"\xff\n",
        "e": b"\n\nend\n",
        "new/__init__.py": b"",
    }
    patch = diff(FILES, after, tmp_path)
    assert patched(FILES, patch) == after
    assert touched(patch) == {"a.py", "b/c.txt", "gone", "new/d", "new/__init__.py", "e"}


def test_a_renamed_file_is_found(tmp_path):
    before = {"a.py": b"".join(b"%d\n" % n for n in range(30))}
    after = {"z.py": before["a.py"].replace(b"7\n", b"seven\n", 1)}
    patch = diff(before, after, tmp_path)
    assert "rename" in patch
    assert patched(before, patch) == after


@pytest.mark.parametrize("seed", range(6))
def test_random_edits_are_applied_as_git_diffs_them(seed, tmp_path):
    rng = random.Random(seed)
    lines = [rng.choice("abc") + "\n" for _ in range(60)]
    after = list(lines)
    for _ in range(rng.randint(1, 12)):
        place = rng.randrange(len(after) + 1)
        after[place : place + rng.randint(0, 3)] = [
            rng.choice("abcd") + "\n" for _ in range(rng.randint(0, 3))
        ]
    before, wanted = ({"f": "".join(text).encode()} for text in (lines, after))
    assert patched(before, diff(before, wanted, tmp_path)) == wanted


def test_lines_that_moved_are_found():
    patch = "--- a/a.py\n+++ b/a.py\n@@ -2,1 +2,1 @@\n-four\n+4\n"
    assert patched(FILES, patch)["a.py"] == b"one\ntwo\nthree\n4\nfive\n"


@pytest.mark.parametrize(
    ("patch", "told"),
    [
        ("a sentence", "no unified diff"),
        ("--- a/a.py\n+++ b/a.py\n@@ -1,1 +1,1 @@\n-nine\n+9\n", "a.py has not the lines that the patch expects at line 1"),
        ("--- a/z.py\n+++ b/z.py\n@@ -1,1 +1,1 @@\n-nine\n+9\n", "z.py is not there"),
        ("--- /dev/null\n+++ b/a.py\n@@ -0,0 +1,1 @@\n+9\n", "a.py is there already"),
        ("--- a/a.py\n+++ b/a.py\n@@ -1,2 +1,1 @@\n-one\n", "is no line of it"),
        ("@@ -1,2 +1,1 @@\n-one\n", "belongs to no file"),
        ("diff --git a/x b/x\nBinary files a/x and b/x differ\n", "no text"),
    ],
)  # fmt: skip
def test_a_patch_that_does_not_fit_is_told(patch, told):
    with pytest.raises(PatchError, match=told):
        patched(FILES, patch)


def test_an_empty_patch_changes_nothing():
    assert patched(FILES, "") == FILES
