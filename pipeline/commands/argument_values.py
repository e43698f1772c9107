"""Values of arguments: whole numbers and durations, read and written."""

import argparse
import re

_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 24 * 3600}


def whole_number(text: str) -> int:
    """Reads a whole number. Raises ArgumentTypeError."""
    try:
        return int(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(f"{text!r} is no whole number") from error


def whole_numbers(text: str) -> list[int]:
    """Reads whole numbers with commas between. Raises ArgumentTypeError."""
    try:
        return [int(number) for number in text.split(",")]
    except ValueError as error:
        message = f"{text!r} is no list of whole numbers; expected one such as 50,100,150"
        raise argparse.ArgumentTypeError(message) from error


def seconds(text: str) -> float:
    """Reads a duration such as 12h. Raises ArgumentTypeError."""
    match = re.fullmatch(r"([0-9]{1,6})([smhd])", text)
    if match is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no duration; expected one such as 30m, 12h or 7d")
    return float(int(match[1]) * _SECONDS[match[2]])


def duration(seconds: float) -> str:
    """Writes a duration as `--grace` takes it, in the largest unit that makes it a whole number."""
    unit = next((unit for unit in "dhm" if seconds and seconds % _SECONDS[unit] == 0), "s")
    return f"{seconds / _SECONDS[unit]:.0f}{unit}"
