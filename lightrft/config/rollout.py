"""How responses are sampled for training, and which of earlier steps are used again."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

from lightrft.config.checks import refuse_idle
from lightrft.config.engines import (
    DenoiseConfig,
    LmdeployConfig,
    NativeEngineConfig,
    ServerConfig,
    SglangConfig,
    UnmaskConfig,
    VllmConfig,
)
from lightrft.config.ranges import check_ranges

EngineSection = (
    NativeEngineConfig
    | DenoiseConfig
    | UnmaskConfig
    | VllmConfig
    | ServerConfig
    | SglangConfig
    | LmdeployConfig
)

SAMPLING = "sampling"
"""rollout.routing_replay: the experts chosen at sampling."""
OFF = "off"
"""rollout.routing_replay: none; routers choose anew in each pass."""
OLD = "old"
"""rollout.routing_replay: those chosen when log-probs at sampling were computed."""


@dataclass(frozen=True, kw_only=True)
class RolloutConfig:
    """How responses are sampled for training."""

    engine: str = "native"
    """native, denoise (pictures of diffusion pipelines), unmask (masked diffusion language models), vllm, vllm_server, sglang, lmdeploy, or the import path of an Engine class."""
    prompts_per_step: int = 8
    """Prompts per training step, over all ranks."""
    group_size: int = 8
    """Responses per prompt (the G of GRPO)."""
    max_tokens: int = 256
    """Maximum tokens per response; longer ones are truncated."""
    temperature: float = 1.0
    """Sampling temperature; trainer log-probs are taken at the same."""
    first_token_temperature: float = 0.0
    """Another temperature, usually a high one, for the first token of each response (FIRE); 0: the same as for the others."""
    first_token_top_k: int = 0
    """Sample the first token of each response among the k likeliest only; 0: like the others."""
    top_k: int = 0
    """Sample among the k most likely tokens; 0: all. Restricting the distribution (top_k, top_p, min_p) leaves the ratio as it is, but
    the mismatch metrics then hold the log of the kept probability as well, unless keep_sampling_mask carries what was left to the trainer."""
    top_p: float = 1.0
    """Sample among the likeliest tokens with this total probability; 1: all."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the likeliest; 0: none."""
    keep_sampling_mask: bool = False
    """Keep with each sampled token which tokens top_k, top_p, min_p and first_token_top_k left, and take log-probs, ratios and entropies of those alone in
    training too, of the policy as of reference and teacher (DeepSeek-V3.2's Keep Sampling Mask). By an engine that tells them: native. false: of all tokens."""
    stop: list[str] = field(default_factory=list)
    """Texts that end a response."""
    max_sampling_rounds: int = 4
    """With algorithm.group_filter other than all (dynamic sampling): maximum rounds of sampling per step before training on what there is."""
    rest_passes: int = 0
    """Curriculum: a prompt whose responses all got the same reward (solved, or hopeless at present) is left out of the next so many passes through
    its task, and then comes back. 0: every pass asks all prompts."""
    priority_floor: float = 1.0
    """Prioritized sampling (Kimi k1.5): a pass through a task draws a prompt with the probability 1 - s, at least this (0.01 to 1), where s is the mean reward (within 0
    and 1) of its responses when it was last sampled. A new prompt is always drawn. 1: every pass asks all prompts."""
    extra_groups: Literal["drop", "carry_over"] = "drop"
    """Extra groups left over after dynamic sampling: drop them, or carry them over to the next step (off-policy by one step)."""
    max_tokens_per_step: int = 0
    """Partial rollout: maximum tokens that a response gets in one step. A longer one goes on in the next step with newer weights (off-policy in
    part); groups are trained on when all their responses have ended. 0: responses end in the step they begin in."""
    overlap_rewards: bool = False
    """Sample the next step while the rewards of this one are computed (asynchronous, one step off-policy)."""
    max_staleness: int = 0
    """Asynchronous rollout: 1: sample the next step, in an engine with memory of its own (vllm_server), while this one is judged and learned from, so that
    responses come from weights one step older (one step off-policy), never more. 0: sampling and learning take turns."""
    routing_replay: Literal["off", "sampling", "old"] = "off"
    """Mixtures of experts: the updates send each token to the experts that were chosen when it was sampled (sampling: R3, by an engine that tells them: native,
    vllm on an accelerator, sglang), or when log-probs at sampling were computed (old: R2, any engine). off: routers choose anew in each pass."""
    max_engine_restarts: int = 2
    """How often in one rollout an engine that died is started again before the run stops."""
    native: NativeEngineConfig = field(default_factory=NativeEngineConfig)
    denoise: DenoiseConfig = field(default_factory=DenoiseConfig)
    unmask: UnmaskConfig = field(default_factory=UnmaskConfig)
    vllm: VllmConfig = field(default_factory=VllmConfig)
    server: ServerConfig = field(default_factory=ServerConfig)
    sglang: SglangConfig = field(default_factory=SglangConfig)
    lmdeploy: LmdeployConfig = field(default_factory=LmdeployConfig)

    def __post_init__(self) -> None:
        check_ranges("rollout", self)
        if "" in self.stop:
            raise ValueError(
                f"rollout.stop={self.stop}: an empty text would end every response at once. Leave it out."
            )
        self._check_engine()

    @property
    def sections(self) -> dict[str, EngineSection]:
        """The engines' own sections by name."""
        return {
            name: getattr(self, name)
            for name in ("native", "denoise", "unmask", "vllm", "server", "sglang", "lmdeploy")
        }

    @property
    def longest(self) -> int:
        """Tokens of a prompt with its response for which the engine was set to keep room; 0: it was not set."""
        return max((part.longest for part in self.sections.values() if self.engine in part.serves), default=0)

    @property
    def tells_experts(self) -> bool:
        """Whether the engine tells which experts it chose; one of a user may."""
        told = any(self.engine in getattr(s, "tells_experts", ()) for s in self.sections.values())
        return told or ":" in self.engine

    @property
    def is_another_program(self) -> bool:
        """Whether the engine computes by other functions than the trainer, so that the two differ by more than rounding; one of a user's own
        is taken to."""
        return not any(
            self.engine in s.serves and getattr(s, "is_own", False) for s in self.sections.values()
        )

    @property
    def samples_from_a_part(self) -> bool:
        """Whether tokens are sampled from a part of the distribution that the trainer knows nothing of, so that engine and trainer are meant
        to differ."""
        return self._restricts and not self.keep_sampling_mask

    @property
    def _restricts(self) -> bool:
        return bool(self.top_k or self.first_token_top_k or self.top_p < 1 or self.min_p)

    @property
    def weighs_prompts(self) -> bool:
        """Whether what was measured decides which prompts are asked."""
        return bool(self.rest_passes) or self.priority_floor < 1

    @property
    def is_late(self) -> bool:
        """Whether responses may come from weights older than those that learn from them, while they are sampled."""
        return bool(self.max_tokens_per_step or self.overlap_rewards or self.max_staleness)

    def samples_beside(self, device: str) -> bool:
        """Whether the engine can sample while a trainer learns on a device of this type (cpu, cuda); one of a user says so itself."""
        places = (
            s.beside for s in self.sections.values() if self.engine in s.serves and hasattr(s, "beside")
        )
        return any(device in place or "any" in place for place in places)

    @property
    def beside_names(self) -> str:
        """Engines that can do so whatever the device, for people."""
        sections = [s for s in self.sections.values() if "any" in getattr(s, "beside", ())]
        return " or ".join(name for section in sections for name in section.serves)

    @property
    def most_entries(self) -> int:
        """Most entries of a response: tokens, or steps that noise enters."""
        learned = (
            getattr(part, "learned", 0) for part in self.sections.values() if self.engine in part.serves
        )
        return max(learned, default=0) or self.max_tokens

    @property
    def entries_are(self) -> str:
        """What they are called."""
        return "denoising steps" if self.begins_with_noise else "tokens"

    @property
    def limit(self) -> str:
        """The setting that bounds how many responses this package's own engine samples at once."""
        return f"rollout.{'denoise' if self.begins_with_noise else 'native'}.max_sequences"

    @property
    def misses_stops(self) -> bool:
        """Whether the engine would miss a text of rollout.stop of which a response has a part when it goes on."""
        part = self.sections.get(self.engine)
        return bool(self.stop) and not getattr(part, "finds_stops_across_steps", False)

    @property
    def begins_with_noise(self) -> bool:
        """Whether responses to one prompt differ at temperature 0, since each begins with noise of its own."""
        return any(
            self.engine in s.serves and getattr(s, "begins_with_noise", False) for s in self.sections.values()
        )

    def _check_engine(self) -> None:
        """Settings of engines that are not used, or what the one that is needs."""
        because = f"rollout.engine={self.engine}"
        for name, section in self.sections.items():
            if self.engine not in section.serves and ":" not in self.engine:
                cure = f"set rollout.engine={section.serves[0]}"
                refuse_idle(f"rollout.{name}", section, because=because, cure=cure)
        self._check_staleness(because)
        if self.denoise.same_start and self.group_size == 1:
            raise ValueError(
                "rollout.denoise.same_start=true with rollout.group_size=1: it is for the pictures of one prompt, and there is one. Set "
                "rollout.group_size=8, or leave rollout.denoise.same_start out."
            )
        self._check_sampling_mask(because)
        if self.routing_replay == SAMPLING and not self.tells_experts:
            able = ", ".join(name for s in self.sections.values() for name in getattr(s, "tells_experts", ()))
            raise ValueError(
                f"rollout.routing_replay={SAMPLING} with {because}: that engine does not tell which experts it chose ({able} do). Set "
                f"rollout.routing_replay={OLD}, or another rollout.engine."
            )
        if self.max_tokens_per_step >= self.max_tokens:
            raise ValueError(
                f"rollout.max_tokens_per_step={self.max_tokens_per_step} has no effect with rollout.max_tokens={self.max_tokens}. Set it below, e.g. "
                "to a quarter, or to 0."
            )
        if self.max_tokens_per_step and self.misses_stops:
            raise ValueError(
                f"rollout.max_tokens_per_step={self.max_tokens_per_step} with rollout.stop and {because}: a stop text that lies across two steps would be "
                "missed. Leave one of them out, or set rollout.engine=native."
            )

    def _check_sampling_mask(self, because: str) -> None:
        """What sampling left is kept where it left a part, by an engine that tells which; one of a user may."""
        if not self.keep_sampling_mask:
            return
        if not self._restricts:
            raise ValueError(
                "rollout.keep_sampling_mask=true has no effect where all tokens may be sampled. Set rollout.top_p, top_k, min_p or first_token_top_k, "
                "or leave it out."
            )
        able = [name for s in self.sections.values() for name in getattr(s, "tells_support", ())]
        if self.engine not in able and ":" not in self.engine:
            raise ValueError(
                f"rollout.keep_sampling_mask=true with {because}: that engine does not tell which tokens it sampled among ({', '.join(able)} does). Set "
                "rollout.engine=native, or rollout.keep_sampling_mask=false."
            )

    def _check_staleness(self, because: str) -> None:
        """Sampling beside learning needs an engine with memory of its own, and responses that end in one rollout."""
        if not self.max_staleness:
            return
        setting = f"rollout.max_staleness={self.max_staleness}"
        if ":" not in self.engine and not self.samples_beside("cpu"):
            raise ValueError(
                f"{setting} with {because}: that engine has its memory from the trainer, so that the two take turns. Set rollout.engine={self.beside_names}, "
                "with servers on devices of their own, or rollout.overlap_rewards=true."
            )
        if self.overlap_rewards:
            raise ValueError(
                f"rollout.overlap_rewards=true has no effect with {setting}, which samples while rewards are computed and while the step learns. Leave "
                "rollout.overlap_rewards out."
            )
        if self.extra_groups == "carry_over":
            raise ValueError(
                f"rollout.extra_groups=carry_over with {setting}: what is carried over to the next step would be older than that. Leave one of them out."
            )
        if self.max_tokens_per_step:
            raise ValueError(
                f"rollout.max_tokens_per_step={self.max_tokens_per_step} with {setting}: responses that go on over several steps would be older than that. "
                "Leave one of them out."
            )


@dataclass(frozen=True, kw_only=True)
class ReplayConfig:
    """Experience replay: responses of earlier steps, trained on again (off-policy) with the log-probs of the policy that sampled them."""

    groups_per_step: int = 0
    """Groups of earlier steps that each step learns from again, over all ranks; 0: none."""
    max_age: int = 4
    """Steps after which a response is not used any more."""

    def __post_init__(self) -> None:
        check_ranges("replay", self)
