"""Tools of tests."""


def weather(city: str, days: int = 1) -> dict:
    """Tells the weather."""
    return {"city": city, "days": days}


def silent(text):
    return text


async def later(text):
    """Answers later."""
    return text


def broken():
    """Breaks."""
    return 1 / 0


def double(number: int) -> int:
    """Doubles."""
    return 2 * number
