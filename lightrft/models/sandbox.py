"""The sandbox in which chat templates run, with a bound on what one call or operator may make.

A limit on time stops a template that loops, but not `'a' * 10**10`: that is a single call into C, which takes the memory of the
machine before any signal is looked at.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Callable, Iterable, Sized
from typing import Any

from jinja2 import TemplateError, nodes
from jinja2.compiler import CodeGenerator, Frame
from jinja2.sandbox import ImmutableSandboxedEnvironment
from transformers.utils import chat_template_utils

MOST = 50_000_000
"""Characters or items that one operator or call may make."""
MOST_BITS = 100_000
"""Size of the largest number."""
NUMBER = re.compile(r"\d+")
FILTERS = ("center", "format", "indent", "join", "replace")
"""Filters that make more than they are given."""


class _Generator(CodeGenerator):
    """Writes `a ~ b` as a call of the environment, which may then refuse it."""

    def visit_Concat(self, node: nodes.Concat, frame: Frame) -> None:  # noqa: N802
        self.write("environment.joined((")
        for part in node.nodes:
            self.visit(part, frame)
            self.write(", ")
        self.write("))")


class BoundedEnvironment(ImmutableSandboxedEnvironment):
    """Jinja's sandbox, which refuses an operator or a call by TemplateError before it makes more than MOST."""

    intercepted_binops = frozenset(("*", "**", "%", "+"))
    code_generator_class = _Generator

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        for name in FILTERS:
            self.filters[name] = _bounded(name, self.filters[name])

    def call_binop(self, context: Any, operator: str, left: Any, right: Any) -> Any:
        """Result of the operator."""
        if operator == "%" and isinstance(left, str):
            _check_arguments("format", (left, *(right if isinstance(right, tuple) else (right,))))
        elif operator == "**" and isinstance(left, int) and isinstance(right, int):
            _refuse_above(MOST_BITS, left.bit_length() * max(right, 0), "a number of {:,} bits")
        elif operator == "*" and isinstance(left, int) and isinstance(right, int):
            _refuse_above(MOST_BITS, left.bit_length() + right.bit_length(), "a number of {:,} bits")
        elif operator == "*":
            times, items = (left, right) if isinstance(left, int) else (right, left)
            if isinstance(times, int) and isinstance(items, Sized):
                _refuse_above(MOST, len(items) * times)
        elif operator == "+" and isinstance(left, Sized) and isinstance(right, Sized):
            _refuse_above(MOST, len(left) + len(right))
        return super().call_binop(context, operator, left, right)

    def wrap_str_format(self, value: Any) -> Callable[..., str] | None:
        """Call of str.format or str.format_map in the sandbox, if that is what the value is."""
        sandboxed = super().wrap_str_format(value)
        if sandboxed is None:
            return None
        return _bounded("format", sandboxed, value.__self__)

    def joined(self, values: Iterable[Any]) -> str:
        """The values as one text."""
        texts = [str(value) for value in values]
        _refuse_above(MOST, sum(map(len, texts)))
        return "".join(texts)

    def call(__self, __context: Any, __obj: Any, *args: Any, **kwargs: Any) -> Any:  # noqa: N805
        """Result of the call. The odd names leave all others to the template's own arguments, as in jinja."""
        owner = getattr(__obj, "__self__", None)
        if isinstance(owner, str):
            _check_arguments(getattr(__obj, "__name__", ""), (owner, *args, *kwargs.values()))
        return super().call(__context, __obj, *args, **kwargs)


def bound_templates() -> None:
    """From now on transformers compiles chat templates for this sandbox; it has no argument for another one."""
    if vars(chat_template_utils)["ImmutableSandboxedEnvironment"] is not BoundedEnvironment:
        vars(chat_template_utils)["ImmutableSandboxedEnvironment"] = BoundedEnvironment
        chat_template_utils._compile_jinja_template.cache_clear()


def _bounded(name: str, function: Callable[..., Any], *owner: str) -> Callable[..., Any]:
    """The function, whose arguments are checked first; a method's with its owner."""

    @functools.wraps(function)  # with the mark by which jinja knows that it wants the context
    def checked(*args: Any, **kwargs: Any) -> Any:
        mapped = [value for argument in args if isinstance(argument, dict) for value in argument.values()]
        _check_arguments(name, (*owner, *args, *mapped, *kwargs.values()))
        return function(*args, **kwargs)

    return checked


def _check_arguments(name: str, arguments: tuple[Any, ...]) -> None:
    """TemplateError for a width, or for texts put in many places, that would make too much."""
    texts = [x for x in arguments if isinstance(x, str)]
    for number in (x for x in arguments if isinstance(x, int)):
        _refuse_above(MOST, number)
    if name == "format":
        for width in NUMBER.findall(texts[0] if texts else ""):
            _refuse_above(MOST, int(width[:20]))
    elif name == "replace" and len(texts) > 2:
        _refuse_above(MOST, len(texts[0]) + texts[0].count(texts[1]) * len(texts[2]))
    elif name == "join":
        for separator in texts:
            _refuse_above(MOST // 1000, len(separator), "a separator of {:,} characters")


def _refuse_above(most: int, made: int, what: str = "{:,} characters or items at once") -> None:
    if made > most:
        raise TemplateError(f"it makes {what.format(made)}, and {most:,} are the most.")
