"""What a reward may see of a response, by the name that a parameter asks for it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightrft.rewards.function import Answer

READ: Mapping[str, Callable[[Answer], Any]] = {
    "answer": lambda t: t.answer,
    "target": lambda t: t.prompt.target,
    "prompt": lambda t: question(t.prompt.messages),
    "messages": lambda t: t.prompt.messages,
    "source": lambda t: t.prompt.source,
    "finish": lambda t: t.finish,
    "said": lambda t: t.said,
    "step_rewards": lambda t: t.step_rewards,
    "num_tokens": lambda t: len(t) - t.replied,
    "image": lambda t: made(t, "image"),
    "clip": lambda t: made(t, "clip"),
}
"""What a function of one response may ask for, besides the fields of the row -> how it is read of the response."""
VIEWS = tuple(READ)
MADE = ("image", "clip")
"""Views of what texts do not have: given to a function that names them, and not to one that takes everything."""


def response(answer: Answer) -> list[Any]:
    """What followed the prompt, as messages: the policy's, or every turn and reply of a conversation with an environment."""
    return answer.said or [{"role": "assistant", "content": answer.answer}]


def made(answer: Answer, kind: str) -> Any:
    """What a response made of this kind. ValueError if it made none, as text does, or a picture that is no number."""
    if kind not in answer.made:
        raise ValueError(f"the response holds no {kind}: it is text, or its numbers were not finite.")
    return answer.made[kind]


def question(messages: Sequence[Any]) -> str:
    """The text of the last message."""
    content = messages[-1]["content"] if messages else ""
    if isinstance(content, str):
        return content
    return "\n".join(part["text"] for part in content if part.get("type") == "text")
