"""The strategy for one process passes the checks of strategies, and each check can fail."""

from contextlib import contextmanager
from dataclasses import replace

import pytest
import torch

from lightrft.config import ModelConfig, StrategyConfig
from lightrft.models.source import Source
from lightrft.strategy.single import Single, SingleFrozen, SingleTrainable
from lightrft.testing import check_strategy

CPU = torch.device("cpu")
TINY = Source(ModelConfig(path="random:llama"))


def test_one_process_does_all():
    found = check_strategy(Single(StrategyConfig(), CPU), TINY)
    assert found.ok, str(found)


class Bad(Single):
    """Trainables of a class of the test's."""

    kind = SingleTrainable

    def trainable(self, source, config, total_updates):
        return self.kind(source.full(CPU), config, total_updates)


def lacking(kind):
    strategy = Bad(StrategyConfig(), CPU)
    strategy.kind = kind
    return set(check_strategy(strategy, TINY).lacking)


class OwnNames(SingleTrainable):
    def weights(self):
        return ((f"mine.{name}", tensor) for name, tensor in super().weights())


class Half(SingleTrainable):
    def compute(self, function, *args):
        return super().compute(function, *args) / 2


class Means(SingleTrainable):
    def backward(self, loss):
        super().backward(loss / 2)


class Unclipped(SingleTrainable):
    def step(self, norm):
        return super().step(min(norm, 0.5))


class Reckless(SingleTrainable):
    def step(self, norm):
        return super().step(norm if norm == norm else 1.0)


class Forgetful(SingleTrainable):
    def load(self, saved, numbers):
        super().load(saved, numbers)
        for state in self.optimizer.state.values():
            state["exp_avg"].zero_()


class Rounding(SingleTrainable):
    @contextmanager
    def averaged(self):
        for weight in self.module.parameters():
            weight.data.add_(1.0)
        yield
        for weight in self.module.parameters():
            weight.data.sub_(1.0)


class Nameless(SingleTrainable):
    def parts(self):
        return {"everything": super().parts()["weights"]}


@pytest.mark.parametrize(
    ("kind", "check"),
    [
        (OwnNames, "weights come whole under their hugging face names"),
        (Half, "compute gives what the model gives"),
        (Means, "gradients are summed over calls and ranks"),
        (Unclipped, "a step is that of adamw with a clipped norm"),
        (Reckless, "a norm that is not finite changes nothing"),
        (Forgetful, "a state goes back and learning goes on from it"),
        (Rounding, "what is measured leaves the weights that learn"),
        (Nameless, "residents are named"),
    ],
)
def test_each_check_can_fail(kind, check):
    assert check in lacking(kind)


class Stubborn(SingleFrozen):
    def follow(self, weights, share):
        list(weights)


def test_a_reference_that_does_not_follow_is_told():
    class Stiff(Single):
        def frozen(self, source):
            return Stubborn(source.full(CPU).requires_grad_(False), CPU)

    assert set(check_strategy(Stiff(StrategyConfig(), CPU), TINY).lacking) == {
        "a frozen model computes and follows"
    }


def test_a_strategy_that_freezes_part_of_the_model_is_no_adamw_on_all_of_it():
    class FrozenEmbedding(Single):
        def trainable(self, source, config, total_updates):
            model = replace(source.config, freeze=["model.embed_tokens"])
            return super().trainable(replace(source, config=model), config, total_updates)

    assert (
        "a step is that of adamw with a clipped norm"
        in check_strategy(FrozenEmbedding(StrategyConfig(), CPU), TINY).lacking
    )
