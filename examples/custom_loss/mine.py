"""A loss, an advantage, a choice of groups and a reward of one's own. Run: see README.md beside this file."""

import torch

from lightrft import Terms


def bounded(new, batch, algo, *, bound):
    """The policy gradient, each token weighted by its ratio, which counts for `bound` at most."""
    old = new.detach() if batch.old is None else batch.old
    ratio = (new - old).exp().clamp(max=bound)
    return Terms(-ratio * batch.advantages, {"ratio/mean": ratio.detach()})


def best_of_group(batch, algo):
    """1 for every token of an answer that has the highest reward of its group, 0 for the others."""
    same = batch.groups[:, None] == batch.groups
    best = batch.scores == torch.where(same, batch.scores, -torch.inf).amax(1)
    advantages = torch.where(batch.mask, best[batch.segments].float(), 0.0)
    return advantages, advantages


def not_hopeless(group, *, at_least):
    """Whether some answer of the group is worth something."""
    return max(answer.reward for answer in group) >= at_least


def short(answer: str) -> float:
    """1 for nothing, less the longer the answer is."""
    return 1 / (1 + len(answer))
