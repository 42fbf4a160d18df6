"""Data sets of a hub, by its name and by hf:// addresses, read and streamed by the hub's own client over HTTP."""

import json
import os
import subprocess
import sys

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

def loader(place):
    source = FileStream(TaskConfig(train={"file": 1.0}, train_file=place, stream_block=16), "")
    return StreamLoader("file", source.rows, source.records, 16, 0, tokens=lambda record: [])

for place in sys.argv[1:]:
    whole = loader(place)
    first = [one.id for one in whole.draw(21)]
    state = json.loads(json.dumps(whole.state()))
    rest = [one.id for one in whole.draw(25)]
    again = loader(place)
    again.load(state)
    print(json.dumps([first, rest, [one.id for one in again.draw(25)]]))
"""


NAMES = {
    "owner/name": [f"file/owner/name/train[{n}]" for n in range(40)],
    "hf://datasets/owner/name/data/*.jsonl": [
        f"file/train-{part}.jsonl:{n}" for part in (0, 1) for n in range(1, 21)
    ],
}


def test_rows_of_a_hub_are_streamed_and_gone_on_with(tmp_path):
    """In a process of its own, as the hub's client reads its address once; half-way the stream is left, and gone on with anew."""
    with hub("owner/name", FILES) as (address, asked):
        env = {**os.environ, "HF_ENDPOINT": address, "HF_HOME": str(tmp_path / "hf"), "HF_HUB_OFFLINE": "0", "HF_DATASETS_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}  # fmt: skip
        command = [sys.executable, "-c", READ, *NAMES]
        done = subprocess.run(command, env=env, capture_output=True, text=True, check=False, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    assert any("/resolve/" in one for one in asked)
    for line, names in zip(done.stdout.splitlines(), NAMES.values(), strict=True):
        first, rest, again = json.loads(line)
        assert sorted(first[:16], key=names.index) == names[:16]
        assert set(first[16:]) <= set(names[16:32])
        assert sorted([*first, *rest][:40], key=names.index) == names
        assert again == rest
