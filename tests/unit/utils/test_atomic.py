import errno
import os
import resource
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from lightrft.utils.atomic import explained, folder, recover, remove_folder, write_bytes, write_text

NOBODY = 65534


def names(place: Path) -> list[str]:
    return sorted(path.name for path in place.iterdir())


def test_a_text_replaces_the_one_before(tmp_path):
    write_text(tmp_path / "deep" / "a.txt", "one")
    write_text(tmp_path / "deep" / "a.txt", "zwei ü")
    assert (tmp_path / "deep" / "a.txt").read_bytes() == "zwei ü".encode()
    assert names(tmp_path / "deep") == ["a.txt"]


def test_a_failed_write_leaves_the_old_content_and_nothing_else(tmp_path):
    write_bytes(tmp_path / "a", b"old")
    with LimitedFileSize(1000), pytest.raises(RuntimeError, match="grew over the limit"):
        write_bytes(tmp_path / "a", bytes(5000))
    assert (tmp_path / "a").read_bytes() == b"old"
    assert names(tmp_path) == ["a"]


def test_a_folder_appears_only_when_it_is_complete(tmp_path):
    with folder(tmp_path / "new") as unfinished:
        (unfinished / "a").write_text("a")
        (unfinished / "deep").mkdir()
        (unfinished / "deep" / "b").write_text("b")
        assert unfinished.name.startswith(".tmp-")
        assert not (tmp_path / "new").exists()
    assert (tmp_path / "new" / "deep" / "b").read_text() == "b"
    assert names(tmp_path) == ["new"]


def test_a_folder_that_fails_vanishes_and_the_old_one_stays(tmp_path):
    with folder(tmp_path / "x") as unfinished:
        (unfinished / "a").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        stopped_while_filling(tmp_path / "x")
    assert (tmp_path / "x" / "a").read_text() == "old"
    assert names(tmp_path) == ["x"]


def stopped_while_filling(path: Path) -> None:
    with folder(path) as unfinished:
        (unfinished / "a").write_text("new")
        raise KeyboardInterrupt


def test_a_folder_replaces_one_with_other_files(tmp_path):
    with folder(tmp_path / "x") as unfinished:
        (unfinished / "old").write_text("old")
    with folder(tmp_path / "x") as unfinished:
        (unfinished / "new").write_text("new")
    assert names(tmp_path / "x") == ["new"]
    assert names(tmp_path) == ["x"]


def test_recovery_removes_what_is_unfinished_and_restores_what_was_about_to_be_replaced(tmp_path):
    (tmp_path / ".tmp-x-17").mkdir()
    (tmp_path / ".tmp-x-17" / "a").write_text("half")
    (tmp_path / ".tmp-y.json-17").write_text("half")
    (tmp_path / ".old-x").mkdir()
    (tmp_path / ".old-x" / "a").write_text("whole")
    recover(tmp_path)
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x" / "a").read_text() == "whole"


def test_recovery_drops_what_was_replaced_already(tmp_path):
    for name, text in ((".old-x", "before"), ("x", "after")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a").write_text(text)
    recover(tmp_path)
    assert names(tmp_path) == ["x"]
    assert (tmp_path / "x" / "a").read_text() == "after"


def test_recovery_of_a_folder_that_is_not_there_does_nothing(tmp_path):
    recover(tmp_path / "none")
    assert names(tmp_path) == []


def test_a_removed_folder_is_gone(tmp_path):
    with folder(tmp_path / "x") as unfinished:
        (unfinished / "a").write_text("a")
    remove_folder(tmp_path / "x")
    assert names(tmp_path) == []


def test_a_full_disk_is_explained_with_place_space_left_and_cure(tmp_path):
    with pytest.raises(RuntimeError) as caught, explained(tmp_path / "not" / "yet"):
        raise OSError(errno.ENOSPC, "No space left on device")
    message = str(caught.value)
    assert str(tmp_path / "not" / "yet") in message
    assert "disk is full" in message
    assert "MiB free" in message
    assert "checkpoint.keep_last" in message
    assert "last complete checkpoint if there is one" in message


def test_an_error_that_is_not_of_the_disk_passes_as_it_is(tmp_path):
    with pytest.raises(FileNotFoundError), explained(tmp_path):
        (tmp_path / "none").read_text()
    with pytest.raises(ZeroDivisionError), explained(tmp_path):
        _ = 1 / 0


def test_a_full_disk_is_recognised_in_the_words_of_safetensors(tmp_path):
    with (
        LimitedFileSize(1000),
        pytest.raises(RuntimeError, match="grew over the limit"),
        folder(tmp_path / "x") as unfinished,
    ):
        save_file({"w": torch.zeros(10_000)}, unfinished / "w.safetensors")
    assert names(tmp_path) == []


def test_a_folder_without_the_right_to_write_is_named_with_the_cure(tmp_path):
    closed = tmp_path / "closed"
    closed.mkdir(mode=0o555)
    with WithoutRights(tmp_path), pytest.raises(RuntimeError, match="permission denied.*--run") as caught:
        write_text(closed / "a", "a")
    assert str(closed) in str(caught.value)


class LimitedFileSize:
    """No file of this process may grow over `size` bytes."""

    def __init__(self, size: int) -> None:
        self.size = size

    def __enter__(self) -> None:
        self.before = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (self.size, self.before[1]))

    def __exit__(self, *error: object) -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, self.before)


class WithoutRights:
    """An ordinary user even where the tests run as root, whom no permission stops; `reachable` can be entered."""

    def __init__(self, reachable: Path) -> None:
        self.reachable = reachable

    def __enter__(self) -> None:
        if os.geteuid() == 0:
            self.reachable.chmod(0o755)
            os.seteuid(NOBODY)

    def __exit__(self, *error: object) -> None:
        if os.getuid() == 0:
            os.seteuid(0)
