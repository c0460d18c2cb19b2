"""What options take, and how: numbers in a range, options that are given once, and help with defaults where there are any."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from typing import Any

from preprocessor.config.values import parse_background


def positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not accepted; give a number above 0")
        return value

    number.__name__ = kind.__name__  # argparse names it where the text is no number
    return number


def whole(bits: int, least: int = 0) -> Callable[[str], int]:
    """A whole number, `least` or more, that a field of so many bits holds."""

    def number(text: str) -> int:
        value = int(text)
        if not least <= value < 1 << bits:
            raise argparse.ArgumentTypeError(
                f"{text} is not accepted; give a whole number from {least} to {(1 << bits) - 1}"
            )
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


class OnceInOrder(Once):
    """One of two options that must not come in the wrong order, such as the least and the most of something.

    Args:
        ordered: Both options' names in `Namespace`, the lower one first.
        may_be_equal: Whether both may have the same value.
    """

    def __init__(self, *arguments: Any, ordered: tuple[str, str], may_be_equal: bool, **settings: Any) -> None:
        super().__init__(*arguments, **settings)
        self._ordered = ordered
        self._may_be_equal = may_be_equal

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        super().__call__(parser, namespace, values, option_string)
        low, high = (getattr(namespace, name) for name in self._ordered)
        if low is not None and high is not None and not (low <= high if self._may_be_equal else low < high):
            low_option, high_option = (f"--{name.replace('_', '-')}" for name in self._ordered)
            least = "at least" if self._may_be_equal else "more than"
            parser.error(f"{high_option} {high:g} is not accepted; give {least} {low_option}, which is {low:g}")


def colour(text: str) -> str:
    """A background as `parse_background` reads it, unchanged."""
    try:
        parse_background(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


class Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default only where there is one to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_silent = action.default in (None, "", False)
        return action.help if is_silent else super()._get_help_string(action)
