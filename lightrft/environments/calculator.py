"""A calculator, for the policy to call."""

from __future__ import annotations

import ast
import operator
from collections.abc import Callable

from lightrft.environments.base import ToolError

OPERATIONS: dict[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}
LONGEST = 100
"""Most characters of an expression, and of a result."""


def calc(expression: str) -> str:
    """Works out an arithmetic expression with + - * / // % and brackets, e.g. 12 * (34 + 5)."""
    if len(expression) > LONGEST:
        raise ToolError(f"the expression is longer than {LONGEST} characters")
    try:
        value = _value(ast.parse(expression.replace(",", "").strip(), mode="eval").body)
        return str(value)[:LONGEST]
    except ZeroDivisionError:
        raise ToolError("division by zero") from None
    except (SyntaxError, ValueError, OverflowError, RecursionError, MemoryError):
        raise ToolError("not arithmetic") from None


def _value(node: ast.expr) -> float:
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        return OPERATIONS[type(node.op)](_value(node.left), _value(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -_value(node.operand)
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        number: float = node.value  # type: ignore[assignment]  # of these two types, as the line above makes sure
        return number
    raise ValueError("not arithmetic")
