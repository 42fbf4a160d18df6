"""Generation by LightRFT's native engine: prints a JSON line with seconds, tokens and peak memory.

The first call warms up, with other prompts, as on vLLM's side.
"""

from __future__ import annotations

import argparse

import torch
import transformers
import work

from lightrft import Config, Prompt, Sampling
from lightrft.build.process import prepare_process
from lightrft.config import ModelConfig, RolloutConfig
from lightrft.engines.native import native_engine
from lightrft.models.load import load_model, load_processor


def parse() -> argparse.Namespace:
    """Every setting of the work."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="what model.path takes")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--answers", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=40)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--runs", type=int, default=3, help="measured calls, after one that is not")
    return parser.parse_args()


def main() -> None:
    """Generates `1 + runs` times and reports every measured call."""
    options = parse()
    config = Config(model=ModelConfig(path=options.model, dtype=options.precision))
    prepare_process(config)
    processor = load_processor(config.model)
    engine = native_engine(load_model(config.model, trainable=False), processor, RolloutConfig())
    calls = []
    for call in range(1 + options.runs):
        prompts = [
            Prompt(
                id=str(i),
                token_ids=work.tokens(processor.tokenizer, question),
                messages=[],
                target=None,
                source="",
            )
            for i, question in enumerate(
                work.conversations(
                    processor.tokenizer, count=options.prompts, num_tokens=options.prompt_tokens, seed=call
                )
            )
        ]
        sampling = Sampling(n=options.answers, max_tokens=options.new_tokens, ignore_eos=True, seed=call)
        clock = work.Clock()
        with clock.measure("generation"):
            answers = engine.generate(prompts, sampling)
        tokens = sum(len(completion.token_ids) for completions in answers for completion in completions)
        calls.append(
            {"seconds": clock.wall["generation"], "cpu_seconds": clock.cpu["generation"], "tokens": tokens}
        )
    work.report(
        side="lightrft",
        settings={k: v for k, v in vars(options).items() if k != "model"},
        versions={"transformers": transformers.__version__, "torch": torch.__version__},
        threads=torch.get_num_threads(),
        calls=calls[1:],
    )


if __name__ == "__main__":
    main()
