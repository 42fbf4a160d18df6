"""Environments behind OpenEnv's servers (https://github.com/meta-pytorch/OpenEnv), through its own client."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from lightrft.environments.base import Observation
from lightrft.utils.imports import require


class OpenEnv:
    """One session of a server: what the policy says is one field of an action, and a text of the observation is the reply."""

    def __init__(self, url: str, action: str = "message", observation: str = "", calls: str = "json") -> None:
        """`action`: field that the policy fills; `observation`: field that it is told, else the only text there is or, of several
        fields, all as JSON. ValueError for calls other than json, which are not read here; RuntimeError without the package openenv."""
        if calls != "json":
            raise ValueError(
                f"environment.calls={calls} has no effect with environment.name=openenv. Leave it out."
            )
        client = require("openenv.core.generic_client", "openenv").GenericEnvClient(base_url=url)
        self._client, self._action, self._observation = client.sync(), action, observation

    def reset(self, *, seed: int) -> tuple[Observation, dict[str, Any]]:
        """Begins an episode with this seed."""
        return self._text(self._client.reset(seed=seed).observation), {}

    def step(self, action: str) -> tuple[Observation, float, bool, bool, dict[str, Any]]:
        """Says one turn; a step without a reward has 0."""
        found = self._client.step({self._action: action})
        return self._text(found.observation), found.reward or 0.0, bool(found.done), False, {}

    def close(self) -> None:
        """Ends the session."""
        self._client.close()

    def _text(self, observation: Mapping[str, Any]) -> str:
        if self._observation:
            if self._observation not in observation:
                raise ValueError(
                    f"environment.options.observation={self._observation}: the observation has {', '.join(observation)}."
                )
            return str(observation[self._observation])
        told = {
            name: value for name, value in observation.items() if name != "metadata" and value is not None
        }
        texts = [value for value in told.values() if isinstance(value, str)]
        return (
            texts[0] if len(told) == len(texts) == 1 else json.dumps(told, ensure_ascii=False) if told else ""
        )
