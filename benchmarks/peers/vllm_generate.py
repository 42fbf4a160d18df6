"""Generation by vLLM in this process: prints a JSON line with seconds, tokens and peak memory. Runs in vLLM's own
environment. The first call warms up with other prompts, so that its prefix cache holds nothing of the measured ones.
"""

from __future__ import annotations

import argparse
import os
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
import work


def parse() -> argparse.Namespace:
    """Every setting of the work, and those that vLLM may choose to be fast."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True, help="folder of a Hugging Face model")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--answers", type=int, default=4)
    parser.add_argument("--prompt-tokens", type=int, default=40)
    parser.add_argument("--new-tokens", type=int, default=64)
    parser.add_argument("--precision", choices=["float32", "bfloat16"], default="float32")
    parser.add_argument("--mode", choices=["compiled", "eager"], default="compiled")
    parser.add_argument("--logprobs", choices=["none", "sampled"], default="none")
    parser.add_argument("--runs", type=int, default=3, help="measured calls, after one that is not")
    return parser.parse_args()


def main() -> None:
    """Generates `1 + runs` times and reports every measured call."""
    options = parse()
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    import torch
    import transformers
    from vllm import LLM, SamplingParams, TokensPrompt

    tokenizer = transformers.AutoTokenizer.from_pretrained(options.model)
    llm = LLM(
        model=options.model,
        dtype=options.precision,
        max_model_len=options.prompt_tokens + options.new_tokens,
        max_num_seqs=options.prompts * options.answers,
        enforce_eager=options.mode == "eager",
        seed=0,
    )
    sampling = SamplingParams(
        n=options.answers,
        max_tokens=options.new_tokens,
        temperature=1.0,
        ignore_eos=True,
        detokenize=False,
        logprobs=0 if options.logprobs == "sampled" else None,
    )
    calls = []
    for call in range(1 + options.runs):
        questions = work.conversations(
            tokenizer, count=options.prompts, num_tokens=options.prompt_tokens, seed=call
        )
        prompts = [TokensPrompt(prompt_token_ids=work.tokens(tokenizer, question)) for question in questions]
        clock = work.Clock()
        with clock.measure("generation"):
            outputs = llm.generate(prompts, sampling, use_tqdm=False)
        tokens = sum(len(answer.token_ids) for output in outputs for answer in output.outputs)
        calls.append(
            {"seconds": clock.wall["generation"], "cpu_seconds": clock.cpu["generation"], "tokens": tokens}
        )
    work.report(
        side="vllm",
        settings={k: v for k, v in vars(options).items() if k != "model"},
        versions={"transformers": transformers.__version__, "torch": torch.__version__},
        threads=torch.get_num_threads(),
        calls=calls[1:],
    )


if __name__ == "__main__":
    main()
