"""Where settings come from: a flag, else an environment variable, else a TOML file, else the default.

Unknown keys of the file and unknown variables with our prefix are refused, as argparse refuses unknown flags: a mistyped name
would otherwise be ignored. Every error names the setting as the user did.
"""

from __future__ import annotations

import argparse
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from preprocessor.config import ServeSettings
from preprocessor.config.declare import VARIABLE_PREFIX, Option, SettingError, UnknownSetting, groups_of, options_of
from preprocessor.config.values import HIDDEN, read_text, read_toml

CONFIG_FLAG, CONFIG_VARIABLE = "--config", VARIABLE_PREFIX + "CONFIG"
OPTIONS = options_of(ServeSettings)

# What Kubernetes sets in every pod for each Service of the namespace, here of a Service called preprocessor, or preprocessor-*
# (kubernetes.io, "Discovering services"). Only what is not a setting is taken for it.
_SERVICE_LINK = re.compile(
    rf"{VARIABLE_PREFIX}(\w+_)?(SERVICE_(HOST|PORT(_\w+)?)|PORT(_\d+_(TCP|UDP|SCTP)(_(PROTO|PORT|ADDR))?)?)"
)
_FLAG = re.compile(r"--[a-z][a-z-]*[a-z]")


class Source(Enum):
    DEFAULT = "default"
    FILE = "file"
    ENVIRONMENT = "environment"
    FLAG = "flag"


@dataclass(frozen=True, slots=True)
class Values:
    """What was given: a value and its source for each option that has one.

    Attributes:
        file: The TOML file; empty where none was read.
    """

    values: Mapping[Option, Any]
    sources: Mapping[Option, Source]
    file: str

    def source_of(self, option: Option) -> Source:
        return self.sources.get(option, Source.DEFAULT)

    def spelled(self, option: Option, source: Source | None = None) -> str:
        """The option as its user wrote it; one that was not given is spelled as for `source`."""
        match self.source_of(option) if option in self.sources else source:
            case Source.FILE:
                return f"{option.key} in {self.file}"
            case Source.ENVIRONMENT:
                return option.variable
            case _:
                return option.flag

    @contextmanager
    def spelling(self) -> Iterator[None]:
        """Name settings as their user did in every SettingError raised inside."""
        try:
            yield
        except SettingError as error:
            option = next((option for option in OPTIONS if option.flag == error.option), None)
            if option is None:
                raise
            source = self.source_of(option)
            by_flag = {option.flag: option for option in OPTIONS}
            accepted = _FLAG.sub(
                lambda found: self.spelled(by_flag[found[0]], source) if found[0] in by_flag else found[0],
                error.accepted,
            )
            value = HIDDEN if option.is_secret else error.value
            raise SettingError(self.spelled(option), value, accepted) from error


@dataclass(frozen=True, slots=True)
class Loaded:
    """Accepted settings, and which of them were given."""

    settings: ServeSettings
    given: Values


def load_settings(options: argparse.Namespace, environment: Mapping[str, str] = os.environ) -> Loaded:
    """The settings of a command that `add_settings` gave its flags.

    Raises:
        SettingError: Something is unknown, unreadable, not accepted, or contradicts something else.
    """
    flags = {option: given for option in OPTIONS if (given := getattr(options, option.flag, None)) is not None}
    file, file_source = options.config, CONFIG_FLAG
    if not file:
        file, file_source = environment.get(CONFIG_VARIABLE, ""), CONFIG_VARIABLE
    table = _read_file(file, file_source) if file else {}
    variables = _known_variables(environment)

    values: dict[Option, Any] = {}
    sources: dict[Option, Source] = {}
    given = Values(values, sources, file)
    for source, texts in ((Source.FILE, table), (Source.ENVIRONMENT, variables), (Source.FLAG, flags)):
        sources |= dict.fromkeys(texts, source)  # before the values: a refusal spells the option as this source does
        with given.spelling():
            values |= {option: _read(option, text, source) for option, text in texts.items()}
    with given.spelling():
        _refuse_idle(values)
        return Loaded(_build(values), given)


def _read(option: Option, given: Any, source: Source) -> Any:
    if source is Source.FILE:
        return read_toml(option, given)
    if isinstance(given, bool):
        return given  # --NAME or --no-NAME
    return read_text(option, ",".join(given) if isinstance(given, list) else given)


def _build(values: Mapping[Option, Any]) -> ServeSettings:
    grouped: dict[str, dict[str, Any]] = {group.name: {} for group in groups_of(ServeSettings)}
    own: dict[str, Any] = {}
    for option, value in values.items():
        (own if option.group is None else grouped[option.group.name])[option.field.name] = value
    holders: dict[str, Any] = {group.name: group.default_factory for group in groups_of(ServeSettings)}
    return ServeSettings(**own, **{name: holder(**grouped[name]) for name, holder in holders.items()})


def _refuse_idle(values: Mapping[Option, Any]) -> None:
    """Refuse a setting that has no effect because the one that its group needs is not given."""
    for option, value in values.items():
        needed = option.group.metadata["needs"] if option.group else ""
        switch = next((other for other in OPTIONS if other.group is option.group and other.field.name == needed), None)
        if switch and not values.get(switch, switch.default) and value != option.default:
            raise SettingError(option.flag, value, f"{switch.flag} with it: without that it does nothing")


def _known_variables(environment: Mapping[str, str]) -> dict[Option, str]:
    known = {option.variable: option for option in OPTIONS}
    found: dict[Option, str] = {}
    for name, text in environment.items():
        if name in known:
            found[known[name]] = text
        elif name.startswith(VARIABLE_PREFIX) and name != CONFIG_VARIABLE and not _SERVICE_LINK.fullmatch(name):
            raise UnknownSetting(name, _nearest(name, known))
    return found


def _read_file(path: str, named_by: str) -> dict[Option, Any]:
    """The settings in a TOML file, as TOML has them."""
    import tomllib  # few starts read a file

    try:
        content = tomllib.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise SettingError(named_by, path, f"a file that can be read ({error.strerror})") from error
    except ValueError as error:  # tomllib's own, or text that is not UTF-8
        raise SettingError(named_by, path, f"a TOML file ({error})") from error
    known = {option.key: option for option in OPTIONS}
    tables = {group.name for group in groups_of(ServeSettings)}
    found: dict[Option, Any] = {}
    for name, value in content.items():
        if name in tables and not isinstance(value, dict):
            raise SettingError(f"{name} in {path}", value, f"a table: [{name}] on a line of its own, its keys below")
        keys = {f"{name}.{inner}": one for inner, one in value.items()} if name in tables else {name: value}
        for key, one in keys.items():
            if key not in known:
                raise UnknownSetting(f"{key} in {path}", _nearest(key, known))
            found[known[key]] = one
    return found


def _nearest(name: str, known: Collection[str]) -> str:
    import difflib  # only to refuse

    nearest = difflib.get_close_matches(name, known, 1)
    return nearest[0] if nearest else "one that `preprocessor serve --show-config` lists"
