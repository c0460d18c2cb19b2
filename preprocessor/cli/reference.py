"""The settings as text: the effective ones for `--show-config`, all of them for preprocessor/config/README.md.

python -m preprocessor.cli.reference PAGE           # writes the table of settings into that page
python -m preprocessor.cli.reference --check PAGE   # fails if the table is not current
"""

from __future__ import annotations

import argparse
import re
import sys
from collections.abc import Iterable, Iterator
from itertools import groupby
from pathlib import Path

from preprocessor.cli.sources import OPTIONS, Loaded, Source
from preprocessor.config.declare import Option
from preprocessor.config.values import write_text, write_toml

_BEGIN, _END = "<!-- settings: written by `make reference` -->", "<!-- settings end -->"


def effective(loaded: Loaded) -> str:
    """Every setting with its value and where it came from, as a file that `--config` takes. Secrets are left out."""
    lines: list[tuple[str, str]] = []
    for holder, options in groupby(OPTIONS, key=lambda option: option.group):
        if holder is not None:
            lines += [("", ""), (f"[{holder.name}]", "")]
        lines += [_effective_line(option, loaded) for option in options]
    width = max(len(line) for line, source in lines if source and len(line) < 60)
    return "\n".join(f"{line:<{width}}  # {source}" if source else line for line, source in lines)


def _effective_line(option: Option, loaded: Loaded) -> tuple[str, str]:
    value = option.value_in(loaded.settings)
    source = loaded.given.source_of(option)
    where = "default" if source is Source.DEFAULT else loaded.given.spelled(option)
    if source is Source.FILE:
        where = loaded.given.file
    name = option.key.rpartition(".")[2]
    if value is None or (option.is_secret and value):
        return f"# {name} = {write_text(option, value) or 'none'}", where
    return f"{name} = {write_toml(option, value)}", where


def default_text(option: Option) -> str:
    """The default for people; empty where there is none."""
    return option.default_text or ("off" if option.kind is bool else write_text(option, option.default))


def markdown_table() -> str:
    """All settings, one row each."""
    return "\n".join(_markdown_lines(OPTIONS))


def _markdown_lines(options: Iterable[Option]) -> Iterator[str]:
    yield "| option | key in a file | default | |"
    yield "|---|---|---|---|"
    for option in options:
        default = default_text(option)
        shown = default if option.default_text or option.kind is bool or not default else f"`{default}`"
        about = option.meaning
        if option.choices:
            about += f" ({', '.join(f'`{choice}`' for choice in option.choices)})"
        yield f"| `{option.flag}` | `{option.key}` | {shown} | {about} |"


def replace_table(text: str) -> str:
    """The page with a current table.

    Raises:
        ValueError: The page does not have the two marks of the table once each.
    """
    place = re.compile(re.escape(_BEGIN) + ".*" + re.escape(_END), re.DOTALL)
    if len(place.findall(text)) != 1:
        raise ValueError(f"needs the lines {_BEGIN} and {_END}, once each, around the table")
    return place.sub(lambda _: f"{_BEGIN}\n\n{markdown_table()}\n\n{_END}", text)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m preprocessor.cli.reference", description="The table of settings.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if the table is not current")
    parser.add_argument("page", type=Path, help="a Markdown file with the marks of the table")
    given = parser.parse_args()
    text = given.page.read_text()
    current = replace_table(text)
    if given.check:
        if text != current:
            print(f"{given.page}: the table of settings is not current; run make reference", file=sys.stderr)
        return int(text != current)
    given.page.write_text(current)
    return 0


if __name__ == "__main__":
    sys.exit(main())
