"""The chat template: one prompt as the model reads it, and what often goes wrong with it."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

from jinja2 import TemplateError
from rich.panel import Panel
from rich.text import Text

from lightrft.commands.check.questions import Questions
from lightrft.commands.check.report import Section
from lightrft.datasets.conversations import end_of_answer
from lightrft.models.processor import Processor
from lightrft.models.turns import TurnTemplate
from lightrft.types import Message


def chat_template(section: Section, questions: Questions) -> None:
    """Shows one prompt as the model reads it, and asks the chat template what often goes wrong."""
    processor, prompt = questions.processor, questions.train[0]
    tokenizer: Any = processor.tokenizer
    section.show(
        Panel(
            Text(processor.text(prompt.token_ids, special=True)),
            title=f"{prompt.id}: {len(prompt.token_ids)} tokens",
            title_align="left",
        )
    )
    stops = [
        f"{token} {text!r}"
        for token, text in zip(
            sorted(processor.stop_ids),
            [processor.pieces([one])[0] for one in sorted(processor.stop_ids)],
            strict=True,
        )
    ]
    section.fact("a response ends with", " or ".join(stops))
    pad = "none" if tokenizer.pad_token_id is None else f"{tokenizer.pad_token_id} {tokenizer.pad_token!r}"
    section.fact("pad token", f"{pad} (never used: sequences are packed)")
    largest = max(max(p.token_ids) for p in questions.train)
    if largest >= processor.vocab_size:
        section.problem(
            f"a prompt has token {largest}, but the model knows {processor.vocab_size} tokens: tokenizer and model do not belong together."
        )
    if questions.turns is not None:
        show_turns(section, questions.turns.template, prompt.messages)
    try:
        ask_template(section, processor, prompt.messages)
    except TemplateError as error:
        section.warn(
            f"the template refuses a conversation of several turns ({error}); it serves for single turns only."
        )


def show_turns(section: Section, template: TurnTemplate, messages: Sequence[Message]) -> None:
    """Shows what stands between the turn of a policy and its next one, around a reply."""
    for role in sorted(template.roles):
        tokens = template.between(messages, [{"role": role, "content": "REPLY"}])
        text = template.processor.text(tokens, special=True)
        section.fact("between turns", f"{text!r}, {len(tokens)} tokens, in role {role}")
    for role in sorted({"tool", "user"} - template.roles):
        section.fact("", f"the template cannot write replies of role {role}: they come in the other role")
    for role in sorted({"tool", "user"} & template.roles):
        if (role, role) not in template.pairs:
            section.fact("", f"the template writes one message of role {role} at a time: several become one")


def ask_template(section: Section, processor: Processor, messages: Sequence[Message]) -> None:
    """Shows the template's own system message and the end of a response, and warns if earlier turns do not stay as they were."""
    own = own_text(processor)
    section.fact(
        "template adds",
        f"{own!r} (a system message of yours, tasks.system, usually takes its place)"
        if own
        else "nothing of its own before the first message",
    )
    ending = end_of_answer(processor)
    if ending is not None and ending not in processor.stop_ids:
        section.warn(
            f"the template ends a response with {processor.pieces([ending])[0]!r} (token {ending}), which does not stop generation: responses "
            "will run on to rollout.max_tokens. Add it to eos_token_id in the model's generation_config.json."
        )
    if keeps_prefixes(processor, messages):
        section.ok("the template keeps prefixes: adding turns changes no earlier token.")
    else:
        section.warn(
            "the template does not keep prefixes: with more turns, earlier tokens change. This does no harm in single-turn runs."
        )


def own_text(processor: Processor) -> str:
    """What the template puts before the first message by itself, "" if nothing (a begin token does not count).

    Whatever stands before the first user message, but not before a later one.
    """
    talk = [
        Message(role="user", content="FIRST"),
        Message(role="assistant", content="REPLY"),
        Message(role="user", content="SECOND"),
    ]
    text = processor.rendered(talk)
    before, after = text.partition("FIRST")[0], text.partition("REPLY")[2].partition("SECOND")[0]
    begin = processor.tokenizer.bos_token or ""
    if begin not in after:  # in some templates it is the mark that opens every turn
        before = before.removeprefix(begin)
    shared = 0
    while shared < min(len(before), len(after)) and before[-1 - shared] == after[-1 - shared]:
        shared += 1
    return before[: len(before) - shared].strip()


def keeps_prefixes(processor: Processor, messages: Sequence[Message]) -> bool:
    """Whether every beginning of a conversation, up to where the assistant speaks, begins the longer ones too."""
    turns = [Message(role="assistant", content="An answer."), Message(role="user", content="And then?")]
    talk = [*messages, *turns, *turns]
    openings = [processor.tokens(talk[:k]) for k in range(len(messages), len(talk) + 1, 2)]
    return all(longer[: len(shorter)] == shorter for shorter, longer in pairwise(openings))
