"""An engine in a file of your own: whatever answers OpenAI's /v1/completions (Ollama, llama.cpp, a hosted model, ...).

    OPENAI_BASE_URL=http://localhost:11434/v1 OPENAI_MODEL=qwen2.5:0.5b lightrft evaluate gsm8k --data DATA \
        --model Qwen/Qwen2.5-0.5B-Instruct --rollout.engine examples/openai_engine.py:OpenAIEngine

It scores a model that runs elsewhere. To learn from its answers it lacks log-probs, tokens as sampled, and a way to take weights:
`lightrft.testing.check_engine` says so, line by line, and a training run stops at the first answer.
"""

import json
import os
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from lightrft.types import Completion


class OpenAIEngine:
    """See lightrft.engines.base.Engine."""

    weight_version = 0

    def __init__(self, module, processor, config):
        self.processor = processor
        self.url = os.environ.get("OPENAI_BASE_URL", "http://localhost:8000/v1")
        self.key, self.model = (
            os.environ.get("OPENAI_API_KEY", "none"),
            os.environ.get("OPENAI_MODEL", "policy"),
        )

    def generate(self, prompts, sampling, progress=None):
        if any(not prompt.token_ids for prompt in prompts):
            raise ValueError("a prompt has no tokens, so there is nothing to answer.")
        with ThreadPoolExecutor(max_workers=16) as pool:
            pairs = enumerate(prompts)
            under_way = [pool.submit(self.ask, n, prompt, sampling) for n, prompt in pairs]
            groups = []
            for future in under_way:
                groups.append(future.result())
                if progress is not None:
                    progress(sum(map(len, groups)), 0)
        return groups

    def ask(self, place, prompt, sampling):
        body = {
            "model": self.model,
            "prompt": self.processor.tokenizer.decode(prompt.token_ids),
            "n": sampling.n if prompt.continuation is None else 1,
            "max_tokens": sampling.max_tokens
            if prompt.continuation is None
            else prompt.continuation.max_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "stop": None if sampling.ignore_eos else list(sampling.stop) or None,
            "seed": (sampling.seed + sampling.first_index + place * sampling.index_stride) % 2**31,
        }
        headers = {"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"}
        request = urllib.request.Request(f"{self.url}/completions", json.dumps(body).encode(), headers)
        with urllib.request.urlopen(request, timeout=600) as reply:
            choices = json.load(reply)["choices"]
        return [self.completion(choice) for choice in choices]

    def completion(self, choice):
        tokens = self.processor.tokenizer.encode(choice["text"], add_special_tokens=False)
        finish = "stop" if choice["finish_reason"] == "stop" else "length"
        return Completion(tokens, [], finish, self.weight_version)

    def load_weights(self, weights):
        """The server keeps its own."""
        for _ in weights:  # takes part in gathering them
            pass

    def parts(self):
        return {}
