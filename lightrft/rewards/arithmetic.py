r"""Exact arithmetic with a limit on its cost: what an expression of whole numbers comes to, in LaTeX or plain.

Numbers, + - * / ^ !, \frac, \cdot, \times, \div, brackets. Anything else is left to a computer algebra system.
"""

from __future__ import annotations

import re
from fractions import Fraction

MOST_BITS = 60_000
"""Bits of a numerator or denominator: enough for 2006!, and computed in a moment."""
DEEPEST = 15
"""Brackets inside brackets."""
_TOKEN = re.compile(
    r"(\d+(?:\.\d*)?|\.\d+)(?:\\overline\{(\d{1,40})\})?|\\(?:cdot|times|div|[dtc]?frac)|[-+*/^!(){}×÷·]"
)
_TIMES = {"\\cdot", "\\times", "*", "×", "·"}
_OVER = {"\\div", "/", "÷"}


class _UnknownError(Exception):
    """Raised for a text that is no arithmetic, or would cost too much."""


def computed(text: str) -> Fraction | None:
    """The number an expression comes to; None for what is no arithmetic of rational numbers, or too large."""
    squeezed = re.sub(r"\s+|\\left|\\right|\\[,;!]", "", text)
    if re.search(r"[\d.]\s+[\d.]", text):
        return None
    tokens: list[str] = []
    place = 0
    while place < len(squeezed):
        match = _TOKEN.match(squeezed, place)
        if match is None or len(tokens) > 200:
            return None
        tokens.append(match[0])
        place = match.end()
    try:
        reader = _Reader(tokens)
        found = reader.sum()
        return found if reader.place == len(tokens) and tokens else None
    except (_UnknownError, ZeroDivisionError):
        return None


class _Reader:
    """Reads tokens from left to right, one method for each strength of binding."""

    def __init__(self, tokens: list[str]) -> None:
        self.tokens, self.place, self.depth = tokens, 0, 0

    def sum(self) -> Fraction:
        found = self._product()
        while self._next() in ("+", "-"):
            sign = 1 if self._take() == "+" else -1
            found = _limited(found + sign * self._product())
        return found

    def _product(self) -> Fraction:
        sign = 1
        while self._next() in ("+", "-"):
            sign *= 1 if self._take() == "+" else -1
        found = self._power()
        while True:
            if self._next() in _TIMES:
                self._take()
                found = _limited(found * self._signed())
            elif self._next() in _OVER:
                self._take()
                found = _limited(found / self._signed())
            elif self._next() == "(":
                found = _limited(found * self._power())
            else:
                return sign * found

    def _signed(self) -> Fraction:
        if self._next() == "-":
            self._take()
            return -self._power()
        return self._power()

    def _power(self) -> Fraction:
        found = self._atom()
        while self._next() == "!":
            self._take()
            found = _factorial(found)
        if self._next() == "^":
            self._take()
            return _raised(found, self._exponent())
        return found

    def _exponent(self) -> Fraction:
        if self._next() == "-":
            self._take()
            return -self._power()
        return self._power()

    def _atom(self) -> Fraction:
        token = self._take()
        if token in ("(", "{"):
            return self._inside({"(": ")", "{": "}"}[token])
        if token.endswith("frac"):
            return _limited(self._argument() / self._argument())
        if token[0].isdigit() or token[0] == ".":
            if len(token) > 400 or self._next()[:1].isdigit():
                raise _UnknownError
            return _number(token)
        raise _UnknownError

    def _argument(self) -> Fraction:
        if self._take() != "{":
            raise _UnknownError
        return self._inside("}")

    def _inside(self, closing: str) -> Fraction:
        self.depth += 1
        if self.depth > DEEPEST:
            raise _UnknownError
        found = self.sum()
        if self._take() != closing:
            raise _UnknownError
        self.depth -= 1
        return found

    def _next(self) -> str:
        return self.tokens[self.place] if self.place < len(self.tokens) else ""

    def _take(self) -> str:
        if self.place >= len(self.tokens):
            raise _UnknownError
        self.place += 1
        return self.tokens[self.place - 1]


def _number(token: str) -> Fraction:
    plain, _, repeating = token.removesuffix("}").partition("\\overline{")
    found = Fraction(plain if plain.strip(".") else "0")
    if not repeating:
        return found
    if "." not in plain:
        raise _UnknownError
    decimals = len(plain.partition(".")[2])
    return found + Fraction(int(repeating), (10 ** len(repeating) - 1) * 10**decimals)


def _raised(base: Fraction, exponent: Fraction) -> Fraction:
    if exponent.denominator != 1 or abs(exponent) * _bits(base) > MOST_BITS:
        raise _UnknownError
    return Fraction(base ** int(exponent))


def _factorial(n: Fraction) -> Fraction:
    if n.denominator != 1 or not 0 <= n <= 4000:
        raise _UnknownError
    found = 1
    for factor in range(2, int(n) + 1):
        found *= factor
    return _limited(Fraction(found))


def _bits(number: Fraction) -> int:
    return max(number.numerator.bit_length(), number.denominator.bit_length())


def _limited(number: Fraction) -> Fraction:
    if _bits(number) > MOST_BITS:
        raise _UnknownError
    return number
