"""The frame of a run: step after step until the end, saved whenever it is left."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

from lightrft.config import EvaluateConfig, HeldOutConfig
from lightrft.console.progress import Progress
from lightrft.models.export import write_folder
from lightrft.models.processor import Processor
from lightrft.parallel.status import STATUS
from lightrft.parallel.world import World
from lightrft.strategy.base import Trainable
from lightrft.strategy.checkpoint import Checkpoints
from lightrft.utils.atomic import folder
from lightrft.utils.interrupt import Interrupt, Stopped


class Stepwise(Protocol):
    """A trainer as `take_steps` sees it."""

    run: Path
    world: World
    progress: Progress
    checkpoints: Checkpoints
    interrupt: Interrupt
    done: int
    whole: bool
    """Whether the weights are those of the last whole step, all of it written down: then they may be saved."""

    def examine(self) -> None:
        """Looks at held-out questions, if that is due and not done yet."""
        ...

    def train_step(self, step: int) -> None:
        """Takes one step, counted from 1."""
        ...

    def save(self) -> None:
        """Writes a checkpoint of the last whole step."""
        ...

    def save_model(self) -> None:
        """Writes the finished model."""
        ...


def take_steps(trainer: Stepwise, total: int, command: str) -> None:
    """Takes the steps that are left, and saves. Raises Stopped if asked to stop before the last; what was done is saved first.

    `command` is the one that goes on with the run: train, sft.
    """
    with trainer.interrupt:
        try:
            trainer.examine()
            for step in range(trainer.done + 1, total + 1):
                STATUS.set_step(step)
                trainer.train_step(step)
        except Stopped as signal:
            save_now(trainer)
            trainer.progress.note(
                f"stopped by {signal} after step {trainer.done}; go on with: lightrft {command} --resume {trainer.run}"
            )
            raise
        except Exception as error:
            # In the middle of an update, or where not all ranks fail together, the last checkpoint is the state to go on from.
            if trainer.whole and trainer.world.can_save(trainer.done, error):
                save_now(trainer)
            raise
    save_now(trainer)
    trainer.save_model()


def save_now(trainer: Stepwise) -> None:
    """Writes a checkpoint of the last whole step, and is done only when it is on the disk."""
    trainer.save()
    trainer.checkpoints.wait()


def write_model(model: Trainable, processor: Processor, target: Path, world: World) -> None:
    """The Hugging Face folder of a model's present weights; called by all ranks."""
    with model.adapters_merged():
        if world.is_first:
            with folder(target) as unfinished:
                write_folder(model.module, processor, model.weights(), unfinished)
        else:
            for _ in model.weights():  # takes part in gathering them
                pass
    world.barrier()


def examination(config: EvaluateConfig | HeldOutConfig, done: int, total: int) -> str | None:
    """The label of the held-out measurement due after `done` of `total` steps: before, step-000050, after; or None."""
    if done in (0, total):
        label, asked = ("after" if done else "before"), config.before_and_after
    else:
        label, asked = f"step-{done:06d}", config.every_steps > 0 and done % config.every_steps == 0
    return label if asked else None
