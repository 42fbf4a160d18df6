"""Data sets of a hub, by its name and by hf:// addresses, read and streamed by the hub's own client over HTTP."""

import json
import os
import subprocess
import sys

import pytest

from tests.unit.datasets.hub import hub

ROWS = [{"prompt": f"question {n}", "target": str(n)} for n in range(40)]
FILES = {
    f"data/train-{part}.jsonl": "".join(
        json.dumps(row) + "\n" for row in ROWS[20 * part : 20 * part + 20]
    ).encode()
    for part in (0, 1)
}
READ = """
import json, sys
from lightrft.config import TaskConfig
from lightrft.datasets.stream import StreamLoader
from lightrft.tasks.stream import FileStream
from lightrft.testing import tiny_processor
from lightrft.datasets.deferred import deferred

place, processor = sys.argv[1], tiny_processor()
config = TaskConfig(train={"file": 1.0}, train_file=place, stream_block=16)
source = FileStream(config, "")
made = lambda rows: deferred(source.records(rows), processor, config)[0]
loader = lambda: StreamLoader("file", source.rows, made, 16, 0, open=lambda one: one, tokens=lambda one: [0])
whole = loader()
first = [one.id for one in whole.draw(21)]
state = json.loads(json.dumps(whole.state()))
rest = [one.id for one in whole.draw(25)]
again = loader()
again.load(state)
assert [one.id for one in again.draw(25)] == rest
print(json.dumps([first, rest]))
"""


def drawn(place, address, tmp_path):
    """The prompts that a stream draws in a process of its own; half-way it is left, and gone on with anew."""
    env = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", READ, place], env=env, capture_output=True, text=True, check=False, timeout=200
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize(
    ("place", "names"),
    [
        ("owner/name", [f"file/owner/name/train[{n}]" for n in range(40)]),
        (
            "hf://datasets/owner/name/data/*.jsonl",
            [f"file/train-{part}.jsonl:{n}" for part in (0, 1) for n in range(1, 21)],
        ),
    ],
)
def test_rows_of_a_hub_are_streamed_and_gone_on_with(tmp_path, place, names):
    with hub("owner/name", FILES) as (address, asked):
        first, rest = drawn(place, address, tmp_path)
    assert sorted(first[:16], key=names.index) == names[:16]
    assert set(first[16:]) <= set(names[16:32])
    assert sorted([*first, *rest][:40], key=names.index) == names
    assert any("/resolve/" in one for one in asked)
