"""`preprocessor completion`: what a shell completes after `preprocessor`, made of the command line's own parser."""

from __future__ import annotations

import argparse
import re
from collections.abc import Iterator

import shtab

from preprocessor.cli.options import build_parser

_PATHS = {"FILE": shtab.FILE, "DIR": shtab.DIRECTORY}


def run(options: argparse.Namespace) -> int:
    parser = build_parser()
    for action in _actions(parser):
        placeholder = re.match(r"[A-Z]+", action.metavar if isinstance(action.metavar, str) else "")
        if placeholder is not None and placeholder[0] in _PATHS:
            vars(action)["complete"] = _PATHS[placeholder[0]]
    print(shtab.complete(parser, options.shell))
    return 0


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Of the parser and of its commands."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for command in action.choices.values():
                yield from _actions(command)
        else:
            yield action
