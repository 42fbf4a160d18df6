"""The plan against closed forms, the trainer's own parts, and what others have published."""

import json
from dataclasses import dataclass, replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode
from transformers import AutoModelForSequenceClassification

from lightrft.build.models import build_critic, build_reference
from lightrft.build.tables import STRATEGIES, engine_footprint, footprint
from lightrft.cli import main
from lightrft.commands.plan import GIB, Hardware, Lengths, Rates, offline, plan
from lightrft.commands.plan.memory import activations, largest_batch
from lightrft.commands.plan.shape import Shape
from lightrft.commands.plan.work import traffic
from lightrft.config import (
    AlgorithmConfig,
    Config,
    DeepspeedConfig,
    FsdpConfig,
    JudgeConfig,
    LoraConfig,
    ModelConfig,
    NativeEngineConfig,
    OptimizerConfig,
    RewardConfig,
    RewardModelConfig,
    RolloutConfig,
    SamplingLogConfig,
    SFTConfig,
    StrategyConfig,
    TaskConfig,
    UpdateConfig,
    layers,
)
from lightrft.engines.footprint import Demand, EngineFootprint
from lightrft.models.logprobs import predicting_states
from lightrft.models.sequence import Share
from lightrft.models.source import Source
from lightrft.strategy.footprint import Footprint, Traffic
from lightrft.strategy.memory import Phase
from lightrft.strategy.zero_footprint import zero_share
from lightrft.testing import tiny_folder, tiny_trajectories
from lightrft.trainer.batching import pack
from tests.unit.models.test_reward import reward_folder

QWEN2_7B = {
    "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 28, "num_attention_heads": 28,
    "num_key_value_heads": 4, "vocab_size": 152064,
}  # fmt: skip
QWEN2_14B = {
    "hidden_size": 5120, "intermediate_size": 13824, "num_hidden_layers": 48, "num_attention_heads": 40,
    "num_key_value_heads": 8, "vocab_size": 152064,
}  # fmt: skip
LLAMA3_8B = {
    "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": 8, "vocab_size": 128256,
}  # fmt: skip
SMALL = {
    "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 3, "num_attention_heads": 4,
    "num_key_value_heads": 2, "vocab_size": 512,
}  # fmt: skip
LENGTHS = Lengths(512, 1024)


@pytest.fixture
def model(tmp_path):
    """A folder with nothing but the config.json of a model."""

    def write(sizes, family="qwen2", **more):
        folder = tmp_path / f"{family}-{len(list(tmp_path.iterdir()))}"
        folder.mkdir()
        whole = {"model_type": family, "tie_word_embeddings": False, **sizes, **more}
        (folder / "config.json").write_text(json.dumps(whole))
        return str(folder)

    return write


def settings(path, backend="fsdp", dtype="bfloat16", **changes):
    config = Config(
        model=ModelConfig(path=path, dtype=dtype, gradient_checkpointing=True),
        strategy=StrategyConfig(backend=backend, offload=backend in ("fsdp", "single")),
        rollout=RolloutConfig(prompts_per_step=64, max_tokens=1024),
        update=UpdateConfig(tokens_per_micro_batch=4096),
    )
    return replace(config, **changes)


def test_zero_shares_as_its_paper_says():
    """7.5 billion weights, 64 devices, mixed precision: 120, 31.4, 16.6 and 1.9 GB (figure 1)."""
    bytes_of = {"weights": 2 * 7.5, "gradients": 2 * 7.5, "optimizer": 12 * 7.5}
    assert sum(bytes_of.values()) == 120
    found = [sum(zero_share(stage, 64, **bytes_of)) for stage in (1, 2, 3)]
    assert found == pytest.approx([31.4, 16.6, 1.9], abs=0.05)


@pytest.mark.parametrize(
    ("sizes", "billions"),
    [(QWEN2_7B, 7.616), (QWEN2_14B, 14.770), (LLAMA3_8B, 8.030)],
    ids=["7B", "14B", "8B"],
)
def test_a_model_is_counted_from_its_config_alone(model, sizes, billions):
    family = "llama" if sizes is LLAMA3_8B else "qwen2"
    assert Shape(Source(ModelConfig(path=model(sizes, family)))).weights / 1e9 == pytest.approx(
        billions, abs=1e-3
    )


def test_numbers_of_a_small_model(model):
    shape = Shape(Source(ModelConfig(path=model(SMALL, "llama"))))
    block = 64 * (64 + 32 + 32 + 64) + 3 * 64 * 128 + 2 * 64
    assert shape.blocks == 3
    assert shape.inside == 3 * block
    assert shape.largest_block == block
    assert shape.weights == 3 * block + 2 * 512 * 64 + 64
    assert shape.operations.products == 3 * (block - 2 * 64)
    assert shape.operations.head == 512 * 64
    assert shape.operations.attention == 3 * 64
    assert shape.cached == 3 * 32


def test_experts_count_as_often_as_a_token_is_sent_to_them(model):
    sizes = {**SMALL, "num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 96, "head_dim": 16}
    shape = Shape(Source(ModelConfig(path=model(sizes, "qwen3_moe", decoder_sparse_step=1))))
    attention, router, expert = 64 * (64 + 32 + 32 + 64), 8 * 64, 3 * 64 * 96
    assert shape.operations.products == pytest.approx(3 * (attention + router + 2 * expert))


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("lora", [0, 4])
def test_what_a_token_leaves_behind_is_what_the_trainers_pass_keeps(tmp_path, dtype, lora):
    path = str(tiny_folder(tmp_path / "m", "llama", hidden_size=128, num_hidden_layers=4))
    source = Source(ModelConfig(path=path, dtype=dtype, lora=LoraConfig(rank=lora)))
    module, kept = source.full(), {}
    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}

    def keep(tensor):
        kept[tensor.untyped_storage().data_ptr()] = tensor
        return tensor

    batch = pack(tiny_trajectories([(100, [60])]))
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
        out = predicting_states(module, batch.inputs, Share.of(batch.inputs))
    found = sum(t.untyped_storage().nbytes() for place, t in kept.items() if place not in own)
    del out
    assert Shape(source).kept * 160 == pytest.approx(found, rel=0.05)


def test_a_forward_pass_takes_as_many_operations_as_torch_counts(tmp_path):
    path = str(tiny_folder(tmp_path / "m", "llama"))
    shape, batch = Shape(Source(ModelConfig(path=path))), pack(tiny_trajectories([(40, [24])]))
    module = shape.source.full().double()  # whose products are torch's own, which it counts
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        predicting_states(module, batch.inputs, Share.of(batch.inputs), exact_attention=True)
    products = {str(op): n for op, n in counter.get_flop_counts()["Global"].items() if "mm" in str(op)}
    assert 2 * shape.operations.products * 64 == pytest.approx(sum(products.values()), rel=0.01)


@dataclass(frozen=True)
class Numbers:
    """100 weights in blocks, two of 50, and 20 others; of all, `learned` learn."""

    width: int = 4
    weights: int = 120
    learned: int = 120
    inside: int = 100
    largest_block: int = 50
    optimizer_state: int = 8 * 120

    @property
    def weight_bytes(self):
        return self.width * self.weights

    @property
    def learned_narrow(self):
        return self.learned if self.width < 4 else 0


def test_bytes_sent_in_an_update():
    """3 micro-batches, 4 devices: three quarters of each tensor are others'."""

    def sent(backend, width=4, **options):
        found = footprint(StrategyConfig(backend=backend, **options), Numbers(width), 4)
        return found.traffic.bytes(3, width, 4)

    forget = {"deepspeed": DeepspeedConfig(max_live_parameters=0)}
    keep = {"fsdp": FsdpConfig(reshard_after_forward=False)}
    assert sent("single") == 0
    assert sent("zero1") == 4 * (2 * 120 + 120) * 3 / 4
    assert sent("zero2") == 4 * (3 * 120 + 120) * 3 / 4
    assert sent("zero3", **forget) == 4 * 3 * (120 + 120 + 120) * 3 / 4
    assert sent("zero3") == 4 * 3 * (120 + 120) * 3 / 4
    assert sent("fsdp") == 4 * 3 * (220 + 120) * 3 / 4
    assert sent("fsdp", width=2) == (4 * 3 * 120 + 2 * 3 * 220) * 3 / 4
    assert sent("fsdp", **keep) == sent("zero3")


@pytest.mark.parametrize(
    ("backend", "weights", "optimizer", "gradients", "gathered"),
    [
        ("single", 240, 1440, 480, 0),  # 2, 8 + 4 and 4 bytes of each
        ("fsdp", 120, 240, 120, 840),  # pieces of 4, 8 and 4; 2 * (20 + 100) whole, and 6 * 100 to be summed
        ("zero1", 240, 360, 600, 0),  # a quarter of 12; 4, and 4 of a piece
        ("zero2", 240, 360, 1200, 0),  # 4 of a piece twice, and two buckets of all
        ("zero3", 60, 360, 1200, 780),  # 2 * 120 whole, 6 * 50 to be summed, 2 * 120 ahead
    ],
)
def test_what_each_backend_holds_of_120_weights_on_four_devices(
    backend, weights, optimizer, gradients, gathered
):
    found = footprint(StrategyConfig(backend=backend), Numbers(width=2), 4)
    assert (found.weights, found.optimizer, found.gradients) == (weights, optimizer, gradients)
    assert found.gathered == gathered
    assert found.sharded == (backend in ("fsdp", "zero3"))


@pytest.mark.parametrize("backend", STRATEGIES)
def test_a_model_that_only_answers_has_no_optimizer_and_no_gradients(backend):
    found = footprint(StrategyConfig(backend=backend), Numbers(), 2, learns=False)
    assert (found.optimizer, found.gradients) == (0, 0)
    assert found.weights > 0


def test_the_plan_has_the_bytes_of_the_parts_that_a_run_makes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    config = layers.load(
        ["tiny", "ppo", "--algorithm.kl-coefficient", "0.1", "--strategy.device", "cpu"], Config
    )
    found = plan(config, Hardware(1, 8.0), Lengths(32, 8))
    planned = {item.name: item.bytes for item in found.items}
    strategy = STRATEGIES["single"](config.strategy, torch.device("cpu"))
    actor = strategy.trainable(Source(config.model), config.optimizer, 1)
    critic = build_critic(config, found.algorithm, strategy)
    reference = build_reference(Source(config.model), actor, strategy)
    for name, model in (("actor", actor), ("critic", critic), ("reference", reference)):
        for part, resident in model.parts().items():
            assert planned[f"{name} {part}"] == resident.nbytes(), f"{name} {part}"
    assert {"actor gradients", "critic gradients", "engine cache"} <= planned.keys()


def test_models_that_take_turns_do_not_add_up():
    config = layers.load(["tiny", "ppo", "--strategy.device", "cpu"], Config)
    found = plan(config, Hardware(1, 8.0), Lengths(32, 8))
    stay = sum(i.bytes for i in found.items if Phase.TRAIN in i.phases and not i.turn)
    turns = {who: sum(i.bytes for i in found.items if i.turn == who) for who in ("actor", "critic")}
    assert found.sums[Phase.TRAIN] == stay + max(turns.values())


@pytest.mark.parametrize(
    ("sizes", "fits", "does_not"), [(QWEN2_7B, 2, 1), (QWEN2_14B, 4, 2)], ids=["Qwen2-7B", "Qwen2-14B"]
)
def test_what_verl_calls_the_least_that_grpo_needs(model, sizes, fits, does_not):
    """Full GRPO with FSDP, offload and recomputed activations: Qwen2-7B on two H800 of 80 GB, Qwen2-14B on four
    (https://github.com/volcengine/verl/blob/main/docs/perf/device_tuning.rst)."""
    path = model(sizes)
    enough = plan(settings(path), Hardware(fits, 80.0), LENGTHS)
    assert max(enough.sums.values()) < enough.usable, {p.value: n / GIB for p, n in enough.sums.items()}
    backend = "single" if does_not == 1 else "fsdp"
    too_few = plan(settings(path, backend), Hardware(does_not, 80.0), LENGTHS)
    assert too_few.sums[Phase.TRAIN] > 80 * GIB


def test_what_sixteen_times_the_devices_save_is_what_torchtitan_measured(model):
    """Llama 3.1 8B, FSDP in bfloat16 with float32 weights and moments: 82.4 GiB on 8 GPUs, 67.0 on 128
    (https://github.com/pytorch/torchtitan/blob/main/benchmarks/llama3_h100_202412_torchtitan.md, tables 1 and 3)."""
    shape = Shape(Source(ModelConfig(path=model(LLAMA3_8B, "llama"), dtype="bfloat16")))

    def state(devices):
        part = footprint(StrategyConfig(backend="fsdp"), shape, devices)
        return (part.weights + part.optimizer + part.gradients) / GIB

    assert state(8) - state(128) == pytest.approx(82.4 - 67.0, rel=0.15)


@pytest.mark.parametrize("backend", ["fsdp", "zero3"])
def test_twice_the_devices_hold_half_of_the_pieces(model, backend):
    shape = Shape(Source(ModelConfig(path=model(SMALL, "llama"))))
    strategy = StrategyConfig(backend=backend)
    two, four = footprint(strategy, shape, 2), footprint(strategy, shape, 4)
    assert two.weights == pytest.approx(2 * four.weights, abs=4)
    assert two.optimizer == pytest.approx(2 * four.optimizer, abs=4)
    copies = replace(strategy, fsdp=FsdpConfig(replicas=2)) if backend == "fsdp" else strategy
    if backend == "fsdp":
        assert footprint(copies, shape, 4).weights == two.weights


def test_what_is_kept_in_host_memory_takes_none_of_the_device(model):
    shape = Shape(Source(ModelConfig(path=model(SMALL, "llama"))))
    fsdp = footprint(StrategyConfig(backend="fsdp", fsdp=FsdpConfig(offload=True)), shape, 2)
    assert (fsdp.weights, fsdp.optimizer, fsdp.gradients) == (0, 0, 0)
    assert fsdp.gathered > 0
    options = DeepspeedConfig(offload_optimizer=True, offload_param=True)
    zero = footprint(StrategyConfig(backend="zero3", deepspeed=options), shape, 2)
    assert (zero.weights, zero.optimizer) == (0, 0)


def make_remote(module, processor, config):
    """An engine of a user's file that says what it holds."""


make_remote.footprint = lambda config, sizes, demand: EngineFootprint(0, demand.answer * 10)


def make_silent(module, processor, config):
    """One that says nothing."""


def test_what_other_engines_take(model):
    """Qwen2-7B in bfloat16 (15,231,233,024 bytes) on a device of 80 GB, by hand."""
    weights, device = 15_231_233_024, 80 * 10**9
    shape = Shape(Source(ModelConfig(path=model(QWEN2_7B), dtype="bfloat16")))
    demand = Demand(512, 1024, 1, on_cpu=False, device_bytes=device)
    found = {}
    for engine in ("vllm_server", "sglang", "lmdeploy", f"{__file__}:make_silent", f"{__file__}:make_remote"):
        part = engine_footprint(RolloutConfig(engine=engine), shape, demand)
        found[engine.split(":")[-1]] = (part.weights, part.cache)
    assert found == {
        "vllm_server": (0, 0),
        "sglang": (weights, int(0.4 * device) - weights),
        "lmdeploy": (weights, int(0.4 * (device - weights))),
        "make_silent": (weights, 0),
        "make_remote": (0, 10240),
    }


def test_vllm_has_weights_of_its_own_and_a_cache_that_fills_its_share(model):
    config = settings(model(QWEN2_7B), rollout=RolloutConfig(engine="vllm", prompts_per_step=64))
    planned = {item.name: item for item in plan(config, Hardware(8, 80.0), LENGTHS).items}
    engine = planned["engine weights"].bytes + planned["engine cache"].bytes
    assert engine == pytest.approx(0.4 * 80 * GIB, rel=1e-6)
    assert planned["engine weights"].phases == (Phase.SYNC, Phase.ROLLOUT)
    assert Phase.ROLLOUT not in planned["actor weights"].phases


def test_sampling_reads_the_keys_that_the_engine_keeps(model):
    """64 responses of 1024 tokens, half of them there on average, to prompts of 512: 28 layers of 4 heads of 128 numbers, keys in float32 or not."""
    native, path, rates = NativeEngineConfig(attention_backend="flash"), model(QWEN2_7B), Rates()
    seconds = [
        plan(settings(path, rollout=RolloutConfig(prompts_per_step=64, **engine)), Hardware(8, 80.0), LENGTHS).work.rollout.seconds
        for engine in ({}, {"native": native}, {"engine": "vllm"})
    ]  # fmt: skip
    numbers = 1024 * 64 * (512 + 1024 / 2) * 28 * 4 * 128
    read = 1e9 * rates.efficiency * rates.memory * (seconds[0] - seconds[1])
    assert read == pytest.approx(2 * numbers)
    assert seconds[2] == pytest.approx(seconds[1])


def test_adapters_have_a_small_optimizer(model):
    path = model(SMALL, "llama")
    full = footprint(StrategyConfig(), Shape(Source(ModelConfig(path=path))), 1)
    adapted = footprint(StrategyConfig(), Shape(Source(ModelConfig(path=path, lora=LoraConfig(rank=2)))), 1)
    assert adapted.optimizer < full.optimizer / 10


def test_the_largest_batch_is_the_last_that_fits():
    assert largest_batch(100, lambda tokens: 7 * tokens + 9) == 13
    assert largest_batch(5, lambda tokens: 7 * tokens) == 0


def test_what_does_not_fit_is_told_with_its_cure(model):
    config = settings(model(QWEN2_7B))
    told = plan(config, Hardware(2, 40.0), LENGTHS).problems
    assert any("train needs" in line and "Take more devices" in line for line in told)
    roomy = replace(config, update=UpdateConfig(tokens_per_micro_batch=10**7))
    told = plan(roomy, Hardware(8, 80.0), LENGTHS)
    assert any(f"Set update.tokens_per_micro_batch={told.largest_batch}" in line for line in told.problems)
    mended = replace(config, update=UpdateConfig(tokens_per_micro_batch=told.largest_batch))
    assert not plan(mended, Hardware(8, 80.0), LENGTHS).problems


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        (
            {"rollout": RolloutConfig(prompts_per_step=10)},
            "rollout.prompts_per_step=10 cannot be shared by 4",
        ),
        ({"strategy": StrategyConfig()}, "strategy.backend=single is for one process, and there are 4"),
        (
            {"strategy": StrategyConfig(backend="fsdp", fsdp=FsdpConfig(replicas=3))},
            "replicas=3 does not divide",
        ),
        (
            {"strategy": StrategyConfig(backend="fsdp", sequence_parallel=3)},
            "sequence_parallel=3: 4 processes",
        ),
        (
            {"update": UpdateConfig(num_minibatches=300, tokens_per_micro_batch=4096)},
            "update.num_minibatches=300",
        ),
        (
            {"update": UpdateConfig(tokens_per_micro_batch=1000)},
            "one prompt with its response can be 1536 tokens",
        ),
    ],
)
def test_what_is_wrong_with_the_sizes_is_told(model, changes, told):
    found = plan(settings(model(SMALL, "llama"), **changes), Hardware(4, 80.0), LENGTHS).problems
    assert any(told in line for line in found), found


class Halves:
    """A backend of a user's file, as far as a plan asks it: half of everything is on the device."""

    @staticmethod
    def footprint(config, sizes, processes, *, learns):
        learned = sizes.learned if learns else 0
        return Footprint(
            sizes.width * sizes.weights // 2,
            4 * learned,
            2 * learned,
            sharded=True,
            traffic=Traffic(summed_once=sizes.learned),
        )


class Silent:
    """A backend that says nothing of its memory."""


def test_a_backend_of_a_users_file_is_planned(model):
    config = settings(model(SMALL, "llama"), f"{__file__}:Halves")
    found = plan(config, Hardware(4, 80.0), LENGTHS)
    planned, weights = {item.name: item for item in found.items}, found.models.actor.weights
    assert planned["actor weights"].bytes == weights
    assert planned["actor optimizer"].bytes == 4 * weights
    assert planned["actor gradients"].bytes == 2 * weights
    assert planned["engine weights"].bytes == 2 * weights, "the actor is in pieces"
    assert found.work.train.sent == 4 * weights * 3 / 4


def test_a_backend_that_does_not_say_what_it_holds_is_not_planned(model):
    config = settings(model(SMALL, "llama"), f"{__file__}:Silent")
    with pytest.raises(
        ValueError, match=r"Silent: what it holds is not known. Give it a static method `foot"
    ):
        plan(config, Hardware(4, 80.0), LENGTHS).items  # noqa: B018


def test_a_backend_that_is_not_there_is_not_planned(model):
    with pytest.raises(ValueError, match="no strategy backend named 'fsdb'. Did you mean 'fsdp'"):
        plan(settings(model(SMALL, "llama"), "fsdb"), Hardware(4, 80.0), LENGTHS).items  # noqa: B018


def test_more_devices_take_less_time_and_the_sync_is_paid(model):
    config = settings(model(QWEN2_7B))
    few, many = (plan(config, Hardware(n, 80.0), LENGTHS).work for n in (8, 64))
    assert many.train.flops == pytest.approx(few.train.flops / 8)
    assert many.rollout.seconds < few.rollout.seconds
    assert few.sync.sent == pytest.approx(2 * 7.6156e9 * 7 / 8, rel=1e-3)


def test_copies_of_a_model_send_less_between_machines(model):
    config = settings(model(QWEN2_7B))
    copies = replace(
        config, strategy=StrategyConfig(backend="fsdp", offload=True, fsdp=FsdpConfig(replicas=8))
    )
    one, eight = (plan(c, Hardware(64, 80.0), LENGTHS) for c in (config, copies))
    inside, among = traffic(copies, eight.models.actor, 1, 64)
    assert among == pytest.approx(2 * 4 * 7.6156e9 / 8 * 7 / 8, rel=1e-3)
    assert inside == pytest.approx(traffic(config, one.models.actor, 1, 64)[0] / (63 / 64) * 7 / 8)
    assert eight.work.train.seconds <= one.work.train.seconds
    assert traffic(config, one.models.actor, 1, 1) == (0, 0)


def test_the_command_prints_tables_and_the_same_numbers_as_json(model, capsys):
    path = model(SMALL, "llama")
    args = [
        "plan",
        "grpo",
        "fsdp",
        "--model.path",
        path,
        "--gpus",
        "4",
        "--gpu-memory",
        "24",
        "--prompt-tokens",
        "100",
    ]
    assert main([*args, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["devices"] == 4
    assert found["tokens"] == {"prompt": 100, "answer": 256}
    sums = dict.fromkeys(found["memory"]["sums"], 0)
    assert sums.keys() == {"rollout", "score", "sync", "train"}
    assert main(args) == 0
    shown = capsys.readouterr().out
    for name in ("actor weights", "engine weights", "engine cache", "reference weights"):
        assert name in shown
    assert f"{found['memory']['sums']['train'] / 2**20:.2f}" in shown  # MiB, where none takes a GiB


def test_a_change_of_phase_copies_what_only_one_of_both_needs(model):
    """Weights of the actor wait while the engine samples with its own; its optimizer and the reference come and go."""
    config = settings(model(SMALL, "llama"), algorithm=AlgorithmConfig(kl_coefficient=0.1))
    rates = Rates(host=10.0, efficiency=0.5)
    found = plan(config, Hardware(2, 80.0, rates=rates), LENGTHS)
    size = {item.name: item.bytes for item in found.items}
    weights, optimizer, reference = (
        next(size[name] for name in size if name.startswith(start))
        for start in ("actor weights", "actor optimizer", "reference weights")
    )
    copied = {
        "sync": optimizer,  # leaves; the actor stays
        "rollout": weights,  # leaves
        "score": weights + reference,  # both come
        "train": reference + optimizer,  # one leaves, the other comes
    }
    assert {name: switch.sent for name, switch in found.work.switches.items()} == copied
    assert [s.seconds for s in found.work.switches.values()] == pytest.approx(
        [count / 5e9 for count in copied.values()]
    )
    phases = sum(phase.seconds for phase in found.work.phases().values())
    assert found.work.seconds == pytest.approx(phases + sum(copied.values()) / 5e9)
    stays = replace(config, strategy=StrategyConfig(backend="fsdp"))
    assert plan(stays, Hardware(2, 80.0, rates=rates), LENGTHS).work.switches == {}


@pytest.mark.parametrize("flags", [["--gpus", "none"], ["--gpu-memory", "-3"]])
def test_a_flag_that_is_no_number_is_refused(flags, capsys):
    assert main(["plan", "tiny", *flags]) == 2
    assert f"{flags[0]} {flags[1]}: needs a number" in capsys.readouterr().err


def test_models_that_judge_are_counted_whole_where_they_judge(model, tmp_path):
    path, other = model(SMALL), model({**SMALL, "num_hidden_layers": 2})
    scorer = tmp_path / "scorer"
    reward_folder(scorer, "llama")
    judged = settings(
        path,
        "single",
        judge=JudgeConfig(path=other),
        reward_model=RewardModelConfig(paths={"a": str(scorer), "b": f"{scorer}:0"}),
        rewards=RewardConfig(functions={"judge": 1.0, "a": 1.0, "b": 1.0}),
    )
    found = {item.name: item for item in plan(judged, Hardware(1, 80.0), LENGTHS).items}
    whole = sum(p.numel() for p in Source(ModelConfig(path=other)).empty("meta").parameters())
    assert found["judge weights"].bytes == 2 * whole
    assert found["judge weights"].phases == (Phase.SCORE,)
    body = AutoModelForSequenceClassification.from_pretrained(scorer).model
    assert found["reward model a+b weights"].phases == (Phase.SCORE,)
    assert found["reward model a+b weights"].bytes == 2 * sum(p.numel() for p in body.parameters())
    asked = settings(path, "single", judge=JudgeConfig(path="policy"))
    assert not [item for item in plan(asked, Hardware(1, 80.0), LENGTHS).items if "judge" in item.name]


@pytest.mark.parametrize(("name", "rank"), [("muon", 0), ("adafactor", 4)])
def test_a_plan_counts_the_state_of_the_optimizer_that_is_chosen(tmp_path, name, rank):
    path = str(tiny_folder(tmp_path / "m", "llama"))
    model = ModelConfig(path=path, lora=LoraConfig(rank=rank))
    config = settings(path, "single", model=model, optimizer=OptimizerConfig(name=name))
    actor = STRATEGIES["single"](config.strategy, torch.device("cpu")).trainable(
        Source(model), config.optimizer, 1
    )
    kept = actor.tensor_state().items()  # the optimizer has met all weights
    real = sum(tensor.nbytes for key, tensor in kept if not key.startswith("weights/"))
    found = plan(config, Hardware(1, 8.0), LENGTHS)
    assert {item.name: item.bytes for item in found.items}["actor optimizer"] == real
    assert real < 8 * found.models.actor.learned


def test_a_plan_counts_adapters_beside_a_bfloat16_model_as_the_float32_they_are(tmp_path):
    model = ModelConfig(
        path=str(tiny_folder(tmp_path / "m", "llama")), dtype="bfloat16", lora=LoraConfig(rank=4)
    )
    config = settings(model.path, "single", model=model)
    actor = STRATEGIES["single"](config.strategy, torch.device("cpu")).trainable(
        Source(model), config.optimizer, 1
    )
    found = plan(config, Hardware(1, 8.0), LENGTHS)
    counted = {item.name: item.bytes for item in found.items}
    assert counted["actor weights"] == sum(p.nbytes for p in actor.module.parameters())
    assert counted["actor optimizer"] == 8 * found.models.actor.learned  # no second float32 beside the first


def test_an_optimizer_of_ones_own_is_said_to_be_counted_as_adamws(tmp_path, capsys):
    flags = ["--optimizer.name", "torch.optim:SGD", "--strategy.device", "cpu", "--gpus", "1", "--json"]
    for command, item in ((["train", "tiny"], "actor optimizer"), (["sft", "sft_tiny"], "optimizer")):
        assert main(["plan", *command, *flags]) == 0
        said = json.loads(capsys.readouterr().out)
        names = {i["name"]: i["bytes"] for i in said["memory"]["items"]}
        assert names[f"{item}, counted as AdamW's"] == 8 * said["learned"]


def test_a_plan_refuses_an_optimizer_as_the_backend_does(model):
    config = settings(model(SMALL, "llama"), "zero2", optimizer=OptimizerConfig(name="muon"))
    told = "optimizer.name=muon with strategy.backend=zero2, which divides AdamW's state itself"
    assert any(told in problem for problem in plan(config, Hardware(2, 80.0), LENGTHS).problems)


def test_a_plan_of_fine_tuning_counts_what_samples_held_out_responses(model):
    """16 responses of at most 128 tokens, with their prompts of 128, in pages of keys in float32 and values as the model has them."""
    path = model(SMALL, "llama")
    own = {"model": ModelConfig(path=path, dtype="bfloat16"), "tasks": TaskConfig(train={"sums": 1.0})}

    def planned(backend, devices=1, gib=80.0, **log):
        config = SFTConfig(strategy=StrategyConfig(backend=backend), log=SamplingLogConfig(**log), **own)
        return offline.plan(config, Hardware(devices, gib), 128, 1024)

    found = planned("single")
    sizes = {item.name: item for item in found.items}
    assert sizes["engine cache"].bytes == 16 * (128 + 128) * found.model.cached * (4 + 2)
    assert "engine weights" not in sizes
    assert Phase.ROLLOUT in sizes["weights"].phases
    for nothing in (planned("fsdp", 2), planned("single", sampled_tokens=0)):
        assert list(nothing.sums) == [Phase.SCORE, Phase.TRAIN]
    sharded = planned("fsdp", 2, sample_sharded=True)
    whole = {item.name: item.bytes for item in sharded.items}
    assert whole["engine weights"] == 2 * found.model.plain
    short = planned("single", gib=1.5 * max(found.sums.values()) / GIB, sampled_tokens=10_000_000)
    (told,) = short.problems
    assert "while held-out responses are sampled" in told


def test_what_tokens_were_sampled_among_is_planned(model):
    """4 bytes for each token and id of a device's responses on the host; of a batch 33 for an id, and one for a logit."""
    plain = settings(model(SMALL, "llama"), backend="fsdp")
    hardware = Hardware(devices=2, memory_gib=80)
    assert plan(plain, hardware, LENGTHS).host == []
    for options, left in (({"top_k": 20}, 20), ({"top_p": 0.9}, 64), ({"top_k": 9, "min_p": 0.1}, 9)):
        mask = replace(plain.rollout, group_size=8, keep_sampling_mask=True, **options)
        found = plan(replace(plain, rollout=mask), hardware, LENGTHS)
        (kept,) = found.host
        assert kept.bytes == 4 * (left + 1) * 1024 * 64 * 8 / 2
        more = [
            activations(config, found.models.actor, tokens)
            for config in (found.config, plain)
            for tokens in (1000, 2000)
        ]
        assert (more[1] - more[0]) - (more[3] - more[2]) >= 33 * left * 1000


def test_values_before_the_first_step_are_planned(model):
    """Sixteen responses to each prompt in place of one: as many at a time as the engine decodes, and sixteen times the work for as many prompts."""
    row = layers.load(["a_star_po"], Config).algorithm
    path = model(QWEN2_7B)
    config = settings(path, backend="single", algorithm=replace(row, value_samples=16))
    config = replace(config, rollout=replace(config.rollout, group_size=1, prompts_per_step=8))
    hardware = Hardware(devices=1, memory_gib=80)
    found = plan(config, hardware, LENGTHS)
    plain = AlgorithmConfig(advantage="reinforce", kl_coefficient=0.1)
    step = plan(replace(config, algorithm=plain), hardware, LENGTHS)
    assert step.work.values is None
    values = found.work.values
    assert values.tokens == 1000 * 16 * LENGTHS.answer
    grouped = replace(config, rollout=replace(config.rollout, group_size=16))
    alike = plan(grouped, hardware, LENGTHS)
    assert values.seconds == pytest.approx(alike.work.rollout.seconds * 1000 / 8)
    assert values.flops == pytest.approx(alike.work.rollout.flops * 1000 / 8)
    assert values.seconds > found.work.rollout.seconds * 1000 / 8

    def cache(planned):
        return next(item.bytes for item in planned.items if item.name == "engine cache")

    assert cache(found) == cache(alike)
    assert cache(found) > 8 * cache(step)


def test_values_are_planned_whatever_an_update_divides_a_step_into(model):
    """Measuring has no updates: more of them than it has responses are none of its business."""
    row = replace(layers.load(["a_star_po"], Config).algorithm, value_samples=4)
    config = settings(model(SMALL, "llama"), backend="single", algorithm=row)
    rollout = replace(config.rollout, prompts_per_step=2, group_size=8)
    config = replace(config, rollout=rollout, update=replace(config.update, num_minibatches=16))
    assert plan(config, Hardware(devices=1, memory_gib=80), LENGTHS).items


def test_values_are_those_of_all_devices(model):
    row = replace(layers.load(["a_star_po"], Config).algorithm, value_samples=4)
    config = settings(model(SMALL, "llama"), backend="fsdp", algorithm=row)
    one, eight = (plan(config, Hardware(devices=n, memory_gib=80), LENGTHS).work.values for n in (1, 8))
    assert one.tokens == eight.tokens == 1000 * 4 * LENGTHS.answer
    assert one.flops == pytest.approx(eight.flops)
    assert eight.seconds < one.seconds


def test_a_plan_tells_of_values_before_the_first_step(model, capsys):
    words = [
        "plan",
        "a_star_po",
        "--model.path",
        model(SMALL, "llama"),
        "--gpus",
        "1",
        "--strategy.device",
        "cuda",
    ]
    assert main([*words, "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert (found["values"]["prompts"], found["values"]["devices"]) == (1000, 1)
    assert found["mismatch_correction"] == "none"
    assert main(words) == 0
    assert "once, all 1: 1,000 values" in capsys.readouterr().out
    assert main([*words, "--rollout.engine", "vllm"]) == 0
    assert "algorithm.mismatch_correction is truncate with rollout.engine=vllm" in " ".join(
        capsys.readouterr().out.split()
    )
