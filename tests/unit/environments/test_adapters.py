"""Environments of other projects' shapes; the real ones where they are installed."""

import pytest

from lightrft.config import EnvironmentConfig
from lightrft.environments.adapters import adapted
from lightrft.environments.base import messages_of
from lightrft.environments.episodes import Episodes


class Store:
    """A shop in the shape of TRL's classes."""

    def reset(self, prompt, target, **row):
        self.paid, self.target = 0, target
        return f"You have {target} coins."

    def pay(self, coins: int) -> str:
        """Pays so many coins."""
        self.paid += coins
        return f"paid {self.paid}"

    def get_reward(self):
        return float(self.paid == self.target)

    def close(self):
        self.closed = True

    def _hidden(self):
        raise AssertionError


ROW = {"id": "q", "messages": [{"role": "user", "content": "Buy."}], "target": 3, "source": "shop"}


def test_methods_are_tools_and_the_reward_comes_at_the_end():
    shop = adapted(store := Store())
    assert [s["function"]["name"] for s in shop.schemas] == ["pay"]
    assert shop.reset(options=ROW) == ("You have 3 coins.", {})
    call = '<tool_call>{"name": "pay", "arguments": {"coins": 3}}</tool_call>'
    said, reward, done, _, _ = shop.step(call)
    assert (messages_of(said)[0]["content"], reward, done) == ("paid 3", 0.0, False)
    assert shop.final_reward() == 1.0  # if it has to end here
    assert shop.step("Done.")[1:3] == (1.0, True)
    shop.close()
    assert store.closed


def test_what_is_no_environment_is_refused():
    with pytest.raises(TypeError, match="it has no `reset`"):
        adapted(object())


def test_an_environment_of_skyrl_runs_as_it_is():
    """One of its own package: a sum that is asked in a row."""
    base = pytest.importorskip("skyrl_gym.envs.base_text_env", reason="skyrl-gym is not installed")

    class Echo(base.BaseTextEnv):
        def init(self, prompt):
            return [*prompt, {"role": "user", "content": "Say it."}], {}

        def step(self, action):
            again = [{"role": "user", "content": f"again: {action}"}]
            return {"observations": again, "reward": 0.5, "done": action == "stop", "metadata": {}}

    echo = adapted(Echo())
    said, _ = echo.reset(options=ROW)
    assert said == [{"role": "user", "content": "Say it."}]
    assert echo.step("a")[:3] == ([{"role": "user", "content": "again: a"}], 0.5, False)
    assert echo.step("stop")[2]


def test_a_game_of_gem_runs_as_it_is():
    pytest.importorskip("gem.envs", reason="gem-llm is not installed")
    options = EnvironmentConfig(name="gem:make", options={"env_id": "game:GuessTheNumber-v0-easy"}, workers=0)
    with Episodes(options) as episodes:
        (one, first), (two, second) = episodes.begin([(5, {}), (5, {})])
        assert "guess the number between 1 and 10" in first.messages[0]["content"]
        assert first == second
        replies = episodes.step([(one, r"\boxed{5}", False), (two, r"\boxed{5}", False)])
        assert replies[0] == replies[1]
        assert replies[0].messages or replies[0].done
