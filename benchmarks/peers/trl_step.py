"""One GRPO step of TRL: prints a JSON line with seconds, tokens and peak memory. Runs in TRL's own environment.

The first step warms up and is not counted. Answers never end early: the end token is taken from generation, which
costs TRL nothing (a `min_new_tokens` would copy all logits for every token).
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import work


def parse() -> argparse.Namespace:
    """Every setting of the work, and those that TRL may choose to be fast."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder of a Hugging Face model")
    parser.add_argument("--prompts", type=int, default=8)
    parser.add_argument("--group-size", type=int, default=8)
    parser.add_argument("--prompt-tokens", type=int, default=40)
    parser.add_argument("--new-tokens", type=int, default=48)
    parser.add_argument("--steps", type=int, default=1, help="measured steps, after one that is not")
    parser.add_argument("--micro-batch", type=int, default=16, help="answers per forward and backward pass")
    parser.add_argument("--precision", choices=["float32", "autocast", "bfloat16"], default="float32")
    parser.add_argument("--cache", choices=["dynamic", "static", "continuous"], default="dynamic")
    parser.add_argument("--checkpointing", choices=["off", "on"], default="off")
    parser.add_argument("--device", default="cpu", help="cpu, or the kind of an accelerator that torch finds")
    return parser.parse_args()


def main() -> None:
    """Trains `1 + steps` steps and reports the means over the measured ones."""
    options = parse()
    import torch
    import transformers
    import trl
    from datasets import Dataset
    from trl import GRPOConfig, GRPOTrainer

    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    questions = work.conversations(
        tokenizer, count=2 * options.prompts, num_tokens=options.prompt_tokens, seed=0
    )
    answers = options.prompts * options.group_size
    with tempfile.TemporaryDirectory() as scratch:
        config = GRPOConfig(
            output_dir=scratch,
            use_cpu=options.device == "cpu",
            max_steps=1 + options.steps,
            per_device_train_batch_size=options.micro_batch,
            gradient_accumulation_steps=answers // options.micro_batch,
            num_generations=options.group_size,
            max_completion_length=options.new_tokens,
            generation_kwargs={"eos_token_id": None},
            cache_implementation="static" if options.cache == "static" else None,
            use_transformers_continuous_batching=options.cache == "continuous",
            model_init_kwargs={"dtype": "bfloat16" if options.precision == "bfloat16" else "float32"},
            bf16=options.precision == "autocast",
            gradient_checkpointing=options.checkpointing == "on",
            beta=0.0,
            num_iterations=1,
            temperature=1.0,
            top_p=1.0,
            top_k=0,
            loss_type="grpo",
            learning_rate=1e-6,
            shuffle_dataset=False,
            report_to="none",
            logging_steps=1,
            save_strategy="no",
            disable_tqdm=True,
            dataloader_pin_memory=False,
        )
        trainer = GRPOTrainer(
            model=options.model,
            reward_funcs=reward,
            args=config,
            train_dataset=Dataset.from_list([{"prompt": question} for question in questions]),
            processing_class=tokenizer,
        )
        trainer.eos_token_ids = []
        clock = work.Clock()
        watch(trainer, clock)
        trainer.train()
    norms = [entry["grad_norm"] for entry in trainer.state.log_history if "grad_norm" in entry]
    if any(length != options.new_tokens for length in trainer.lengths):
        raise RuntimeError(f"not the agreed work: answers have {trainer.lengths} tokens on average.")
    seconds = {name: spent / options.steps for name, spent in clock.wall.items()}
    cpu = {name: spent / options.steps for name, spent in clock.cpu.items()}
    work.report(
        side="trl",
        settings={k: v for k, v in vars(options).items() if k != "model"},
        versions={
            "trl": trl.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        },
        threads=torch.get_num_threads(),
        seconds=seconds,
        cpu_seconds=cpu,
        training_seconds=seconds["step"] - seconds["generation"],
        tokens=answers * options.new_tokens,
        attention=trainer.model.config._attn_implementation,
        gradient_norm=float(norms[-1]),
    )


def reward(completions: list[list[dict[str, str]]], **_: Any) -> list[float]:
    """The common reward, in the form TRL calls."""
    return [work.score(answer[0]["content"]) for answer in completions]


def watch(trainer: Any, clock: work.Clock) -> None:
    """Times the phases of every step but the first, and notes how long the answers were."""
    from transformers import TrainerCallback

    clock.around(trainer, "_generate_and_score_completions", "collect")
    clock.around(trainer, "_generate_single_turn", "generation")
    clock.around(trainer, "compute_loss", "forward")
    clock.around(trainer.accelerator, "backward", "backward")
    trainer.lengths = []
    generate = trainer._generate_single_turn

    def counted(*arguments: Any, **keywords: Any) -> Any:
        tokens, logprobs = generate(*arguments, **keywords)
        trainer.lengths.append(sum(map(len, tokens)) / len(tokens))
        return tokens, logprobs

    trainer._generate_single_turn = counted

    class Steps(TrainerCallback):
        started = (0.0, 0.0)
        optimizer = 0.0

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if state.global_step == 1:
                clock.wall.clear()
                clock.cpu.clear()
            self.started = (time.perf_counter(), time.process_time())

        def on_pre_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            self.optimizer = time.perf_counter()

        def on_optimizer_step(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            clock.wall["optimizer"] = clock.wall.get("optimizer", 0.0) + time.perf_counter() - self.optimizer

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            wall, cpu = self.started
            clock.wall["step"] = clock.wall.get("step", 0.0) + time.perf_counter() - wall
            clock.cpu["step"] = clock.cpu.get("step", 0.0) + time.process_time() - cpu

    trainer.add_callback(Steps())


if __name__ == "__main__":
    main()
