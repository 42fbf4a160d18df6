"""Whether a picture shows the digit, or the two digits, it was asked for: by a small network for training, by another kind of judge for the held-out score.

Both learn in about a second from pictures of their own, which neither the other nor what draws has seen; in plain numpy, since
rewards run in processes without torch.
"""

from __future__ import annotations

from functools import cache
from itertools import pairwise
from typing import Any

from lightrft.rewards.function import each
from lightrft.utils.digits import part

HIDDEN, EPOCHS, SIZE, RATE = 64, 100, 50, 2e-3
WIDTH, RIDGE = 0.02, 0.1


def pixels(image: Any) -> Any:
    """(64,) numbers in [-1, 1] of a picture (H, W, 3), each the mean of a square of an eighth of it."""
    import numpy

    rows, columns = image.shape[0] // 8, image.shape[1] // 8
    grey = numpy.asarray(image, numpy.float32).mean(-1)[: rows * 8, : columns * 8]
    return grey.reshape(8, rows, 8, columns).mean((1, 3)).reshape(-1) / 127.5 - 1


@cache
def network() -> tuple[Any, ...]:
    """Weights of two hidden layers, taught with noise on the pictures (Adam, cross entropy)."""
    import numpy

    draw = numpy.random.default_rng(0)
    x, y = part("reward")
    sizes = (64, HIDDEN, HIDDEN, 10)
    weights = [draw.normal(0, (2 / a) ** 0.5, (a, b)) for a, b in pairwise(sizes)]
    weights += [numpy.zeros(b) for b in sizes[1:]]
    moments = [(numpy.zeros_like(w), numpy.zeros_like(w)) for w in weights]
    n = 0
    for _ in range(EPOCHS):
        for chosen in numpy.array_split(draw.permutation(len(x)), len(x) // SIZE):
            n += 1
            level = 0.5 * draw.random((len(chosen), 1))
            layers = _layers(weights, x[chosen] + level * draw.normal(size=(len(chosen), 64)))
            for i, gradient in enumerate(_gradients(weights, layers, y[chosen])):
                first, second = moments[i]
                first += 0.1 * (gradient - first)
                second += 0.001 * (gradient**2 - second)
                weights[i] -= RATE * (first / (1 - 0.9**n)) / ((second / (1 - 0.999**n)) ** 0.5 + 1e-8)
    return tuple(weights)


def _layers(weights: Any, x: Any) -> list[Any]:
    """What goes into each layer, and the logits at last."""
    found = [x]
    for i in range(3):
        x = found[-1] @ weights[i] + weights[3 + i]
        found.append(x.clip(0) if i < 2 else x)
    return found


def _gradients(weights: Any, layers: list[Any], y: Any) -> list[Any]:
    """Gradients of the mean cross entropy, by weight."""
    import numpy

    shifted = numpy.exp(layers[3] - layers[3].max(1, keepdims=True))
    back = shifted / shifted.sum(1, keepdims=True)
    back[numpy.arange(len(y)), y] -= 1
    back /= len(y)
    found: list[Any] = [None] * 6
    for i in (2, 1, 0):
        found[i], found[3 + i] = layers[i].T @ back, back.sum(0)
        back = (back @ weights[i].T) * (layers[i] > 0)
    return found


def read_by_network(image: Any) -> int:
    """The digit that the network reads."""
    return int(_layers(network(), pixels(image)[None])[3].argmax())


@cache
def _kernel() -> tuple[Any, Any]:
    """Pictures, and the coefficients of ridge regression on one-hot digits with a Gaussian kernel over them."""
    import numpy

    x, y = part("score")
    found = numpy.linalg.solve(_near(x, x) + RIDGE * numpy.eye(len(x)), 2.0 * numpy.eye(10)[y] - 1)
    return x, found


def _near(a: Any, b: Any) -> Any:
    import numpy

    return numpy.exp(-WIDTH * ((a[:, None] - b[None]) ** 2).sum(-1))


def read_by_kernel(image: Any) -> int:
    """The digit that kernel ridge regression reads."""
    x, coefficients = _kernel()
    return int((_near(pixels(image)[None], x) @ coefficients).argmax())


@each
def digit(image: Any, target: int) -> float:
    """1 if the network reads the digit that was asked for in the picture, else 0."""
    return float(read_by_network(image) == int(target))


@each
def digit_second(image: Any, target: int) -> float:
    """1 if the second judge, of another kind and taught on other pictures, reads the digit that was asked for, else 0."""
    return float(read_by_kernel(image) == int(target))


def halves(image: Any) -> tuple[Any, Any]:
    """The left and the right half of a picture (H, W, 3)."""
    middle = image.shape[1] // 2
    return image[:, :middle], image[:, middle : 2 * middle]


@each
def two_digits(image: Any, target: list[int]) -> float:
    """The share of the two digits side by side that the network reads as they were asked for: 0, 1/2 or 1."""
    return sum(read_by_network(half) == int(n) for half, n in zip(halves(image), target, strict=True)) / 2


@each
def two_digits_second(image: Any, target: list[int]) -> float:
    """1 if the second judge reads both digits side by side as they were asked for, else 0."""
    return float(all(read_by_kernel(half) == int(n) for half, n in zip(halves(image), target, strict=True)))
