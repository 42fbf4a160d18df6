import json
import logging
import os
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import lightrft
from lightrft.config import CheckpointConfig
from lightrft.parallel.world import World
from lightrft.strategy.checkpoint import Checkpoints


def checkpoints(run: Path, every_steps: int = 5, keep: int = 2) -> Checkpoints:
    return Checkpoints(
        run / "checkpoints", CheckpointConfig(every_steps=every_steps, keep_last=keep), World()
    )


def state(step: int, size: int = 1000) -> dict:
    return {"step": step, "weights": {"w": torch.full((size,), float(step))}, "rng": [step, (step,), None]}


def steps(run: Path) -> list[str]:
    return sorted(path.name for path in (run / "checkpoints").iterdir())


def flip_a_byte(file: Path) -> None:
    data = bytearray(file.read_bytes())
    data[len(data) // 2] ^= 1
    file.write_bytes(data)


def test_a_state_comes_back_as_it_was_saved(tmp_path):
    saved = checkpoints(tmp_path)
    path = saved.save(5, state(5))
    assert path == tmp_path / "checkpoints" / "step-000005"
    assert saved.latest() == path
    back = saved.load(path)
    assert back["rng"] == [5, (5,), None]
    assert torch.equal(back["weights"]["w"], torch.full((1000,), 5.0))


def test_a_run_without_checkpoints_has_no_latest(tmp_path):
    assert checkpoints(tmp_path).latest() is None
    assert list(tmp_path.iterdir()) == []


def test_the_meta_file_says_step_time_versions_and_sizes(tmp_path):
    path = checkpoints(tmp_path).save(5, state(5))
    meta = json.loads((path / "meta.json").read_text())
    assert meta["step"] == 5
    assert (
        meta["versions"]["torch"] == torch.__version__.split("+")[0]
        or meta["versions"]["torch"] == torch.__version__
    )
    assert meta["bytes"] == {"state.pt": (path / "state.pt").stat().st_size}
    assert meta["time"].endswith("+00:00")


def test_checkpoints_are_due_every_so_many_steps_and_never_with_zero(tmp_path):
    assert [n for n in range(12) if checkpoints(tmp_path, every_steps=5).due(n)] == [5, 10]
    assert not any(checkpoints(tmp_path, every_steps=0).due(n) for n in range(12))


def test_only_the_newest_are_kept(tmp_path):
    saved = checkpoints(tmp_path, keep=2)
    for n in (5, 10, 15, 20):
        saved.save(n, state(n))
    assert steps(tmp_path) == ["step-000015", "step-000020"]


def test_saving_a_step_again_replaces_it(tmp_path):
    saved = checkpoints(tmp_path)
    saved.save(5, state(5))
    path = saved.save(5, state(6))
    assert saved.load(path)["step"] == 6
    assert steps(tmp_path) == ["step-000005"]


def tensors(number: float) -> dict[str, dict[str, torch.Tensor]]:
    return {
        "actor": {
            "weights/a.b": torch.full((3, 4), number),
            "step": torch.tensor(number, dtype=torch.float64),
        },
        "critic": {"weights/a.b": torch.full((5,), -number, dtype=torch.bfloat16)},
    }


def test_tensors_of_models_come_back_into_whatever_is_given(tmp_path):
    saved = checkpoints(tmp_path)
    path = saved.save(5, state(5), tensors(2.5))
    models = saved.load(path)["models"]
    assert models["actor"].shapes() == {"weights/a.b": (3, 4), "step": ()}
    assert models["critic"].shapes() == {"weights/a.b": (5,)}
    found = {
        "weights/a.b": torch.zeros(3, 4, dtype=torch.float64),
        "step": torch.zeros((), dtype=torch.float64),
    }
    models["actor"].into(found)
    assert found["weights/a.b"].unique().tolist() == [2.5]
    assert float(found["step"]) == 2.5
    half = {"weights/a.b": torch.zeros(5)}
    models["critic"].into(half)
    assert half["weights/a.b"].tolist() == [-2.5] * 5
    assert all(file.suffix in (".json", ".pt", ".safetensors") for file in path.rglob("*") if file.is_file())


def test_what_is_written_in_the_background_is_what_was_there_when_it_was_saved(tmp_path):
    config = CheckpointConfig(keep_last=2, background=True)
    saved, models, plain = Checkpoints(tmp_path / "checkpoints", config, World()), tensors(1.0), state(5)
    path = saved.save(5, plain, models)
    models["actor"]["weights/a.b"].fill_(9.0)
    plain["weights"]["w"].fill_(9.0)
    plain["rng"].append("later")
    saved.wait()
    assert saved.latest() == path
    back = saved.load(path)
    found = {"weights/a.b": torch.zeros(3, 4)}
    back["models"]["actor"].into(found)
    assert found["weights/a.b"].unique().tolist() == [1.0]
    assert back["weights"]["w"].unique().tolist() == [5.0]
    assert back["rng"] == [5, (5,), None]


def test_an_error_in_the_background_is_told_by_the_next_save(small_disk):
    saved = Checkpoints(small_disk / "checkpoints", CheckpointConfig(keep_last=2, background=True), World())
    saved.save(5, state(5))
    saved.save(10, state(10), {"actor": {"w": torch.zeros(800_000)}})
    with pytest.raises(RuntimeError, match="the disk is full.*checkpoint if there is one"):
        saved.save(15, state(15))
    assert steps(small_disk) == ["step-000005"]
    saved.save(20, state(20))
    saved.wait()
    assert steps(small_disk) == ["step-000005", "step-000020"]


def shard(path: Path) -> Path:
    return next((path / "tensors").iterdir())


@pytest.mark.parametrize(
    ("harm", "complaint"),
    [
        (lambda path: flip_a_byte(path / "state.pt"), "CRC-32"),
        (lambda path: os.truncate(path / "state.pt", 100), "has 100 bytes instead of"),
        (lambda path: (path / "state.pt").unlink(), "state.pt is missing"),
        (lambda path: flip_a_byte(shard(path)), "CRC-32"),
        (lambda path: os.truncate(shard(path), 100), "has 100 bytes instead of"),
        (lambda path: shard(path).unlink(), "safetensors is missing"),
        (lambda path: (path / "meta.json").unlink(), "meta.json cannot be read"),
        (lambda path: (path / "meta.json").write_text('{"step": 1'), "meta.json cannot be read"),
        (lambda path: (path / "meta.json").write_text("[]"), "meta.json cannot be read"),
    ],
    ids=[
        "flipped bit",
        "truncated",
        "no state",
        "bit in a shard",
        "torn shard",
        "no shard",
        "no meta",
        "torn meta",
        "other meta",
    ],
)
def test_a_corrupt_newest_is_passed_over_with_a_warning(tmp_path, caplog, harm, complaint):
    saved = checkpoints(tmp_path)
    before, last = (saved.save(n, state(n), tensors(n)) for n in (5, 10))
    harm(last)
    with caplog.at_level(logging.WARNING):
        assert saved.latest() == before
    assert complaint in caplog.text
    assert str(last) in caplog.text


def test_a_run_that_went_on_from_an_earlier_step_removes_the_later_ones(tmp_path):
    saved = checkpoints(tmp_path)
    saved.save(5, state(5))
    flip_a_byte(saved.save(10, state(10)) / "state.pt")
    saved.save(7, state(7))
    assert steps(tmp_path) == ["step-000005", "step-000007"]


def test_what_killed_runs_left_is_cleared_away(tmp_path):
    saved = checkpoints(tmp_path)
    saved.save(5, state(5))
    (tmp_path / "checkpoints" / ".tmp-step-000010-1").mkdir()
    saved.latest()
    assert steps(tmp_path) == ["step-000005"]


def test_a_folder_that_is_no_checkpoint_is_refused_by_name(tmp_path):
    with pytest.raises(ValueError, match="is not a checkpoint"):
        checkpoints(tmp_path).load(tmp_path)


def test_a_state_that_cannot_be_saved_leaves_the_last_checkpoint(tmp_path):
    saved = checkpoints(tmp_path)
    path = saved.save(5, state(5))
    with pytest.raises(ValueError, match=r"state\['lock'\]"):
        saved.save(10, {"lock": object()})
    assert saved.latest() == path
    assert steps(tmp_path) == ["step-000005"]


def test_keeping_no_checkpoint_at_all_is_refused():
    with pytest.raises(ValueError, match=r"checkpoint.keep_last=0"):
        CheckpointConfig(keep_last=0)


def test_a_file_size_limit_gives_a_clear_error_and_spares_the_last_checkpoint(tmp_path):
    saved = checkpoints(tmp_path)
    path = saved.save(5, state(5))
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, before[1]))
    try:
        with pytest.raises(
            RuntimeError, match="grew over the limit.*last complete checkpoint if there is one"
        ):
            saved.save(10, state(10, size=1_000_000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert saved.load(saved.latest())["step"] == 5
    assert steps(tmp_path) == [path.name]


@pytest.fixture
def small_disk(tmp_path):
    """A disk of two MiB."""
    if os.geteuid() != 0:
        pytest.skip("only root may mount a small disk")
    place = tmp_path / "disk"
    place.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", place], capture_output=True, text=True
    )
    if mounted.returncode:
        pytest.skip(f"no small disk could be mounted: {mounted.stderr.strip()}")
    yield place
    subprocess.run(["umount", place], check=True)


def test_a_full_disk_gives_a_clear_error_and_spares_the_last_checkpoint(small_disk):
    saved = checkpoints(small_disk)
    saved.save(5, state(5, size=200_000))
    with pytest.raises(
        RuntimeError,
        match=r"cannot write in .*checkpoints: the disk is full .*MiB free.*checkpoint if there is one",
    ):
        saved.save(10, state(10, size=400_000))
    with pytest.raises(
        RuntimeError, match=r"cannot write in .*the disk is full .*MiB free.*checkpoint if there is one"
    ):
        saved.save(10, state(10), {"actor": {"w": torch.zeros(400_000)}})
    assert steps(small_disk) == ["step-000005"]
    assert saved.load(saved.latest())["step"] == 5
    saved.save(10, state(10, size=100_000))
    assert steps(small_disk) == ["step-000005", "step-000010"]


def test_a_folder_without_the_right_to_write_gives_a_clear_error(tmp_path):
    saved = checkpoints(tmp_path)
    path = saved.save(5, state(5))
    tmp_path.chmod(0o755)
    (tmp_path / "checkpoints").chmod(0o555)
    was_root = os.geteuid() == 0
    if was_root:  # whom no permission stops
        os.seteuid(65534)
    try:
        with pytest.raises(RuntimeError, match="permission denied.*--run.*checkpoint if there is one"):
            saved.save(10, state(10))
    finally:
        if was_root:
            os.seteuid(0)
        (tmp_path / "checkpoints").chmod(0o755)
    assert saved.latest() == path


KILLED_AGAIN_AND_AGAIN = """
import os, random, signal, sys, time
from pathlib import Path
import torch
from lightrft.config import CheckpointConfig
from lightrft.strategy.checkpoint import Checkpoints
from lightrft.parallel.world import World

run, draw = Path(sys.argv[1]), random.Random(0)
saved = Checkpoints(run / "checkpoints", CheckpointConfig(keep_last=2), World())
tensors = [torch.full((500_000,), float(n)) for n in range(4)]

def save_forever(step):
    while True:
        step += 1
        saved.save(step // 2, {"step": step // 2, "w": tensors[step // 2 % 4]})   # every step twice: new and replaced

start = time.perf_counter()
saved.save(1, {"step": 1, "w": tensors[1]})
one_save = time.perf_counter() - start
reached, interrupted = 1, 0
for _ in range(12):
    child = os.fork()
    if child == 0:
        save_forever(2 * reached + 1)
    time.sleep(draw.uniform(0, min(4 * one_save, 0.2)))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    interrupted += any(p.name.startswith(".") for p in saved.folder.iterdir())
    path = saved.latest()
    state = saved.load(path)
    assert path.name == f"step-{state['step']:06d}" and state["step"] >= reached, (path, state["step"], reached)
    assert torch.equal(state["w"], tensors[state["step"] % 4])
    assert not [p for p in saved.folder.iterdir() if p.name.startswith(".")]
    reached = state["step"]
print(reached, interrupted)
"""


def test_a_kill_at_any_moment_leaves_the_last_checkpoint_loadable(tmp_path):
    environment = {**os.environ, "PYTHONPATH": str(Path(lightrft.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-c", KILLED_AGAIN_AND_AGAIN, tmp_path],
        capture_output=True,
        text=True,
        env=environment,
    )
    assert done.returncode == 0, done.stderr
    assert "Taking the one before" not in done.stderr
    reached, interrupted = map(int, done.stdout.split())
    assert reached > 1
    assert interrupted > 2
