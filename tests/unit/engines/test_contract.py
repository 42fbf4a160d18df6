"""The engines that run here, and one that lacks something, against the list of what every engine must do."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from lightrft.config import MediaConfig, ModelConfig, NativeEngineConfig, RolloutConfig
from lightrft.engines.native import NativeEngine, native_engine
from lightrft.models.attention import ATTENTION
from lightrft.models.load import load_model, load_processor
from lightrft.models.source import Source
from lightrft.testing import check_engine, media_prompts, tiny_folder, tiny_model, tiny_processor
from lightrft.testing.bench import Bench
from lightrft.testing.checks import run_checks
from lightrft.testing.engines import SUPPORT_CHECKS
from lightrft.utils.imports import resolve
from tests.unit.engines.stand_in import healthy, standing_in


def decode(tokens):
    return bytes(t % 256 for t in tokens).decode("latin-1")


@pytest.mark.parametrize("family", ["llama", "qwen2"])
@pytest.mark.parametrize("own_weights", [False, True], ids=["shared", "own"])
def test_the_native_engine_does_all(tmp_path, family, own_weights):
    reference = tiny_model(family, attention="sdpa")
    if own_weights:
        module = Source(ModelConfig(path=str(tiny_folder(tmp_path / "m", family))), learns=False).empty()
    else:
        module = tiny_model(family, attention=ATTENTION)
    engine = NativeEngine(module, frozenset(), decode, NativeEngineConfig())
    found = check_engine(engine, reference, decode, support=True)
    assert found.ok, str(found)
    assert len(found.passed) == 14


def test_the_native_engine_reads_media_as_the_trainer():
    """A family whose processor needs no torchvision; others are tested in oracles/test_media_models.py."""
    family = "idefics3"
    settings = ModelConfig(path=f"random:{family}")
    processor = load_processor(settings, MediaConfig())
    engine = native_engine(load_model(settings, trainable=False), processor, RolloutConfig())
    media = media_prompts(processor, ["image"])
    found = check_engine(engine, tiny_model(family), processor.text, requests=20, media=media)
    assert found.ok, str(found)


class Lacking(NativeEngine):
    """Without log-probs, always the same draws, and deaf to new weights: each in one place of its own."""

    def generate(self, prompts, sampling, progress=None):
        groups = super().generate(prompts, replace(sampling, seed=0), progress)
        return [[replace(answer, logprobs=[]) for answer in answers] for answers in groups]

    def load_weights(self, weights):
        list(weights)


class Guessing(NativeEngine):
    """Says that tokens were drawn among all, or among two more than they were."""

    more = True

    def generate(self, prompts, sampling, progress=None):
        groups = super().generate(prompts, sampling, progress)
        if not sampling.support or not sampling.temperature:
            return groups
        return [[replace(answer, support=self.told(*answer.support)) for answer in group] for group in groups]

    def told(self, counts, ids):
        if not self.more:
            return torch.zeros_like(counts), ids[:0]
        parts = [part.tolist() for part in ids.split(counts.tolist())]
        parts = [[*part, *sorted({*range(300)} - {*part})[:2]] for part in parts]
        return counts + 2, torch.tensor([x for part in parts for x in part], dtype=torch.int32)


@pytest.mark.parametrize(
    ("more", "told"), [(True, "a support larger than top_p=0.8 leaves"), (False, "no ids for 8 tokens")]
)
def test_an_engine_that_tells_of_other_tokens_than_it_drew_among_is_told_so(more, told):
    engine = Guessing(tiny_model("llama", attention=ATTENTION), frozenset(), decode, NativeEngineConfig())
    engine.more = more
    bench = Bench(engine, tiny_model("llama", attention="sdpa").eval(), decode, tolerance=1e-5, requests=20)
    bench.give()
    found = run_checks(SUPPORT_CHECKS, bench)
    assert found.lacking.keys() == {"each token tells what it was drawn among"}
    assert told in str(found)


def test_an_engine_is_told_exactly_what_it_lacks():
    module = tiny_model("llama", attention=ATTENTION)
    engine = Lacking(module, frozenset(), decode, NativeEngineConfig())
    found = check_engine(engine, tiny_model("llama", attention="sdpa"), decode, requests=20)
    assert found.lacking.keys() == {
        "each token has the logprob of the distribution it was drawn from",
        "a draw is fixed by its seed and siblings differ",
        "new weights are there at once and old ones gone",
        "a weight of another name is refused",
        "a turn goes on behind a reply and its stop texts are its own",
    }
    assert "0 log-probs for 10 tokens" in str(found)
    assert "another seed gave the same responses" in str(found)
    assert not found.ok


def test_an_engine_in_a_users_file_is_told_exactly_what_it_lacks(monkeypatch):
    file = Path(__file__).parents[3] / "examples" / "openai_engine.py"
    assert len(file.read_text(encoding="utf-8").splitlines()) <= 80
    make = resolve({}, f"{file}:OpenAIEngine", "rollout engine")
    with standing_in(healthy) as servers:
        monkeypatch.setenv("OPENAI_BASE_URL", f"{servers[0].url}/v1")
        engine = make(None, tiny_processor(), None)
        found = check_engine(
            engine, tiny_model("llama", attention="sdpa"), tiny_processor().text, requests=20
        )
    assert {
        "each token has the logprob of the distribution it was drawn from",
        "new weights are there at once and old ones gone",
        "a weight of another name is refused",
    } <= found.lacking.keys()
    assert "0 log-probs for" in str(found)
    assert {"a thousand requests come back in order", "an empty prompt is refused"} <= set(found.passed)
