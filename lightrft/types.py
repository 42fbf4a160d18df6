"""The whole data model: Message -> Record -> Prompt -> Completion -> Trajectory -> Batch.

Letters used for tensor shapes everywhere in this project:

    P   tokens of a prompt              L   tokens of a response (everything after the prompt)
    S   sequences (responses) in a batch  T   response tokens in a batch: the sum of L over its S sequences
    N   tokens the model reads          R   position rows (1 for text, more for multi-axis rotary positions)
    V   vocabulary                      H   hidden size

Everything is packed: sequences are laid end to end and never padded. A *column* is ``(T,)`` and entry *t* speaks
about response token *t*; prompts carry no columns, because no algorithm may learn from a token it did not choose.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from math import nan
from typing import TYPE_CHECKING, Any, Literal, TypedDict

if TYPE_CHECKING:  # rows, tasks and rewards are read without torch
    from torch import Tensor

Finish = Literal["stop", "length"]
"""How an engine left a response: at its end, or truncated at the most tokens allowed."""
Ending = Literal[Finish, "turns", "paused"]


class Message(TypedDict):
    """One turn of a conversation; ``content`` is text, or a list of content parts (``{"type": "image", ...}``)."""

    role: str
    content: Any


OPENING = "[the environment begins]"
"""Content of a message of a row in whose place the environment's first observation comes."""


@dataclass(frozen=True, slots=True)
class Record:
    """One row of a data set in the form every task shares: what to ask, and what is right.

    Example:
        >>> Record("gsm8k/test.jsonl:7", [{"role": "user", "content": "2 + 3?"}], target="5", source="gsm8k").target
        '5'
    """

    id: str  # where the row stands, unlike that of any other
    messages: list[Message]  # what to ask, up to the turn to be answered
    target: Any  # the reference answer, for rewards
    source: str
    """Name of the task it came from; selects the reward."""
    columns: Mapping[str, Any] = field(default_factory=dict)  # all fields of the row


@dataclass(frozen=True, slots=True)
class Continuation:
    """The response whose beginning a prompt ends with, to go on with it."""

    tokens: int
    """How many of the prompt's last tokens belong to it."""
    stream: int
    """What fixes its random numbers, as its first completion said."""
    max_tokens: int
    """Most tokens that may be added now."""
    mask: Sequence[bool] = ()
    """(tokens,) which of its tokens the policy chose; empty: all. Others came in between, as what a tool replied does."""

    @property
    def since(self) -> int:
        """Place of its first token after the last one that the policy did not choose: only from there stop texts count."""
        return max((place + 1 for place, chosen in enumerate(self.mask) if not chosen), default=0)


@dataclass(frozen=True, slots=True)
class Prompt:
    """One prompt, already in the model's tokens.

    Example:
        >>> prompt = Prompt("gsm8k/test.jsonl:7", [5, 10, 6], [{"role": "user", "content": "2 + 3?"}], "5", "gsm8k")
        >>> len(prompt.token_ids), prompt.positions, prompt.continuation
        (3, None, None)
    """

    id: str
    """Stable across epochs and resumes; names the prompt, not the group."""
    token_ids: list[int]
    """(P,) as the trainer's model reads them, chat template and generation prompt included."""
    messages: list[Message]  # what the tokens say
    target: Any  # the reference answer, for rewards
    source: str  # name of the task it came from
    positions: Tensor | None = None
    """(R, P) for models with multi-axis rotary positions, else None."""
    media: Mapping[str, Tensor] = field(default_factory=dict)
    """Forward keywords such as pixel_values; concatenated along dim 0 when packed."""
    width: int = 0
    """Positions read for each entry of a response by a model that reads the prompt with each (a denoising step); 0: entries are tokens."""
    unexpanded_token_ids: Sequence[int] = ()
    """The prompt's tokens with one mark for each medium, as engines that read media by themselves want it; empty without."""
    episode: int | None = None  # seed of its environment, once begun, for whatever answers the prompt again
    columns: Mapping[str, Any] = field(default_factory=dict)  # fields of the row that a reward asks for
    row: list[Message] | None = None
    """The messages of the row, where others stand above because of what its environment said first."""
    continuation: Continuation | None = None
    """Set where a response goes on that was paused earlier: an engine then gives one response, whatever `sampling.n`, and of it
    what is new."""


@dataclass(frozen=True, slots=True)
class Completion:
    """What an engine samples for one prompt.

    Example (token 2 ends a response here; the second was cut, and has none):
        >>> Completion(token_ids=[8, 2], logprobs=[-0.7, -0.1], finish="stop").finish
        'stop'
        >>> Completion(token_ids=[9, 9], logprobs=[-2.3, -1.2], finish="length").finish
        'length'
    """

    token_ids: list[int]
    """(L,) only sampled tokens; ends with a stop token iff one was sampled."""
    logprobs: list[float]
    """(L,) log p of each token under the distribution it was sampled from (temperature, top-k/p and min-p applied)."""
    finish: Finish  # stop: at its end; length: truncated at the most tokens allowed
    weight_version: int = 0
    """Number of updates the weights that sampled it had seen."""
    stream: int = 0
    """What fixes its random numbers, for the same engine to go on with it."""
    states: Tensor | None = None
    """Where an entry is the number of a step, no token: (L, 2 or 3, ...) float32, the states before and after each, and the mean it was drawn around where that is kept. Of unmasked tokens: (L, 2) int64, the step that revealed each, and the tokens of its canvas."""
    experts: Tensor | None = None  # (n, M, K) of the last n tokens read, models/experts.py
    support: tuple[Tensor, Tensor] | None = None  # if Sampling.support asks for it, models/supports.py
    made: Mapping[str, Any] = field(default_factory=dict)
    """Where an entry is the number of a step: what was made, by kind, e.g. {"image": (H, W, 3) uint8 array}."""


Origin = Literal["sampled", "carried_over", "replayed", "given"]
Use = Literal["trained", "masked", "unselected", "filtered_out", "extra", "waiting", "failed", "held_out"]


@dataclass(slots=True)
class Trajectory:
    """A prompt, what followed, and what is known about it. Filled by the phases in turn.

    Example (rollout fills the first line, scoring the second, the advantages the third):
        >>> prompt = Prompt("gsm8k/test.jsonl:7", [5, 10, 6], [{"role": "user", "content": "2 + 3?"}], "5", "gsm8k")
        >>> t = Trajectory(prompt, 16, [8, 2], [True, True], [-0.7, -0.1], "stop", answer="5")
        >>> t.reward, t.parts = 1.0, {"math": 1.0}
        >>> t.columns["advantages"] = torch.tensor([0.87, 0.87])
        >>> len(t)
        2
    """

    prompt: Prompt  # what it follows
    group: int
    """Siblings (responses sampled together for one prompt) share it. Never derived from the text of the prompt."""
    token_ids: list[int]  # (L,) everything after the prompt
    mask: list[bool]
    """(L,) True where the policy chose the token."""
    behavior: list[float]
    """(L,) log-probs at sampling; 0 where mask is False."""
    finish: Ending
    """turns: ended at environment.max_turns. paused: stopped at rollout.max_tokens_per_step, to go on in the next step; nobody learns
    from it before."""
    answer: str = ""
    """The response decoded, special tokens left out; of a conversation with an environment the policy's last turn."""
    said: list[Message] = field(default_factory=list)
    """The turns of the policy and the replies between them, where an environment replies; empty where none does."""
    step_rewards: list[float] = field(default_factory=list)  # by the environment, a turn each
    forks: list[Trajectory] = field(default_factory=list)
    """More rows of the conversation, see responses.py: fork."""
    failed: str = ""
    """Why the environment could not go on, so that the response has no reward; empty: it could."""
    reward: float = nan  # its parts, weighted and summed; NaN: none yet
    parts: dict[str, float] = field(default_factory=dict)  # reward by name, unweighted
    baseline: float = nan
    """Reward of another response to the same prompt to compare with, where the algorithm asks for one; NaN: unknown."""
    baseline_parts: dict[str, float] = field(default_factory=dict)  # the baseline's reward by name
    columns: dict[str, Tensor] = field(default_factory=dict)
    """name -> (L,) float32 on the CPU: old, entropy, ref, teacher, values, rewards, advantages, returns, and so on."""
    learned: dict[str, Tensor] = field(default_factory=dict)  # as columns: Terms.tokens, for people
    weight_version: int = 0  # updates seen by the weights that sampled its first token
    stream: int = 0  # of random numbers, as in Completion
    states: Tensor | None = None  # as in Completion
    made: Mapping[str, Any] = field(default_factory=dict)  # as in Completion
    reference: Tensor | None = None  # (L, ...) means of its steps under the reference
    experts: Tensor | None = None  # (P + L - 1, M, K) those of all tokens but the last, models/experts.py
    support: tuple[Tensor, Tensor] | None = None  # what each token was drawn among, models/supports.py
    stale: int = 0
    """How many of its first tokens were sampled by weights older than those it is learned from."""
    origin: Origin = "sampled"
    """How it came into the present step: rewarded in it, carried over from the one before, from the replay buffer, or from the data."""
    use: Use = "trained"
    """What the present step does with it. masked: no token is learned from (algorithm.truncated=mask); unselected: left out by
    algorithm.response_filter; filtered_out: with its group, by algorithm.group_filter; extra: its group was one too many; waiting: it
    is carried over to the next step; failed: it has no reward."""

    def __len__(self) -> int:
        return len(self.token_ids)

    @property
    def num_chosen(self) -> int:
        """How many of its tokens the policy sampled; the others are replies of an environment, of which behavior is 0."""
        return len(self) if not self.said else sum(self.mask)


GroupOfTrajectories = Sequence[Trajectory]


@dataclass(frozen=True, slots=True)
class Inputs:
    """What the model reads for one batch: each prompt once, followed by the responses that continue it.

    Example (prompt 5 10 6 with the responses 8 2 and 9, which do not see each other):
        >>> inputs = Inputs(
        ...     token_ids=torch.tensor([5, 10, 6, 8, 2, 9]),
        ...     positions=torch.tensor([0, 1, 2, 3, 4, 3]),
        ...     prompt_spans=((0, 3), (0, 3)),
        ...     response_spans=((3, 5), (5, 6)),
        ...     targets=torch.tensor([8, 2, 9]),
        ...     predict=torch.tensor([2, 3, 2]),
        ... )
        >>> inputs.token_ids[inputs.predict].tolist()  # the last token that each response token is predicted from
        [6, 8, 6]
    """

    token_ids: Tensor
    """(N,) int64"""
    positions: Tensor
    """(N,) int64: 0..P-1 over a prompt, and P.. over each of its responses; or (R, N)."""
    prompt_spans: tuple[tuple[int, int], ...]
    """Per sequence, start and end in N of the prompt it continues; siblings share one span."""
    response_spans: tuple[tuple[int, int], ...]
    """Per sequence, start and end in N of its response."""
    targets: Tensor
    """(T,) int64: the response tokens, which are predicted."""
    predict: Tensor
    """(T,) int64: the position in N whose hidden state predicts response token t. The only shift by one there is."""
    chosen: Tensor | None = None
    """(K,) int64: the response tokens whose log-probs are wanted, where others stand between, as replies of an environment do; None: all."""
    support: Tensor | None = None  # (2, M) int64, models/supports.py; None: all was drawn from all
    media: Mapping[str, Tensor] = field(default_factory=dict)
    experts: Tensor | None = None  # (N, M, K) int16 to be replayed; -1: the router's own
    counted: Tensor | None = None  # (N,) float32, in how many sequences a token is read that another follows
    team: Any = None  # the process group whose ranks compute this batch together; None: each its own

    @property
    def read(self) -> int:
        """Tokens the model reads."""
        return int(self.token_ids.numel())

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Per sequence, tokens of its prompt and of its response."""
        return [(b - a, d - c) for (a, b), (c, d) in zip(self.prompt_spans, self.response_spans, strict=True)]


@dataclass(frozen=True, slots=True)
class Steps:
    """What a denoising model reads for one batch: a row for each step that noise entered, each prompt's conditions once."""

    states: Tensor
    """(T, 2 or 3, ...) float32: the states before and after each step, and the mean it was drawn around where that is kept."""
    places: Tensor
    prompts: Tensor
    """(T,) int64 each: which step of the schedule it is, and which row of `media`, one for each prompt, conditions it."""
    lengths: tuple[int, ...]
    width: int  # of its Prompt
    media: Mapping[str, Tensor] = field(default_factory=dict)
    reference: Tensor | None = None  # (T, ...)
    team: Any = None

    @property
    def read(self) -> int:
        """Positions the model reads: `width` for each step."""
        return self.width * int(self.places.numel())

    @property
    def spans(self) -> list[tuple[int, int]]:
        """Per sequence, positions of its prompt, which are read with each step, and of its `lengths` steps."""
        return [(0, n * self.width) for n in self.lengths]


@dataclass(slots=True)
class Batch:
    """S responses laid end to end: T response tokens, no padding. Columns are (T,) float32 unless said otherwise.

    Example (the two responses of the example of `Inputs`, of group 16):
        >>> batch = Batch(
        ...     segments=torch.tensor([0, 0, 1]),
        ...     groups=torch.tensor([16, 16]),
        ...     mask=torch.tensor([True, True, True]),
        ...     scores=torch.tensor([1.0, 0.0]),
        ...     weights=torch.tensor([0.25, 0.25, 0.5]),  # the mean of each response's mean
        ...     behavior=torch.tensor([-0.7, -0.1, -2.3]),
        ... )
        >>> batch.num_sequences, batch.num_tokens
        (2, 3)
    """

    segments: Tensor
    """(T,) int64, which sequence: 0..S-1, non-decreasing."""
    groups: Tensor
    """(S,) int64, which group a sequence belongs to."""
    mask: Tensor
    """(T,) bool, True where the policy chose the token; only these enter a policy loss."""
    scores: Tensor
    """(S,) float32, what each whole response is worth: its reward, processed (trainer/scaler.py)."""
    weights: Tensor
    """(T,) float32, 0 outside mask; the averaging, see algorithms/averaging.py."""
    behavior: Tensor  # log-probs of the tokens when they were sampled
    grades: Tensor | None = None
    """(S, K) float32, what each response is worth by each of K outputs of a reward model that learns; NaN: not graded. In
    reinforcement learning each part of its reward, where the algorithm asks for them; NaN: its task has no such part."""
    part_weights: Tensor | None = None
    """(S, K) float32, the weight of each part in the reward; 0 where a task has no such part."""
    baselines: Tensor | None = None  # (S,) float32, the score of what each response is compared with
    turn_rewards: Tensor | None = None  # of each turn, at its last chosen token; 0 elsewhere
    old: Tensor | None = None  # their log-probs under the weights that this step began with
    entropy: Tensor | None = None  # of the distribution each token was sampled from, nats
    squares: Tensor | None = None  # sum over the vocabulary of p^2, of the same distribution
    ref: Tensor | None = None  # under the reference
    teacher: Tensor | None = None  # under the teacher
    values: Tensor | None = None  # of the critic, before each token
    cost_values: Tensor | None = None  # the same of constraint.cost
    rewards: Tensor | None = None  # of each token, with what is taken off for divergence
    advantages: Tensor | None = None  # how much better each token was than expected
    returns: Tensor | None = None  # what the critic learns to say
    cost_returns: Tensor | None = None  # and of constraint.cost
    divergence: Tensor | None = None  # from the reference in closed form, with its gradient
    step_weights: Tensor | None = None  # of the policy loss, by steps of drawing
    moved: Tensor | None = None  # from the policy that drew it, in closed form, with its gradient
    marks: Tensor | None = None  # by the loss, see algorithms/surveys.py
    inputs: Inputs | Steps | None = None  # what the model reads; None where only columns are needed

    @property
    def num_sequences(self) -> int:
        """S, the number of responses."""
        return int(self.groups.numel())

    @property
    def num_tokens(self) -> int:
        """T, the number of response tokens of all responses."""
        return int(self.segments.numel())


@dataclass(frozen=True, slots=True)
class Sampling:
    """How an engine samples responses. Defaults sample from the model's own distribution.

    Example:
        >>> Sampling(n=8, max_tokens=512, temperature=0.7, stop=("</answer>",), seed=3).top_p
        1.0
    """

    n: int = 1  # responses per prompt
    max_tokens: int = 256  # of a response
    temperature: float = 1.0
    """Logits are divided by it; 0 takes the most likely token."""
    first_token_temperature: float = 0.0
    """Another temperature for the first token of each response (FIRE); 0: the same as for the others. Has no effect at temperature 0."""
    first_token_top_k: int = 0
    """Keep only so many tokens for the first one of each response; 0: as for the others. Has no effect at temperature 0."""
    top_k: int = 0  # keep the k most likely tokens; 0 keeps all
    top_p: float = 1.0
    """Keep the smallest set of tokens with at least this probability."""
    min_p: float = 0.0
    """Drop tokens less likely than this share of the most likely one."""
    stop: tuple[str, ...] = ()  # texts that end a response; the text is kept
    stop_token_ids: tuple[int, ...] = ()
    """Tokens that end a response, besides the model's own end tokens."""
    ignore_eos: bool = False
    """Go on to max_tokens whatever is sampled (benchmarks)."""
    seed: int = 0
    """With the prompt's place and the sample's number it fixes every random number."""
    first_index: int = 0
    """Place of the call's first prompt among those of all ranks, so that what is sampled does not depend on who samples it."""
    index_stride: int = 1  # how far apart the call's prompts stand there
    support: bool = False  # whether responses tell what each token was drawn among


@dataclass(frozen=True, slots=True)
class Terms:
    """What a loss function gives back: one number per token, and what is worth logging.

    Example:
        >>> terms = Terms(torch.tensor([-0.9, -1.1, 1.0]), {"clip_fraction": torch.tensor([0.0, 1.0, 0.0])})
        >>> float((terms.loss * torch.tensor([0.25, 0.25, 0.5])).sum())  # by the weights of the example of `Batch`
        0.0
    """

    loss: Tensor
    """(T,) not averaged: the caller multiplies by ``batch.weights`` and sums."""
    metrics: dict[str, Tensor] = field(default_factory=dict)
    """name -> (T,) per-token diagnostics, averaged over the mask for the log."""
    ratios: dict[str, tuple[Tensor, Tensor]] = field(default_factory=dict)
    """name -> () sum and () count of what is counted otherwise than by token, e.g. by pair: the log has their ratio over a whole update."""
    tokens: dict[str, Tensor] = field(default_factory=dict)  # name -> (T,) to be saved, no gradient
    auxiliary: Tensor | None = None  # () a loss beside that of tokens, averaged already
