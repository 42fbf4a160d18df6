"""Rows that are read as they come: which prompts are drawn, in what order, and from where a run goes on."""

import json
from types import SimpleNamespace

import pytest

from lightrft.config import Config, TaskConfig, layers
from lightrft.datasets import sources
from lightrft.datasets.loader import PromptLoader
from lightrft.datasets.sources import streamed
from lightrft.datasets.stream import StreamLoader
from lightrft.tasks.stream import FileStream
from lightrft.types import Prompt


class Data:
    """Numbered rows, of which how many were read is known."""

    def __init__(self, size, lacking=()):
        self.size, self.lacking, self.read = size, set(lacking), 0

    def rows(self, start):
        for number in range(start, self.size):
            self.read += 1
            yield f"r:{number}", {"n": number}

    def made(self, rows):
        return [
            Prompt(id=f"a/{where}", token_ids=[row["n"]], messages=[], target=row["n"], source="a")
            for where, row in rows
            if row["n"] not in self.lacking
        ]


def loader(data, block=5, seed=0, **world):
    return StreamLoader("a", data.rows, data.made, block, seed, **world)


def numbers(prompts):
    return [p.token_ids[0] for p in prompts]


def test_each_pass_draws_every_row_once_block_by_block_and_each_time_in_another_order():
    drawn = numbers(loader(Data(13)).draw(26))
    for epoch in (drawn[:13], drawn[13:]):
        assert [sorted(epoch[a:b]) for a, b in ((0, 5), (5, 10), (10, 13))] == [
            [0, 1, 2, 3, 4],
            [5, 6, 7, 8, 9],
            [10, 11, 12],
        ]
    assert drawn[:13] != drawn[13:]
    assert drawn[:13] != sorted(drawn[:13])
    assert drawn == numbers(loader(Data(13)).draw(26))
    assert drawn != numbers(loader(Data(13), seed=1).draw(26))


def test_no_more_rows_are_read_than_the_block_that_is_drawn_from():
    data = Data(10**9)
    stream = loader(data)
    assert data.read == 5
    stream.draw(6)
    assert data.read == 10


@pytest.mark.parametrize("cut", range(0, 31, 3))
def test_it_goes_on_exactly_from_any_place(cut):
    whole = loader(Data(13, lacking=[0, 6, 12]))
    expected = numbers(whole.draw(40))
    first = loader(Data(13, lacking=[0, 6, 12]))
    assert numbers(first.draw(cut)) == expected[:cut]
    later = loader(Data(13, lacking=[0, 6, 12]))
    later.load(json.loads(json.dumps(first.state())))
    assert later.position == cut
    assert numbers(later.draw(40 - cut)) == expected[cut:]
    assert later.state() == whole.state()


def test_several_ranks_take_turns():
    alone = numbers(loader(Data(13)).draw(30))
    ranks = [numbers(loader(Data(13), rank=rank, size=3).draw(10)) for rank in range(3)]
    assert [n for turn in zip(*ranks, strict=True) for n in turn] == alone


def test_a_block_of_which_nothing_is_left_is_passed_over_and_a_source_without_any_is_refused():
    assert sorted(numbers(loader(Data(13, lacking=range(10))).draw(3))) == [10, 11, 12]
    for data in (Data(13, lacking=range(13)), Data(0)):
        with pytest.raises(ValueError, match="'a' has no row of which a prompt could be made"):
            loader(data)


def test_what_does_not_fit_the_checkpoint_is_named():
    state = loader(Data(13)).state()
    with pytest.raises(ValueError, match="Set seed=0"):
        loader(Data(13), seed=1).load(state)
    with pytest.raises(ValueError, match="tasks.stream_block=5, now it is 'a' with 4"):
        loader(Data(13), block=4).load(state)
    with pytest.raises(
        ValueError, match=r"changed since the checkpoint, in its rows from 0 on: prompts was 5, is 4"
    ):
        loader(Data(13, lacking=[3])).load(state)
    gone = loader(Data(13))
    gone.draw(12)
    with pytest.raises(ValueError, match="in its rows from 10 on: row was 10, is 0"):
        loader(Data(9)).load(gone.state())
    all_in_memory = PromptLoader([(Data(3).made(Data(3).rows(0)), 1.0)], seed=0)
    with pytest.raises(ValueError, match=r"Set tasks.stream_block=0"):
        loader(Data(13)).load(all_in_memory.state())
    with pytest.raises(ValueError, match=r"Set tasks.stream_block=5"):
        all_in_memory.load(state)


def test_a_prompt_that_waited_gets_back_what_its_row_holds_wherever_that_is():
    data = Data(10**6)
    stream = loader(data)
    stream.draw(12)
    read, asked = data.read, (7, 11, 1, 30, 2, 7)
    bare = [
        Prompt(id=f"a/r:{number}", token_ids=[number], messages=[], target="text", source="a")
        for number in asked
    ]
    strange = Prompt(id="b/r:1", token_ids=[1], messages=[], target="text", source="b")
    *found, same = stream.completed([*bare, strange])
    assert [p.target for p in found] == list(asked)
    assert same is strange
    assert data.read - read == 31, "one pass, no further than the last of them"


def test_a_block_of_which_nothing_can_be_opened_takes_from_another_one_and_moves_nothing():
    """On one rank alone, that draws from it: the others walk the same sequence."""
    broken = range(5, 10)
    ranks = [
        loader(Data(13), rank=rank, size=2, open=lambda p: None if p.token_ids[0] in broken else p)
        for rank in (0, 1)
    ]
    drawn = [numbers(one.draw(10)) for one in ranks]
    assert not set(broken) & {n for some in drawn for n in some}
    assert ranks[0].state() == ranks[1].state()
    last = loader(Data(13), open=lambda p: p if p.token_ids[0] < 5 else None)
    assert max(numbers(last.draw(13))) < 5, "the last block, behind which the data begins again"
    with pytest.raises(ValueError, match="no prompt of 'a' has media that can be used"):
        loader(Data(13), open=lambda p: None).draw(1)


def test_a_row_of_the_hub_that_does_not_come_is_named(monkeypatch):
    def rows(name, split, streaming):
        return SimpleNamespace(skip=lambda start: start)

    def cut(start):
        yield from ({"n": n} for n in range(start, 4))
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(sources, "_of_hub", rows)
    monkeypatch.setattr(sources, "stored", cut)
    monkeypatch.setattr(sources, "unreachable", lambda: None)
    found = streamed("owner/name", "train", 2)
    assert [where for where, _ in (next(found), next(found))] == [
        "owner/name/train[2]",
        "owner/name/train[3]",
    ]
    with pytest.raises(
        ValueError, match="no row 4 of the data set 'owner/name', split 'train': reset by peer"
    ):
        next(found)


def test_rows_of_a_file_and_of_the_hubs_form_are_passed_over_by_number(tmp_path):
    rows = [{"prompt": f"question {n}", "target": str(n)} for n in range(7)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    source = FileStream(TaskConfig(train={"file": 1.0}, train_file="rows.jsonl"), str(tmp_path))
    assert [where for where, _ in source.rows(5)] == ["rows.jsonl:6", "rows.jsonl:7"]
    record = source.records(list(source.rows(6)))[0]
    assert (record.id, record.target, record.columns) == ("file/rows.jsonl:7", "6", rows[6])
    found = list(streamed(str(tmp_path), "train", 5))
    assert found == [(f"{tmp_path}/train[{n}]", rows[n]) for n in (5, 6)]


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        (["--tasks.train", "tiny", "1"], "streams task `file` alone, and tasks.train has tiny"),
        (["--tasks.train", "file", "1", "--tasks.train-limit", "9"], "Set one of them to 0"),
        (["--tasks.train", "file", "1", "--rollout.rest-passes", "1"], "rollout.rest_passes=1 has no effect"),
        (
            ["--tasks.train", "file", "1", "--rollout.priority-floor", "0.5"],
            "rollout.priority_floor=0.5 has no",
        ),
        (["--tasks.train", "file", "1", "--tasks.stream-block", "-1"], "tasks.stream_block=-1"),
    ],
)
def test_settings_that_cannot_go_together_are_refused(flags, said):
    with pytest.raises(ValueError, match=said.replace("=-", "=-")):
        layers.load(["tiny", "--tasks.stream-block", "5", *flags], Config)
