"""A server of OpenEnv for tests: a number to guess, which its seed fixes."""

import sys

import uvicorn
from openenv.core.env_server.http_server import create_fastapi_app
from openenv.core.env_server.interfaces import Environment
from openenv.core.env_server.types import Action, Observation, State


class Say(Action):
    message: str


class Heard(Observation):
    response: str = ""


class Guess(Environment):
    SUPPORTS_CONCURRENT_SESSIONS = True

    def reset(self, seed=0, episode_id=None, **more):
        self.wanted, self.turns = seed % 10, 0
        return Heard(response=f"between 0 and {self.wanted}", done=False)

    def step(self, action, **more):
        self.turns += 1
        right = action.message == str(self.wanted)
        return Heard(response=f"no, {self.turns}" * (not right), reward=float(right), done=right)

    @property
    def state(self):
        return State(episode_id="x", step_count=self.turns)


uvicorn.run(
    create_fastapi_app(Guess, Say, Heard, max_concurrent_envs=8),
    host="127.0.0.1",
    port=int(sys.argv[1]),
    log_level="error",
)
