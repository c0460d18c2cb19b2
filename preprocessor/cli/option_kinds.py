"""What options take, and how: numbers in a range, options that are given once, and help with defaults where there are any."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any


def positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not accepted; give a number above 0")
        return value

    number.__name__ = kind.__name__  # argparse names it where the text is no number
    return number


def whole(bits: int) -> Callable[[str], int]:
    """A whole number from 0 on that a field of so many bits holds."""

    def number(text: str) -> int:
        value = int(text)
        if not 0 <= value < 1 << bits:
            raise argparse.ArgumentTypeError(f"{text} is not accepted; give a whole number from 0 to {(1 << bits) - 1}")
        return value

    number.__name__ = "int"  # argparse names it where the text is no number
    return number


def share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not accepted; give a number between 0 and 1")
    return value


def not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not accepted; give a number from 0 on")
    return value


class Once(argparse.Action):
    """Refuses an option that is given twice: it is for the whole request, and the first one would be lost."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        given = vars(namespace).setdefault("given_once", set())
        if self.dest in given:
            parser.error(f"{option_string} is given twice, and counts for the whole request; give it once")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default only where there is one to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_silent = action.default in (None, "", False)
        return action.help if is_silent else super()._get_help_string(action)
