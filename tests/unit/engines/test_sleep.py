"""What the native engine holds while it is awake, and gives back when it sleeps, in bytes of the process."""

import gc

from lightrft.config import ModelConfig, NativeEngineConfig
from lightrft.engines.base import give
from lightrft.engines.native import NativeEngine
from lightrft.models.load import load_model
from lightrft.models.source import Source
from lightrft.testing import tiny_folder, tiny_processor, tiny_prompt
from lightrft.types import Sampling
from lightrft.utils.device import release_memory, resident_gib
from tests.distributed.launch import together

SHAPE = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 12, "num_attention_heads": 8,
         "num_key_value_heads": 8, "head_dim": 64}  # fmt: skip


def resident(device):
    gc.collect()
    release_memory(device)
    return resident_gib() * 2**30


def nap(folder):
    """What an engine with weights of its own says it held, what the process lost when it slept, and its answers before and after."""
    settings = ModelConfig(path=folder)
    trained = load_model(settings, trainable=False)
    processor = tiny_processor()
    engine = NativeEngine(
        Source(settings, learns=False).empty(), processor.stop_ids, processor.text, NativeEngineConfig()
    )
    prompts = [tiny_prompt(200, seed=n) for n in range(4)]
    sampling = Sampling(n=2, max_tokens=12, ignore_eos=True, seed=1)
    said = []
    for _ in range(2):
        give(engine, trained.named_parameters())
        said.append([[a.token_ids for a in answers] for answers in engine.generate(prompts, sampling)])
        held, awake = sum(part.nbytes() for part in engine.parts().values()), resident(engine.device)
        for part in engine.parts().values():
            part.offload()
        freed = awake - resident(engine.device)
    return held, freed, said[0] == said[1]


def test_what_sleeps_gives_its_memory_back_and_wakes_as_it_was(tmp_path):
    folder = str(tiny_folder(tmp_path / "m", "llama", **SHAPE))
    ((held, freed, same),) = together(nap, 1, folder, fresh=True)
    assert held > 200 * 2**20
    assert freed > 0.9 * held
    assert same
