"""Steps of TRL's RewardTrainer or DPOTrainer on given pairs: prints a JSON line with seconds, CPU seconds and peak memory.

Runs in TRL's own environment. The first step warms up and is not counted.
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
    parser.add_argument("--rows", required=True, help="file with pairs, made by work.py")
    parser.add_argument("--kind", choices=["reward", "dpo"], required=True)
    parser.add_argument("--pairs", type=int, default=8, help="of one step")
    parser.add_argument(
        "--repetition", type=int, default=0, help="which pairs of the file: from so many steps on"
    )
    parser.add_argument("--steps", type=int, default=2, help="measured steps, after one that is not")
    parser.add_argument("--micro-batch", type=int, default=8, help="pairs per forward and backward pass")
    parser.add_argument("--padding-free", choices=["off", "on"], default="off", help="of DPOTrainer")
    return parser.parse_args()


def main() -> None:
    """Trains `1 + steps` steps and reports the means over the measured ones."""
    options = parse()
    import torch
    import transformers
    import trl
    from datasets import Dataset

    rows = work.pairs(options.rows, options.pairs, options.repetition)
    common = {
        "use_cpu": True,
        "max_steps": 1 + options.steps,
        "per_device_train_batch_size": options.micro_batch,
        "gradient_accumulation_steps": options.pairs // options.micro_batch,
        "max_length": None,
        "train_sampling_strategy": "sequential",
        "bf16": False,
        "gradient_checkpointing": False,
        "learning_rate": 1e-6,
        "report_to": "none",
        "logging_steps": 1,
        "save_strategy": "no",
        "disable_tqdm": True,
        "dataloader_pin_memory": False,
    }
    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    clock = Steps()
    with tempfile.TemporaryDirectory() as scratch:
        if options.kind == "reward":
            model = transformers.AutoModelForSequenceClassification.from_pretrained(
                options.model, num_labels=1, dtype=torch.float32
            )
            made: Any = trl.RewardTrainer
            config: Any = trl.RewardConfig(output_dir=scratch, **common)
        else:
            model = transformers.AutoModelForCausalLM.from_pretrained(options.model, dtype=torch.float32)
            made = trl.DPOTrainer
            config = trl.DPOConfig(output_dir=scratch, padding_free=options.padding_free == "on", **common)
        trainer = made(
            model=model, args=config, train_dataset=Dataset.from_list(rows), processing_class=tokenizer
        )
        trainer.add_callback(clock.callback())
        trainer.train()
    work.report(
        side="trl",
        settings={k: v for k, v in vars(options).items() if k not in ("model", "rows")},
        versions={
            "trl": trl.__version__,
            "transformers": transformers.__version__,
            "torch": torch.__version__,
        },
        threads=torch.get_num_threads(),
        seconds={"step": clock.wall / options.steps},
        cpu_seconds={"step": clock.cpu / options.steps},
        attention=trainer.model.config._attn_implementation,
    )


class Steps:
    """Seconds of all steps but the first."""

    wall = cpu = 0.0

    def callback(self) -> Any:
        """A callback of transformers that takes the time."""
        from transformers import TrainerCallback

        steps = self

        class Timer(TrainerCallback):
            def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                self.begun = (time.perf_counter(), time.process_time())

            def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
                if state.global_step > 1:
                    steps.wall += time.perf_counter() - self.begun[0]
                    steps.cpu += time.process_time() - self.begun[1]

        return Timer()


if __name__ == "__main__":
    main()
