"""Every metric of a run with its meaning, and how per-token diagnostics become one number."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lightrft.models.operations import Operations
from lightrft.parallel.world import World
from lightrft.trainer.diversity import diversity
from lightrft.types import Batch, Inputs, Trajectory

METRICS: dict[str, str] = {
    "reward/mean": "mean reward of the step's responses, as sampled (before any group is left out)",
    "reward/std": "population standard deviation of those rewards",
    "reward/PART": "mean of one reward function over the responses of tasks that have it, unweighted",
    "reward/overlong": "mean share of algorithm.overlong_penalty that a response pays for its length; only with algorithm.overlong_buffer",
    "reward/zero_std_fraction": "share of groups whose rewards are all equal, so that nothing can be learned from them; not where all groups are of one response",
    "length/mean": "mean tokens of a response",
    "length/max": "most tokens of a response",
    "length/truncated_fraction": "share of responses truncated at rollout.max_tokens",
    "entropy": "mean entropy of the next-token distribution over the learned tokens, nats, at the sampling temperature",
    "kl": "mean estimated divergence from the reference model (algorithm.kl); only with a reference",
    "entropy_coefficient": "weight of the entropy bonus in this step, which algorithm.entropy_target moves; only with that",
    "kl_coefficient": "algorithm.kl_coefficient in this step, which algorithm.kl_target moves; only with a reference",
    "teacher_kl": "mean estimated divergence from the teacher (k3); only with a teacher",
    "constraint/multiplier": "what a unit of constraint.cost takes off the reward in this step; its mean is reward/PART",
    "approx_kl": "mean estimated divergence of the policy from the one that sampled (k3)",
    "ratio/mean": "mean of new / old probability of a token; 1 at the first update of a step",
    "clip/fraction": "fraction of tokens whose gradient the clip stops",
    "clip/low": "fraction of tokens that it stops with a ratio below 1",
    "clip/high": "fraction of tokens that it stops with a ratio above 1",
    "clip/dual": "fraction of all learned tokens that the dual clip stops, each with a negative advantage; only with algorithm.options.dual_clip",
    "loss": "the weighted loss, averaged over the updates of the step",
    "update/token_budget_used": "share of update.tokens_per_micro_batch that micro-batches fill on average, in tokens read",
    "update/padding_avoided": "share of padding if the responses of an update were laid out as a rectangle, prompts and responses each as long as the longest",
    "update/skipped_responses": "responses of an update that were not read because their advantages are all 0, or none of their tokens is learned from, all ranks, averaged over the updates of the step; only with update.skip_zero_advantage",
    "update/rank_balance": "tokens read by a rank on average / by the busiest rank; 1 is even; only with several ranks",
    "grad_norm": "global gradient norm before clipping, averaged over the updates of the step",
    "learning_rate": "learning rate of the step's last update",
    "loss_scale": "factor of the loss, averaged over the step's updates; only with model.dtype=float16",
    "mismatch/mean_abs": "mean of |log p by trainer - log p by engine| of the sampled tokens, same weights; 0 for a token of older weights, which keeps the engine's",
    "mismatch/max": "its maximum; far above 0.1 in float32 points to a wrong temperature, template or stale weights",
    "mismatch/perplexity_ratio": "perplexity of the sampled tokens by the trainer / by the engine, same weights; 1 is no mismatch",
    "mismatch/ratio": "mean of p by trainer / p by engine of the sampled tokens, same weights",
    "mismatch/effective_samples": "effective sample size of the sampled tokens under the ratios p by trainer / p by engine, as a share: mean squared over mean of squares; 1 is no mismatch",
    "mismatch/chi_square": "chi-square divergence of trainer from engine: mean of (p by trainer / p by engine)^2 of the sampled tokens - 1; 0 is no mismatch",
    "mismatch/beyond_limit": "share of tokens whose weight algorithm.mismatch_limit cuts; where algorithm.mismatch_correction is none, by setting or by auto, would cut",
    "router/busiest_expert": "tokens of the busiest expert / of an expert on average, mean over layers; 1 is even; only of mixtures of experts whose routers are known, as all of router/",
    "router/load_entropy": "entropy of how tokens are shared out to experts / that of an even share, mean over layers",
    "router/idle_experts": "share of experts that got no token in an update",
    "router/aux_loss": "load-balancing loss of the routers without its coefficient, experts per token if the load is even; not part of loss; only with algorithm.router_aux_coefficient",
    "router/replayed": "share of choices of experts that were replayed; only with rollout.routing_replay, as the next one",
    "router/replay_changed": "share of replayed choices that the router would not have made now",
    "off_policy/masked": "share of tokens not learned from because the policy has left their bad response behind; only with algorithm.off_policy_mask_limit",
    "critic/explained_variance": "1 - Var(return - value) / Var(return) before the update; 1 is a perfect critic, 0 knows the mean only. Under a constraint of returns and values of the reward less those of the cost, as the multiplier weighs them",
    "critic/reward_explained_variance": "explained variance of the values of the reward; only with constraint.cost",
    "critic/cost_explained_variance": "explained variance of the values of constraint.cost",
    "critic/cost_value": "mean value of constraint.cost by the critic, averaged over its updates",
    "critic/value": "mean value of the reward by the critic, averaged over its updates; only with a critic, as all of critic/",
    "critic/loss": "its loss, with constraint.cost the sum of both losses, averaged over its updates of the step",
    "critic/grad_norm": "its gradient norm before clipping",
    "critic/learning_rate": "its learning rate, averaged over its updates of the step",
    "critic/clip_fraction": "share of tokens at which critic.value_clip holds it back; with constraint.cost the mean of both shares",
    "critic/counts/loss_overflows": "its updates skipped because the gradient of the scaled loss was too large for float16, in this step",
    "critic/loss_scale": "factor of its loss, with model.dtype=float16",
    "critic/counts/skipped_updates": "its updates skipped for a NaN or infinite loss or gradient, in this step",
    "diversity/image": "standard deviation of a pixel (from -1 to 1) over the pictures for one prompt, mean over pixels and prompts; only of models that draw",
    "rollout/oldest_weight_version": "updates the weights had seen that sampled this step's responses, or the oldest token among them",
    "rollout/tokens_per_second": "sampled tokens per second of the rollout phase",
    "rollout/tokens_per_second_per_device": "the same of one rank, on average",
    "rollout/read_tokens": "tokens that the model has read while sampling, all ranks: a prompt once for its responses; only of an engine that tells",
    "rollout/turns": "mean turns of the policy in a response; only with an environment, as the next ones",
    "rollout/max_turns_fraction": "share of responses that ended at environment.max_turns",
    "rollout/reply_tokens": "mean tokens of a response that its environment said; length/ counts those of the policy alone",
    "environment/COUNT": "what an environment counts, all ranks; of tools calls, and errors, calls that the policy was told are wrong; of agent programs requests that were refused",
    "environment/forks": "rows that conversations have besides their first (environment.forks)",
    "environment/restarted": "conversations begun again because their environment failed, or another one in its process",
    "environment/failed": "conversations left out because their environment failed more often than environment.retries",
    "environment/seconds": "time in which replies of environments were waited for, summed over ranks",
    "rollout/sampling_rounds": "rounds of sampling; more than one only with algorithm.group_filter",
    "rollout/off_policy_fraction": "share of the step's tokens that older weights sampled; only with rollout.max_tokens_per_step, rollout.overlap_rewards or rollout.max_staleness, or where a resume left some",
    "rollout/staleness": "updates that the weights have seen since they sampled a response's first token, mean over the step's responses, before its own updates; only with the same",
    "rollout/groups_unfinished": "groups whose responses go on in the next step, all ranks; only with the same",
    "rollout/prompts_resting": "prompts that are left out at present, because their responses all got the same reward; only with rollout.rest_passes",
    "rollout/priority": "how likely a pass draws a prompt, the mean over all prompts; only with rollout.priority_floor below 1",
    "rollout/groups_filtered_out": "groups sampled and not learned from (algorithm.group_filter), all ranks",
    "rollout/groups_carried_over": "surplus groups that wait for the next step, all ranks; only with rollout.extra_groups=carry_over",
    "seconds/rollout": "time sampling responses, on the rank where it took longest, as all seconds/",
    "seconds/score": "time for rewards, old and reference log-probs, advantages",
    "seconds/sync": "time bringing new weights to the engine",
    "seconds/train": "time for gradients and updates",
    "seconds/wait": "time in which the step waited for responses that were sampled beside the one before; only with rollout.max_staleness",
    "seconds/step": "time of the whole step",
    "straggler/PHASE": "time that the slowest rank worked in a phase / the mean of all ranks, waiting for others left out; 1 is even; only with several ranks",
    "straggler/rank/PHASE": "which rank that is",
    "memory/rss_gib": "host memory held at the end of the step, largest rank, GiB",
    "memory/device/PHASE": "most device memory allocated in a phase, moving in and out included, largest rank, GiB; only on an accelerator",
    "counts/offload_gib": "GiB copied between device and host memory by strategy.offload since the last step, all ranks; only on an accelerator",
    "offload/gib_per_second": "rate of those copies, both directions together, of a rank; only on an accelerator",
    "memory/peak_gib": "most host memory ever held, largest rank, GiB",
    "counts/dropped_responses": "responses dropped because a reward failed (rewards.on_failure=drop)",
    "counts/failed/PART": "failures of one reward function",
    "counts/judge_comparisons": "comparisons of two responses with a verdict of the judge in both orders, all ranks; only with judge.against",
    "counts/judge_contradictions": "those whose two verdicts contradict each other, half a win for both",
    "counts/judge_failed_comparisons": "comparisons without a verdict in both orders, which do not count",
    "counts/loss_overflows": "updates skipped because the gradient of the scaled loss was too large for float16, in this step; the scale is then halved",
    "counts/skipped_updates": "updates skipped for a NaN or infinite loss or gradient, in this step",
    "counts/tokens_read": "tokens that the updates of the step read, each prompt once per micro-batch, all ranks",
    "counts/teraflop": "floating-point operations of the step's updates, 10^12, forward and backward, all ranks; recomputed activations, and towers that read media, left out",
    "critic/counts/teraflop": "the same of the critic",
    "counts/responses": "responses sampled and judged in this step, all ranks, whether or not they are learned from",
    "evaluation/TASK": "held-out score of a task: mean reward of the task's own reward function",
    "evaluation/mean": "the scores of all evaluation tasks, weighted",
    "nll": "mean of -log p over the tokens that are learned, nats; this and what follows only in supervised fine-tuning",
    "epoch": "passes over the training conversations so far",
    "counts/tokens_learned": "tokens the assistant says in this step's conversations, all ranks",
    "train/tokens_per_second": "tokens read per second of the train phase, forward and backward, all ranks",
    "train/tokens_per_second_per_device": "tokens read per second of the train phase on one rank, on average; in reinforcement learning too",
    "train/teraflops_per_device": "floating-point operations per second of the train phase on one device, on average, 10^12; not of models that draw",
    "train/mfu": "model FLOPs utilization: the same as a share of strategy.peak_teraflops, or of the rate known of the device; else absent",
    "held_out_nll/TASK": "nll on the held-out conversations of a task",
    "held_out_nll/mean": "the same of all tasks, weighted",
    "error": "mean squared error of what a diffusion pipeline predicts of noised pictures, the velocity of a flow; only in supervised fine-tuning of one",
    "held_out_error/TASK": "error on the held-out pictures of a task",
    "held_out_error/mean": "the same of all tasks, weighted",
    "pairs/accuracy": "share of the pairs of a prompt's responses that the step's model orders as their grades do, a tie counting half, and a prompt without pairs; only when a reward model is trained, in lightrft dpo, and with losses of online preferences, whose grades are rewards",
    "pairs/TASK/OUTPUT/MEASURE": "the same on the held-out pairs of a task, by output: accuracy with low and high of its 95 % interval, tied, longer_wins, shorter_wins, accuracy_longer, accuracy_shorter, accuracy_balanced, sign_accuracy, sign_base_rate, pairs",
    "pairs/mean": "held-out accuracy, the mean over outputs and weighted over tasks",
    "pairs/margin": "mean over the step's pairs of what the better response is worth more than the worse one, as the loss reads them, without beta; only in lightrft dpo, as what follows, and with losses of online preferences",
    "logp_shift/chosen": "mean of log p of a better response minus what the reference gives it, nats; only with a reference, as all of logp_shift/",
    "logp_shift/rejected": "the same of the worse responses",
    "logp_shift/mean_abs": "mean of |log p - log p by the reference| of a token of the given responses",
    "kto/divergence": "z0 of kto: mean log-ratio of policy and reference of responses to other prompts of the step, at least 0, before the update",
    "counts/responses_graded": "responses of this step that have a grade, all ranks",
}


@dataclass
class TokenMeans:
    """Sums of per-token diagnostics over micro-batches; means over all masked-in tokens of all ranks at the end.

    Sums stay where the batches are until they are asked for: no micro-batch waits for a device.
    """

    totals: dict[str, Tensor] = field(default_factory=dict)
    """() float64 each, as all here."""
    largest: dict[str, Tensor] = field(default_factory=dict)
    tokens: Tensor = field(default_factory=lambda: torch.zeros((), dtype=torch.float64))
    sums: dict[str, Tensor] = field(default_factory=dict)
    counts: dict[str, Tensor] = field(default_factory=dict)

    def add(self, metrics: dict[str, Tensor], mask: Tensor) -> None:
        """Each metric is (T,); names ending in /max keep their maximum, which is at least 0."""
        self.tokens = mask.sum() + self.tokens
        for name, values in metrics.items():
            chosen = _chosen(values.detach(), mask).double()
            none = torch.zeros((), dtype=torch.float64, device=chosen.device)
            if name.endswith("/max"):
                here = chosen.amax() if chosen.numel() else none
                self.largest[name] = torch.fmax(self.largest.get(name, none), here)
            else:
                self.totals[name] = self.totals.get(name, none) + chosen.sum()

    def add_ratios(self, ratios: dict[str, tuple[Tensor, Tensor]]) -> None:
        """Sums and counts of what is counted otherwise than by token."""
        for name, parts in ratios.items():
            for kept, part in zip((self.sums, self.counts), parts, strict=True):
                kept[name] = kept[name] + part.detach().double() if name in kept else part.detach().double()

    def result(self, world: World) -> dict[str, float]:
        """Name -> number, the same on all ranks. Nothing where no rank had a token: a mean of none is no number."""
        tokens = float(world.sum(self.tokens.cpu()))
        if not tokens:
            return {}
        # A rank without tokens has no names.
        means = {name: total / tokens for name, total in world.sum_by_name(_floats(self.totals)).items()}
        counts = world.sum_by_name(_floats(self.counts))
        sums = world.sum_by_name(_floats(self.sums))
        ratios = {name: sums[name] / count for name, count in counts.items() if count}
        return means | world.max_by_name(_floats(self.largest)) | ratios


def _chosen(values: Tensor, mask: Tensor) -> Tensor:
    """The values in the mask; on an accelerator, whose number of them would have to be waited for, with zeros for the others."""
    return values[mask] if values.device.type == "cpu" else torch.where(mask, values, 0.0)


def _floats(sums: dict[str, Tensor]) -> dict[str, float]:
    """Sums as Python's numbers, all fetched at once."""
    return dict(zip(sums, torch.stack(list(sums.values())).tolist(), strict=True)) if sums else {}


@dataclass
class Layout:
    """What the micro-batches of one update are made of."""

    batches: int = 0
    tokens: int = 0
    """Read by the model: each prompt once per batch."""
    answers: int = 0
    whole: int = 0
    """Tokens of all responses, each with its prompt."""
    longest_prompt: int = 0
    longest_answer: int = 0
    predicted: int = 0
    """Response tokens that meet the output head."""
    pairs: float = 0.0
    """Pairs of a token and one that it attends to."""
    skipped: int | None = None
    """Responses of all ranks that were not read, as they have no gradient; None: that was not looked for."""

    def add(self, batch: Batch) -> None:
        """Takes a micro-batch into account."""
        assert batch.inputs is not None
        self.batches += 1
        self.tokens += batch.inputs.read
        spans = batch.inputs.spans
        said = sum(answered for _, answered in spans)
        self.predicted += _predicted(batch)
        # Prompts are read once for all that continue them; of the mean length here, which is exact where they are equally long.
        self.pairs += (batch.inputs.read - said) * sum(asked for asked, _ in spans) / max(len(spans), 1) / 2
        for asked, answered in spans:
            self.answers += 1
            self.whole += asked + answered
            self.pairs += answered * (asked + answered / 2)
            self.longest_prompt = max(self.longest_prompt, asked)
            self.longest_answer = max(self.longest_answer, answered)

    def result(
        self, tokens_per_micro_batch: int, world: World, model: Operations | None = None
    ) -> dict[str, float]:
        """Metrics update/... and counts of what was read, over all ranks. `model`: what its passes take, where that is known."""
        taken = 0.0 if model is None else model.update(self.tokens, self.predicted, self.pairs)
        local = [self.batches, self.tokens, self.answers, self.whole, taken / 1e12]
        batches, tokens, answers, whole, taken = world.sum(torch.tensor(local, dtype=torch.float64)).tolist()
        rectangle = answers * (world.max(self.longest_prompt) + world.max(self.longest_answer))
        found = {
            "counts/tokens_read": tokens,
            "update/token_budget_used": tokens / max(1.0, batches * tokens_per_micro_batch),
            "update/padding_avoided": (rectangle - whole) / max(1.0, rectangle),
        }
        if self.skipped is not None:
            found["update/skipped_responses"] = float(self.skipped)
        if model is not None:
            found["counts/teraflop"] = taken
        if world.size > 1:  # the ranks of a team share the work of each
            busiest = world.max(world.team_sum(self.tokens) / world.team_size)
            found["update/rank_balance"] = tokens / world.size / max(1.0, busiest)
        return found


def _predicted(batch: Batch) -> int:
    """Positions that meet the output head; none of a model that draws."""
    if not isinstance(batch.inputs, Inputs):
        return 0
    chosen = batch.inputs.chosen
    return int(batch.inputs.predict.numel() if chosen is None else chosen.numel())


def describe(groups: Sequence[Sequence[Trajectory]], world: World) -> dict[str, float]:
    """Reward, length and truncation over all responses of a step, all ranks."""
    ts = [t for group in groups for t in group]
    parts: dict[str, float] = {}
    for name, value in (part for t in ts for part in t.parts.items()):
        parts[name] = parts.get(name, 0.0) + value
        parts[f"{name}\0"] = (
            parts.get(f"{name}\0", 0.0) + 1
        )  # how many responses were given it: tasks have their own
    by_part = world.sum_by_name(parts)
    rewards = torch.tensor([t.reward for t in ts], dtype=torch.float64)
    silent = sum(1.0 for g in groups if max(t.reward for t in g) == min(t.reward for t in g))
    counts = [len(ts), len(groups), silent, sum(len(g) > 1 for g in groups)]
    sums = [rewards.sum(), sum(t.num_chosen for t in ts), sum(t.finish == "length" for t in ts)]
    local = torch.tensor([*counts, *sums, *_talked(ts)], dtype=torch.float64)
    answers, drawn, silent_sum, compared, reward, length, cut, *talked = world.sum(local).tolist()
    mean = reward / max(answers, 1)
    squares = float(world.sum((rewards - mean).square().sum()))
    return (
        _of_talks(*talked)
        | diversity(groups, world)
        | {
            "reward/mean": mean,
            "reward/std": (squares / max(answers, 1)) ** 0.5,
            **{
                f"reward/{name}": value / by_part[f"{name}\0"]
                for name, value in by_part.items()
                if not name.endswith("\0")
            },
            # Of groups of one response each (ppo, reinforce_pp) nothing is compared.
            **({"reward/zero_std_fraction": silent_sum / drawn} if compared else {}),
            "length/mean": length / max(answers, 1),
            "length/max": world.max(max((float(t.num_chosen) for t in ts), default=0.0)),
            "length/truncated_fraction": cut / max(answers, 1),
            "counts/responses": answers,
        }
    )


def _talked(ts: Sequence[Trajectory]) -> tuple[int, int, int, int]:
    """Responses with an environment: how many, their turns, the tokens of replies, and how many ended at the most turns."""
    talks = [t for t in ts if t.said]
    turns, replies = sum(len(t.step_rewards) for t in talks), sum(len(t) - t.num_chosen for t in talks)
    return len(talks), turns, replies, sum(t.finish == "turns" for t in talks)


def _of_talks(count: float, turns: float, reply_tokens: float, ended: float) -> dict[str, float]:
    """Metrics of what `_talked` found on all ranks; none where no response has an environment."""
    if not count:
        return {}
    return {
        "rollout/turns": turns / count,
        "rollout/max_turns_fraction": ended / count,
        "rollout/reply_tokens": reply_tokens / count,
    }


def read_rate(
    metrics: dict[str, float], world: World, peak_teraflops: float | None = None
) -> dict[str, float]:
    """train/..._per_device and train/mfu, from counts and seconds of a step.

    Tokens are those of the model that the run is about, so a step in which only a critic learns has none; operations are those of
    the critic too. peak_teraflops: the rate of a device, None if it is not known.
    """
    seconds, found = max(metrics["seconds/train"], 1e-9) * world.size, dict[str, float]()
    if "counts/tokens_read" in metrics:
        found["train/tokens_per_second_per_device"] = metrics["counts/tokens_read"] / seconds
    taken = [metrics[name] for name in ("counts/teraflop", "critic/counts/teraflop") if name in metrics]
    if taken:
        found["train/teraflops_per_device"] = sum(taken) / seconds
        if peak_teraflops:
            found["train/mfu"] = found["train/teraflops_per_device"] / peak_teraflops
    return found


def average(updates: Iterable[dict[str, float]]) -> dict[str, float]:
    """The mean of each metric over updates; maxima stay maxima, the learning rate is the last."""
    rows = list(updates)
    result = {}
    for name in sorted({n for row in rows for n in row}):
        values = [row[name] for row in rows if name in row]
        if name.endswith("/max"):
            result[name] = max(values)
        elif name == "learning_rate":
            result[name] = values[-1]
        elif name.startswith("counts/"):
            result[name] = sum(values)
        else:
            result[name] = sum(values) / len(values)
    return result
