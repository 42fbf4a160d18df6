"""What a resume begins with."""

import pytest

from lightrft.build.process import last_state
from lightrft.config import CheckpointConfig, Config, SFTConfig
from lightrft.parallel.world import World
from lightrft.runs.layout import RunFolder
from lightrft.strategy.checkpoint import Checkpoints


@pytest.mark.parametrize(("config", "command"), [(Config(), "train"), (SFTConfig(steps=2), "sft")])
def test_a_finished_run_without_checkpoints_is_not_begun_again(tmp_path, config, command):
    """One whose checkpoints were deleted for their size."""
    none = Checkpoints(tmp_path / "checkpoints", CheckpointConfig(), World())
    assert last_state(tmp_path, none, config, 2) is None, "stopped before its first checkpoint"
    RunFolder(tmp_path).write_summary({"steps": 2})
    with pytest.raises(ValueError, match="has finished and holds no checkpoint") as told:
        last_state(tmp_path, none, config, 2)
    assert f"`lightrft {command} {tmp_path / 'config.yaml'} --model.path {tmp_path / 'model'}" in str(
        told.value
    )
