"""From a Config to parts that work together; the only file that imports everything."""

from __future__ import annotations

import contextlib
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from rich.console import Console
from torch import nn
from transformers.utils.logging import disable_progress_bar

from lightrft.algorithms.algorithm import Algorithm, build
from lightrft.build.judges import add_judging_models, check_judging, held_whole, named
from lightrft.config import (
    ZERO,
    Config,
    LoraConfig,
    ModelConfig,
    RolloutConfig,
    SFTConfig,
    StrategyConfig,
    layers,
)
from lightrft.console.progress import Progress, report
from lightrft.datasets.loader import PromptLoader
from lightrft.datasets.prompts import Opener, prepare
from lightrft.engines.base import Engine, MakeEngine
from lightrft.engines.external import check_kinds
from lightrft.engines.lmdeploy import LmdeployEngine
from lightrft.engines.native import NativeEngine, native_engine
from lightrft.engines.sglang import SglangEngine
from lightrft.engines.vllm import VllmEngine
from lightrft.engines.vllm_serve import serve as serve_policy
from lightrft.engines.vllm_server import VllmServerEngine
from lightrft.media.parts import readable
from lightrft.models.export import write_folder
from lightrft.models.load import (
    full_weights,
    is_adapted,
    load_model,
    load_processor,
    without_weights,
)
from lightrft.models.processor import Processor
from lightrft.models.sequence import check_shared
from lightrft.models.source import CriticSource, Source
from lightrft.models.values import critic_config
from lightrft.parallel.world import World
from lightrft.rewards.base import RewardRunner
from lightrft.rewards.check import check_gold
from lightrft.rewards.vote import VOTES
from lightrft.runs.capsule import Capsules
from lightrft.runs.curves import draw_curves
from lightrft.runs.folder import check_backend, earlier, keep_settings, new_run
from lightrft.runs.metrics import Logger
from lightrft.strategy.base import Frozen, Strategy, Trainable
from lightrft.strategy.checkpoint import Checkpoints, problem
from lightrft.strategy.deepspeed import Zero
from lightrft.strategy.fsdp import Fsdp
from lightrft.strategy.in_memory import restore
from lightrft.strategy.load_weights import reader
from lightrft.strategy.memory import RESIDENCY, MemoryPlan, Phase, Resident
from lightrft.strategy.single import Single, WithoutAdapters
from lightrft.tasks.table import Task, load_task
from lightrft.trainer.buffer import RolloutBuffer
from lightrft.trainer.evaluate import EvalSet, Evaluator
from lightrft.trainer.rl import RLTrainer
from lightrft.trainer.scaler import RewardScaler
from lightrft.types import Prompt
from lightrft.utils.atomic import explained, folder, write_text
from lightrft.utils.device import device_bytes, pick_device, release_memory, reuse_host_memory
from lightrft.utils.imports import resolve
from lightrft.utils.interrupt import Interrupt
from lightrft.utils.seeding import restore_generators, seed_everything

log = logging.getLogger("lightrft")


STRATEGIES: dict[str, Callable[[StrategyConfig, torch.device], Strategy]] = {
    "single": Single,
    "fsdp": Fsdp,
    **dict.fromkeys(ZERO, Zero),
}
ENGINES: dict[str, MakeEngine] = {
    "native": native_engine,
    "vllm": VllmEngine,
    "vllm_server": VllmServerEngine,
    "sglang": SglangEngine,
    "lmdeploy": LmdeployEngine,
}
TRAINERS: dict[str, type[RLTrainer]] = {"rl": RLTrainer}


def train(config: Config, resume: Path | None = None) -> Path:
    """Runs or goes on with a training run and returns its folder. Errors in settings come before any weight loads.

    Raises Stopped, after saving, if SIGTERM or Ctrl-C came.
    """
    started = time.perf_counter()
    with (
        World.joined(pick_device(config.strategy.device), config.strategy.timeout_seconds) as world,
        claimed(config, resume, world, "train") as (run, again, terminal),
        contextlib.ExitStack() as stack,
    ):
        trainer = build_trainer(config, run, stack, started=started, resume=again)
        terminal.show = trainer.progress.note
        if again and world.is_first:
            keep_settings(run, config, trainer.done)
        trainer.train()
        if world.is_first:
            with explained(run):
                finish(trainer, stack)
    return run


@contextlib.contextmanager
def claimed(
    config: Config | SFTConfig, resume: Path | None, world: World, command: str
) -> Iterator[tuple[Path, bool, Terminal]]:
    """Inside, the run folder is in use. Gives the folder, whether to go on from its checkpoints, and its log's terminal."""
    check_backend(config, world.size)
    before = earlier(config, resume)
    run = before or resume
    if run is None:
        with world.independent():
            run = new_run(config, command) if world.is_first else None
        run = world.gather(run)[0]
        assert run is not None
    world.redirect_output(run)
    with logging_to(run / "log.txt" if world.is_first else world.output(run)) as terminal:
        yield run, before is not None, terminal


@dataclass(frozen=True)
class TaskData:
    """What is asked and how it is judged: tasks, their prompts, the rewards."""

    prompts: PromptLoader
    judge: RewardRunner
    eval_sets: list[EvalSet]
    eval_judge: RewardRunner

    @property
    def asked(self) -> Iterator[Prompt]:
        """All questions."""
        for prompts in (*self.prompts.sources, *(eval_set.prompts for eval_set in self.eval_sets)):
            yield from prompts


def build_trainer(
    config: Config, run: Path, stack: contextlib.ExitStack, *, started: float, resume: bool = False
) -> RLTrainer:
    """All parts of a training run. What needs no weights is built first, so that mistakes show at once."""
    prepare_process(config)
    world = World.current(config.strategy.sequence_parallel)
    device = pick_device(config.strategy.device)
    shared("rollout.prompts_per_step", config.rollout.prompts_per_step, world)
    refuse_capsules(config, world)
    algorithm = build(config.algorithm, resolve)
    trainer_class = resolve(TRAINERS, config.trainer, "trainer")
    make_engine = resolve(ENGINES, config.rollout.engine, "rollout engine")
    strategy = resolve(STRATEGIES, config.strategy.backend, "strategy backend")(config.strategy, device)
    processor = load_processor(config.model, config.media)
    check_teacher(config, processor)
    check_teams(config, algorithm)
    task_data = build_task_data(config, processor, world)
    stack.enter_context(task_data.judge)
    stack.enter_context(task_data.eval_judge)
    check_kinds(config.rollout.engine, task_data.asked, processor.media, device)
    scaler, buffer = build_scaler(config, task_data.judge, world), RolloutBuffer(config.replay, world.size)
    checkpoints = Checkpoints(run, config.checkpoint, world)
    state = last_state(checkpoints) if resume else None

    actor = strategy.trainable(Source(config.model), config.optimizer, actor_updates(config))
    critic = build_critic(config, algorithm, strategy)
    reference = build_reference(config, algorithm, actor, strategy)
    teacher = build_teacher(config, algorithm, strategy)
    sampler = engine_module(config, strategy, actor)
    engine = make_engine(sampler, processor, config.rollout)
    judges = [task_data.judge, task_data.eval_judge]
    judging = add_judging_models(config, judges, engine, processor, device)
    owners = {"actor": actor, "critic": critic, "reference": reference, "teacher": teacher}
    memory_plan = build_memory_plan(owners, engine, judging, device)
    logger = (
        Logger(run, state["done"] if state else -1, tensorboard=config.log.tensorboard)
        if world.is_first
        else None
    )
    if logger is not None:
        stack.enter_context(logger)
    progress = Progress(config, config.steps, state["done"] if state else 0, run=run, show=world.is_first)
    evaluator = build_evaluator(config, task_data, processor, run / "evaluation", world)
    trainer = trainer_class(
        config=config,
        run=run,
        world=world,
        device=device,
        memory_plan=memory_plan,
        actor=actor,
        critic=critic,
        reference=reference,
        teacher=teacher,
        engine=engine,
        processor=processor,
        prompts=task_data.prompts,
        judge=task_data.judge,
        scaler=scaler,
        buffer=buffer,
        algorithm=algorithm,
        evaluator=evaluator,
        checkpoints=checkpoints,
        capsules=Capsules(run, config.log),
        logger=logger,
        progress=progress,
        started=started,
        interrupt=Interrupt(world.max),
    )
    if state is not None:
        trainer.load(state)
    if world.is_first:
        progress.console.print(memory_plan.table())
    stack.enter_context(progress)
    return trainer


def shared(option: str, number: int, world: World) -> None:
    """ValueError if the ranks cannot all have the same share of what an option counts."""
    if number % world.size:
        raise ValueError(
            f"{option}={number} cannot be shared by {world.size} processes. Set it to a multiple of {world.size}."
        )


def refuse_capsules(config: Config, world: World) -> None:
    """ValueError if steps are to be captured that several processes take."""
    asked = {"log.capture_steps": config.log.capture_steps, "log.capture_spikes": config.log.capture_spikes}
    for option, value in asked.items():
        if value and world.size > 1:
            raise ValueError(
                f"{option}={value}: a capsule holds a step of one process, and this run has {world.size}. Leave it out, or "
                "capture the step in a run of one process from the same checkpoint."
            )


def export(config: Config | SFTConfig, run: Path, target: Path, step: int | None, file_gb: float) -> int:
    """Makes a Hugging Face folder of the model in a checkpoint of any backend, on one process, a file's worth at a time."""
    checkpoints = Checkpoints(run, config.checkpoint, World())
    place = checkpoints.latest(clear=False) if step is None else checkpoints.folder / f"step-{step:06d}"
    if place is None:
        raise ValueError(f"{checkpoints.folder} holds no complete checkpoint.")
    wrong = None if step is None else problem(place)  # `latest` has looked already
    if wrong is not None:
        raise ValueError(f"checkpoint {place} cannot be used: {wrong}.")
    if target.exists() and any(target.iterdir()):
        raise ValueError(f"{target} is not empty. Name a new folder.")
    models = checkpoints.load(place)["models"]
    stored = models["actor"] if "actor" in models else models["model"]  # of train, of sft
    processor = load_processor(config.model, config.media)
    source = Source(config.model)
    module = source.empty()
    weights = full_weights(module, reader(module, source, stored), source.dtype)
    with explained(target.parent), folder(target) as unfinished:
        write_folder(module, processor, weights, unfinished, file_bytes=int(file_gb * 1e9))
    Console().print(f"{target}: the model after {place.name}", soft_wrap=True, markup=False, highlight=False)
    return 0


def prepare_process(config: Config | SFTConfig) -> None:
    """Seeds, threads and memory habits of this process."""
    if config.strategy.threads:
        torch.set_num_threads(config.strategy.threads)
    reuse_host_memory()
    disable_progress_bar()  # transformers' own bars would tear the live picture
    seed_everything(config.seed)


def build_task_data(config: Config, processor: Processor, world: World) -> TaskData:
    """Loads the tasks' data, both splits, and the rewards."""
    if not config.tasks.train:
        raise ValueError(
            "tasks.train is empty: nothing to learn. Name a task, e.g. --tasks.train gsm8k 1, or a layer such as demo."
        )
    tasks = {name: load_task(name) for name in config.tasks.train}
    judge = RewardRunner(training_rewards(config, tasks.values()), config.rewards)
    sources = [
        (prompts_of(config, task, "train", processor), config.tasks.train[name])
        for name, task in tasks.items()
    ]
    opener = Opener(processor, config.tasks)
    loader = PromptLoader(sources, config.seed, world.rank, world.size, open=opener)
    eval_sets, eval_judge = build_eval_sets(config, processor)
    check_judging(config, [judge, eval_judge])
    return TaskData(loader, judge, eval_sets, eval_judge)


def build_eval_sets(config: Config, processor: Processor) -> tuple[list[EvalSet], RewardRunner]:
    """The held-out questions, the same whatever the training settings, and their judge."""
    wanted = config.tasks.evaluate or config.tasks.train
    if not (config.evaluate.before_and_after or config.evaluate.every_steps):
        wanted = {}
    eval_sets = []
    for name, weight in wanted.items():
        task = load_task(name)
        prompts = prompts_of(config, task, "evaluate", processor)
        eval_sets.append(EvalSet(task, prompts[: config.evaluate.limit or None], weight))
    rewards = {eval_set.task.name: eval_rewards(config, eval_set.task) for eval_set in eval_sets}
    # Evaluation goes on when one answer cannot be judged: such answers are counted in the report, never scored.
    return eval_sets, RewardRunner(rewards, replace(config.rewards, on_failure="drop"))


def training_rewards(config: Config, tasks: Iterable[Task]) -> dict[str, dict[str, float]]:
    """Task -> its rewards in training, with the cost of a constraint among them, which adds nothing to the reward."""
    cost = {config.constraint.cost: 0.0} if config.constraint.cost else {}
    return {task.name: cost | task_rewards(config, task) for task in tasks}


def eval_rewards(config: Config, task: Task) -> dict[str, float]:
    """What a task's held-out answers are scored by: its own rewards, or those of training if it has none."""
    found = own_rewards(config, task) or task_rewards(config, task)
    votes = [name for name in found if name in VOTES]
    if votes:
        own = (
            "Set its own reward, e.g. --tasks.rewards math 1"
            if task.name == "file"
            else "Give the task rewards"
        )
        raise ValueError(
            f"task '{task.name}' would be evaluated by '{votes[0]}' of rewards.functions, which compares answers with each other and "
            f"not with what is right. {own}, or switch evaluation off with evaluate.before_and_after=false and "
            "evaluate.every_steps=0."
        )
    return found


def own_rewards(config: Config, task: Task) -> dict[str, float]:
    """The rewards that a task brings: for one's own rows those of tasks.rewards."""
    return dict(config.tasks.rewards if task.name == "file" else task.rewards)


def task_rewards(config: Config, task: Task) -> dict[str, float]:
    """The rewards of a task in training: rewards.functions, else its own."""
    chosen = dict(config.rewards.functions) or own_rewards(config, task)
    if not chosen:
        raise ValueError(
            f"task '{task.name}' has no reward of its own. Set rewards.functions, e.g. --rewards.functions rewards.py:mine 1"
        )
    return chosen


def prompts_of(config: Config, task: Task, split: Any, processor: Processor) -> list[Prompt]:
    """The prompts of one split of a task."""
    records = task.load(split, config.tasks, config.data, config.seed if split == "train" else 0)
    prompts, counts = prepare(records, processor, config.tasks)
    log.info("%s, %s: %d prompts, longest %d tokens", task.name, split, counts.kept, counts.longest)
    return prompts


def optimizer_steps(config: Config, steps: int) -> int:
    """Optimizer steps of so many training steps."""
    return steps * config.update.epochs * config.update.num_minibatches


def actor_updates(config: Config) -> int:
    """Optimizer steps of the actor in the whole run."""
    return optimizer_steps(config, config.steps - config.critic.warmup_steps)


def engine_module(config: Config, strategy: Strategy, actor: Trainable) -> nn.Module:
    """What the native engine samples with: the actor itself or, where that is in pieces, a model that is given its weights."""
    if not strategy.shards:
        return actor.module
    return Source(config.model, learns=False).empty(strategy.device)


def build_critic(config: Config, algorithm: Algorithm, strategy: Strategy) -> Trainable | None:
    """The model that predicts rewards, if the advantage asks for one."""
    if not algorithm.needs_critic:
        return None
    source = CriticSource(critic_config(config.model, config.critic.path))
    return strategy.trainable(source, config.critic.optimizer, optimizer_steps(config, config.steps))


def build_reference(
    config: Config, algorithm: Algorithm, actor: Trainable, strategy: Strategy
) -> Frozen | None:
    """The model the actor started from, if the algorithm compares with it."""
    if not algorithm.needs_reference:
        return None
    if is_adapted(actor.module):
        return WithoutAdapters(actor)
    return strategy.frozen(Source(config.model, learns=False))


def teacher_model(config: Config) -> ModelConfig:
    """The teacher as a model: held as the actor is, without adapters."""
    teacher = config.teacher
    return replace(config.model, path=teacher.path, revision=teacher.revision, lora=LoraConfig())


def check_teacher(config: Config, processor: Processor) -> None:
    """ValueError if the teacher does not speak the policy's tokens: its log-probs would be of other words."""
    if not config.teacher.path:
        return
    with named("teacher"):  # its chat template is not needed
        teacher = load_processor(replace(teacher_model(config), chat_template="plain"))
    mine, its = processor.tokenizer.get_vocab(), teacher.tokenizer.get_vocab()
    if mine != its:
        apart = len(mine.items() ^ its.items())
        raise ValueError(
            f"teacher.path={config.teacher.path}: {apart} tokens differ from those of model.path={config.model.path}, and a teacher "
            "judges token by token. Take a teacher with the same tokenizer, e.g. a larger model of the same family."
        )


def check_teams(config: Config, algorithm: Algorithm) -> None:
    """ValueError if the processes of strategy.sequence_parallel cannot compute one of the models together."""
    models = {"model.path": config.model}
    if algorithm.needs_critic and config.critic.path:
        models["critic.path"] = critic_config(config.model, config.critic.path)
    if algorithm.needs_teacher:
        models["teacher.path"] = teacher_model(config)
    check_team(config.strategy, models)


def check_team(strategy: StrategyConfig, models: Mapping[str, ModelConfig]) -> None:
    """ValueError if a team of strategy.sequence_parallel cannot compute one of these together: setting -> model it names."""
    if strategy.sequence_parallel > 1:
        shapes = {setting: without_weights(model).config for setting, model in models.items()}
        check_shared(strategy.sequence_parallel, shapes)


def build_teacher(config: Config, algorithm: Algorithm, strategy: Strategy) -> Frozen | None:
    """The model whose log-probs the policy follows, if there is one."""
    if not algorithm.needs_teacher:
        return None
    return strategy.frozen(Source(teacher_model(config), learns=False))


def build_scaler(config: Config, judge: RewardRunner, world: World) -> RewardScaler:
    """What becomes of rewards before they are learned from."""
    cost = judge.labels[config.constraint.cost] if config.constraint.cost else ""
    scale = {load_task(name).name: factor for name, factor in config.rewards.scale.items()}
    return RewardScaler(
        list(judge.weights), replace(config.rewards, scale=scale), config.constraint, cost, world
    )


def build_memory_plan(
    owners: Mapping[str, Trainable | Frozen | None],
    engine: Engine,
    judging: Mapping[str, Resident],
    device: torch.device,
) -> MemoryPlan:
    """Who is in device memory in which phase: the whole memory plan, by the table colocate.RESIDENCY."""
    memory_plan = MemoryPlan(lambda: device_bytes(device), lambda: release_memory(device))
    found: dict[str, Resident] = dict(judging)
    for owner, held in {**owners, "engine": engine}.items():
        found |= {
            f"{owner} {name}": part for name, part in (held.parts() if held is not None else {}).items()
        }
    samples_itself = isinstance(engine, NativeEngine) and "engine weights" not in found
    for name, part in found.items():
        shared = name in ("actor weights", "policy weights") and samples_itself
        memory_plan.add(
            name, part, *RESIDENCY.get(name, (Phase.ROLLOUT,)), *([Phase.ROLLOUT] if shared else [])
        )
    return memory_plan


def build_evaluator(
    config: Config, task_data: TaskData, processor: Processor, folder: Path, world: World
) -> Evaluator:
    """Asks the curriculum's held-out questions."""
    return Evaluator(
        eval_sets=task_data.eval_sets,
        rewards=task_data.eval_judge,
        processor=processor,
        config=config.evaluate,
        max_tokens=config.evaluate.max_tokens or config.rollout.max_tokens,
        stop=tuple(config.rollout.stop),
        seed=0,
        folder=folder,
        world=world,
        open=Opener(processor, config.tasks),
    )


def last_state(checkpoints: Checkpoints, command: str = "train") -> dict[str, Any] | None:
    """The state in the newest complete checkpoint; None for a run that was stopped before its first, to begin again."""
    found = checkpoints.latest()
    if found is not None:
        return checkpoints.load(found)
    if checkpoints.folder.exists() and any(checkpoints.folder.iterdir()):
        raise ValueError(
            f"no checkpoint in {checkpoints.folder} is complete, so there is nothing to go on from. Start again with "
            f"`lightrft {command} {checkpoints.run}/config.yaml`."
        )
    log.warning("the run was stopped before its first checkpoint and begins again")
    return None


def finish(trainer: RLTrainer, stack: contextlib.ExitStack) -> None:
    """Summary, picture and report of a finished run."""
    stack.close()  # the live picture ends, files are complete
    run = trainer.run
    summary = {
        "seconds": round(trainer.seconds, 1),
        "steps": trainer.done,
        "seed": trainer.config.seed,
        "model": trainer.config.model.path,
        "evaluation": evaluation_summary(run, trainer.evaluations),
    }
    write_text(run / "summary.json", json.dumps(summary, indent=2))
    draw_curves(run)
    report(summary, samples(run), run)


def evaluation_summary(run: Path, evaluations: Mapping[str, Mapping[str, float]]) -> dict[str, Any]:
    """Held-out scores before and after, with intervals where there is a single task."""
    result: dict[str, Any] = {}
    for label in ("before", "after"):
        if label not in evaluations:
            continue
        result[label] = evaluations[label]["mean"]
        estimates = json.loads((run / "evaluation" / f"{label}.json").read_text(encoding="utf-8"))
        result["questions"] = sum(e["questions"] for e in estimates.values())
        if len(estimates) == 1:
            score = next(iter(estimates.values()))["score"]
            result[f"{label}_interval"] = [score["low"], score["high"]]
        result[f"{label}_by_task"] = estimates
    return result


def samples(run: Path, most: int = 2) -> list[dict[str, Any]]:
    """Held-out questions whose answers changed the most for the better, before and after side by side."""
    files = [run / "evaluation" / f"{label}.jsonl" for label in ("before", "after")]
    if not all(file.is_file() for file in files):
        return []
    before, after = (
        [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()] for file in files
    )
    pairs = [
        (a, b)
        for a, b in zip(before, after, strict=True)
        if a["reward"] is not None and b["reward"] is not None
    ]
    pairs.sort(key=lambda pair: pair[0]["reward"] - pair[1]["reward"])
    return [
        {
            "question": readable(a["messages"][-1]["content"]),
            "before": a["response"],
            "after": b["response"],
            "before_reward": a["reward"],
            "after_reward": b["reward"],
        }
        for a, b in pairs[:most]
    ]


def evaluate(config: Config) -> dict[str, Any]:
    """Scores a model on tasks.evaluate, prints and saves it; returns the estimates by task."""
    device = pick_device(config.strategy.device)
    with World.joined(device, config.strategy.timeout_seconds) as world:
        folder = world.gather(evaluation_folder(config))[0]
        world.redirect_output(folder)
        return evaluate_in(config, folder, device, world)


def evaluation_folder(config: Config) -> Path:
    """Where an evaluation writes."""
    return Path(config.run or f"runs/evaluate-{time.strftime('%Y%m%d-%H%M%S')}").expanduser()


def evaluate_in(config: Config, folder: Path, device: torch.device, world: World) -> dict[str, Any]:
    """Scores a model on tasks.evaluate, every rank a part of the questions; returns the estimates by task."""
    prepare_process(config)
    config = replace(config, evaluate=replace(config.evaluate, before_and_after=True))
    processor = load_processor(config.model, config.media)
    eval_sets, judge = build_eval_sets(config, processor)
    check_judging(config, [judge], training=False)
    prompts = (prompt for eval_set in eval_sets for prompt in eval_set.prompts)
    check_kinds(config.rollout.engine, prompts, processor.media, device)
    with judge:
        evaluator = Evaluator(
            eval_sets=eval_sets,
            rewards=judge,
            processor=processor,
            config=config.evaluate,
            max_tokens=config.evaluate.max_tokens or max(eval_set.task.max_tokens for eval_set in eval_sets),
            stop=tuple(config.rollout.stop),
            seed=config.seed,
            folder=folder,
            world=world,
            open=Opener(processor, config.tasks),
        )
        module = load_model(config.model, device, trainable=False)
        engine = resolve(ENGINES, config.rollout.engine, "rollout engine")(module, processor, config.rollout)
        judging = add_judging_models(config, [judge], engine, processor, device)
        memory_plan = build_memory_plan(
            {"policy": held_whole(module, config, device)}, engine, judging, device
        )
        memory_plan.begin()
        with memory_plan(Phase.SYNC):
            engine.load_weights(module.state_dict().items())
            engine.weight_version = 0
        with memory_plan(Phase.ROLLOUT), sampling_bar() as bar, world.independent():
            answers = evaluator.sample(engine, progress=bar)
        with memory_plan(Phase.ROLLOUT if judge.by_policy else Phase.SCORE), world.independent():
            judge([t for group in answers for t in group])
        evaluator.report(answers, "responses")
        world.barrier()  # the first rank has written what all read
    estimates: dict[str, Any] = json.loads((folder / "responses.json").read_text(encoding="utf-8"))
    if world.is_first:
        print_estimates(estimates, config.model.path, folder)
    return estimates


def serve(config: Config, host: str, port: int) -> int:
    """Runs a server that a training run with these settings gives weights and asks questions."""
    device = pick_device(config.strategy.device)
    module = Source(config.model, learns=False).empty(device)
    processor = load_processor(config.model, config.media)
    rollout = replace(config.rollout, engine="vllm_server")
    return serve_policy(module, processor, rollout, host=host, port=port)


def check_task(config: Config, name: str) -> int:
    """Proves that a task's gold answers score full marks, in each split there is; 0 if they do, else 1."""
    task = load_task(name)
    rewards = {task.name: task_rewards(config, task)}
    sound = True
    with RewardRunner(rewards, config.rewards) as judge:
        for split in ("train", "evaluate"):
            try:
                records = task.load(split, config.tasks, config.data, config.seed)
            except ValueError as error:
                Console().print(f"{split}: not checked: {error}", soft_wrap=True, markup=False)
                continue
            found = check_gold(task.name, records, task.gold, judge)
            Console().print(f"{split}: {found}", soft_wrap=True, markup=False, highlight=False)
            sound = sound and found.ok
    return 0 if sound else 1


@contextlib.contextmanager
def sampling_bar() -> Iterator[Callable[[int, int], None]]:
    """A progress bar for answers."""
    from rich import progress

    done = progress.MofNCompleteColumn()
    bar, left = progress.BarColumn(), progress.TimeRemainingColumn()
    with progress.Progress("sampling", bar, done, left, console=Console(stderr=True)) as bars:
        task = bars.add_task("answers", total=None)
        yield lambda done, total: bars.update(task, completed=done, total=total)


def print_estimates(estimates: Mapping[str, Any], model: str, folder: Path) -> None:
    """A table of every estimate with its interval."""
    from rich.table import Table

    table = Table("task", "measure", "estimate", "95 % interval", title=f"{model}")
    for task, report_ in estimates.items():
        for name, value in report_.items():
            if isinstance(value, dict):
                table.add_row(
                    task, name, f"{value['mean']:.1%}", f"{value['low']:.1%} to {value['high']:.1%}"
                )
        facts = f"{report_['questions']} questions, {report_['responses']} answers, {report_['mean_length']:.0f} tokens each"
        failed = f", {report_['failed_rewards']} not judged" if report_["failed_rewards"] else ""
        table.add_row("", "", f"{facts}, {report_['truncated_fraction']:.0%} cut off{failed}")
        table.add_section()
    console = Console()
    console.print(table)
    console.print(f"every answer: {folder}/responses.jsonl", soft_wrap=True, highlight=False)


def replay(run: Path, step: int) -> int:
    """Computes a captured step again and prints each metric beside the recorded one; 0 if all are equal, else 1."""
    from rich.table import Table

    from lightrft.runs.capsule import compare, read

    capsule = read(run, step)
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        resolved = Path(scratch) / "config.yaml"
        resolved.write_text(capsule.config_yaml, encoding="utf-8")
        config = layers.load([str(resolved)], Config)
        quiet = replace(config.log, progress=False, tensorboard=False, capture_steps=[])
        config = replace(config, log=quiet, rollout=with_native_engine(config.rollout))
        trainer = build_trainer(config, Path(scratch), stack, started=time.perf_counter())
        restore(trainer.actor, capsule.state)
        capsule.verify(trainer.actor.weights())
        restore_generators(capsule.rng)
        updates = list(trainer.learn(step, capsule.trajectories, first=capsule.start))
    table = Table("update", "metric", "recorded", "replayed", "", title=f"step {step} of {run}")
    rows = compare(capsule.updates, updates)
    for update, name, recorded, replayed, equal in rows:
        table.add_row(
            str(update + capsule.start), name, repr(recorded), repr(replayed), "=" if equal else "DIFFERS"
        )
    Console().print(table)
    same = all(row[-1] for row in rows)
    Console().print(
        "equal bit for bit"
        if same
        else "the step came out differently: another machine, thread count or library?"
    )
    return 0 if same else 1


def with_native_engine(config: RolloutConfig) -> RolloutConfig:
    """The same with the native engine: what a step computes does not depend on who drew its answers, nor need that one be here."""
    plain = RolloutConfig()
    return replace(
        config,
        engine="native",
        vllm=plain.vllm,
        server=plain.server,
        sglang=plain.sglang,
        lmdeploy=plain.lmdeploy,
    )


class Terminal(logging.Handler):
    """Shows warnings on the terminal: above the live picture once there is one, on stderr before."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.show: Callable[[str], None] = lambda text: print(text, file=sys.stderr)

    def emit(self, record: logging.LogRecord) -> None:
        """See logging.Handler."""
        self.show(self.format(record))


@contextlib.contextmanager
def logging_to(file: Path) -> Iterator[Terminal]:
    """The log of a run: everything into a file, warnings to the terminal as well."""
    written, shown = logging.FileHandler(file, encoding="utf-8"), Terminal()
    written.setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    log.setLevel(logging.INFO)
    log.addHandler(written)
    log.addHandler(shown)
    try:
        yield shown
    finally:
        log.removeHandler(written)
        log.removeHandler(shown)
        written.close()
