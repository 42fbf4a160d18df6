"""What people are told of a collective of the backend that failed."""

import json

import pytest
import torch.distributed as dist

from lightrft.parallel import explain, faults
from lightrft.parallel.explain import with_cause
from lightrft.parallel.faults import can_save
from lightrft.parallel.group import Group
from lightrft.parallel.status import STATUS
from lightrft.parallel.watch import Watch
from lightrft.runs.live import Status


@pytest.fixture
def first_of_two(monkeypatch):
    monkeypatch.setattr(STATUS, "watch", Watch(0, 2, dist.HashStore(), 600.0))
    for room in (explain, faults):
        monkeypatch.setattr(room, "PATIENCE_SECONDS", 0.0)


def broken(words):
    with pytest.raises(dist.DistBackendError) as caught:
        raise dist.DistBackendError(words)
    return caught.value


def test_a_rank_whose_failure_is_the_first_tells_it_once(first_of_two):
    error = broken("connection closed by peer")
    assert not can_save(Group(0, 2), 3, error), "tells the others"
    told = with_cause(error)
    assert with_cause(error) is told, "what took seconds to find out is kept"
    another = with_cause(broken("still closed"))
    for explained, why in ((told, "connection closed by peer"), (another, "still closed")):
        assert str(explained).count("rank 0 failed in a collective of the backend") == 1
        assert f": {why}. " in str(explained)


@pytest.mark.parametrize("words", [(), ("",), ("\n",)])
def test_an_error_without_words_is_told_by_its_kind(first_of_two, tmp_path, words):
    with pytest.raises(dist.DistBackendError), Status(tmp_path / "status.json", dict):
        raise dist.DistBackendError(*words)
    assert ": DistBackendError. " in json.loads((tmp_path / "status.json").read_text())["why"]


class WordlessError(Exception):
    def __str__(self):
        raise ValueError


def test_an_error_whose_text_cannot_be_made_stays_the_error_of_the_run(first_of_two, tmp_path):
    with pytest.raises(WordlessError), Status(tmp_path / "status.json", dict):
        raise WordlessError
    assert json.loads((tmp_path / "status.json").read_text())["why"] == "WordlessError"
