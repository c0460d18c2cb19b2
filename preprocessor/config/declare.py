"""How a setting is declared: once, as a field of a class in `config`, from which all its names follow.

    field                         drain_seconds: float = setting(20.0, "how long a stop waits", "S", kind=float)
    on the command line           --drain-seconds 20
    in the environment            PREPROCESSOR_DRAIN_SECONDS=20
    in a file                     drain_seconds = 20

Classes of settings are fields of a class of settings, declared by `group`: its prefix begins the flags and the variables,
and in a file it is a table. Nothing here knows which settings there are; `values` knows how a value is written.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

VARIABLE_PREFIX = "PREPROCESSOR_"


class SettingError(ValueError):
    """A setting whose value is not accepted.

    Attributes:
        option: Its name as the user wrote it; its flag by default.
        value: The value that was given.
        accepted: The values that would be accepted, in words.
    """

    def __init__(self, option: str, value: object, accepted: str) -> None:
        super().__init__(f"{option}: {value!r} is not accepted; give {accepted}")
        self.option = option
        self.value = value
        self.accepted = accepted


class UnknownSetting(SettingError):
    """A name that no setting has. Its value is not shown: it may be a secret whose name was mistyped."""

    def __init__(self, option: str, accepted: str) -> None:
        super().__init__(option, "", accepted)
        self.args = (f"{option}: there is no such setting; give {accepted}",)


def setting(
    default: Any,
    meaning: str,
    metavar: str = "N",
    *,
    name: str = "",
    kind: Callable[[str], Any] = int,
    choices: tuple[str, ...] = (),
    default_text: str = "",
    is_joined: bool = False,
    is_secret: bool = False,
) -> Any:
    """A field that is a setting.

    Args:
        default: A value, or a function that finds it. A tuple makes the setting a list: repeated or separated by commas on
            the command line, separated by commas in the environment, an array in a file. None lets empty text mean None.
        meaning: For `--help` and README.md, without a full stop.
        metavar: What stands for the value there. FILE is a file that must be readable: `preprocessor doctor` looks.
        name: The flag, where it is not made of the field's name.
        kind: Makes the value of the text that a user writes, or each element of a list: `int`, `float`, `bool`, `str`,
            `pathlib.Path`, `values.parse_bytes`, an enumeration, or any function that raises ValueError for what is wrong.
        choices: All texts that are accepted, where only some are.
        default_text: Says in words what a default is that depends on the machine.
        is_joined: The value is text that lists something with commas: it may be given as a list may, and stays text.
        is_secret: The value is shown nowhere.
    """
    metadata = {
        "meaning": meaning,
        "metavar": "|".join(choices) or metavar,
        "name": name,
        "kind": kind,
        "choices": choices,
        "default_text": default_text,
        "is_joined": is_joined,
        "is_secret": is_secret,
    }
    if callable(default):
        return dataclasses.field(default_factory=default, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


def group(settings: type, title: str, prefix: str = "", *, needs: str = "") -> Any:
    """A field that holds further settings.

    Args:
        settings: Their class.
        title: Above them in `--help`.
        prefix: Begins their flags, such as "engine-".
        needs: The field of that class without which the others have no effect: to set one of them without it is refused.
    """
    return dataclasses.field(default_factory=settings, metadata={"title": title, "prefix": prefix, "needs": needs})


def option_of(field: dataclasses.Field[Any], prefix: str = "") -> str:
    """The flag of a field."""
    return str(field.metadata["name"] or f"--{prefix}{field.name.replace('_', '-')}")


@dataclass(frozen=True, slots=True, eq=False)
class Option:
    """One setting as each source names it; compared by identity.

    Attributes:
        group: The field of the outer class that holds the settings it is one of; None at the top.
        flag, variable, key: Its names on the command line, in the environment and in a file, there with its table.
        meaning, metavar, kind, choices, default_text, is_joined, is_secret: As `setting` was told.
    """

    group: dataclasses.Field[Any] | None
    field: dataclasses.Field[Any]
    flag: str
    variable: str
    key: str
    meaning: str
    metavar: str
    kind: Callable[[str], Any]
    choices: tuple[str, ...]
    default_text: str
    is_joined: bool
    is_secret: bool

    @property
    def default(self) -> Any:
        """Computed now, if it depends on the machine."""
        factory = self.field.default_factory
        return self.field.default if factory is dataclasses.MISSING else factory()

    @property
    def is_list(self) -> bool:
        """Whether its value is a tuple."""
        return isinstance(self.field.default, tuple)

    def value_in(self, settings: Any) -> Any:
        """Its value in an instance of the outer class."""
        holder = settings if self.group is None else getattr(settings, self.group.name)
        return getattr(holder, self.field.name)


def groups_of(settings: type) -> tuple[dataclasses.Field[Any], ...]:
    """The fields of a class of settings that hold further settings."""
    return tuple(field for field in dataclasses.fields(settings) if "title" in field.metadata)


def options_of(settings: type) -> tuple[Option, ...]:
    """Every setting of a class and of its groups, in the order of declaration, groups last; new ones with each call.

    Raises:
        TypeError: A field is declared by neither `setting` nor `group`; nobody could set it.
    """
    for field in dataclasses.fields(settings):
        if not field.metadata:
            raise TypeError(f"{settings.__name__}.{field.name}: declare it by setting() or group()")
    own = (_option(field, None) for field in dataclasses.fields(settings) if "kind" in field.metadata)
    grouped = (
        _option(field, holder) for holder in groups_of(settings) for field in dataclasses.fields(_class_of(holder))
    )
    return (*own, *grouped)


def _class_of(holder: dataclasses.Field[Any]) -> Any:
    return holder.default_factory


def _option(field: dataclasses.Field[Any], holder: dataclasses.Field[Any] | None) -> Option:
    prefix = holder.metadata["prefix"] if holder else ""
    flag = option_of(field, prefix)
    name = flag.removeprefix("--")
    # `--engine` is the address of the engine: what is only its group's name is called in a file as in the class.
    inner = field.name if f"{name}-" == prefix else name.removeprefix(prefix)
    key = inner.replace("-", "_")
    return Option(
        group=holder,
        field=field,
        flag=flag,
        variable=VARIABLE_PREFIX + name.replace("-", "_").upper(),
        key=f"{holder.name}.{key}" if holder else key,
        **{about: told for about, told in field.metadata.items() if about != "name"},
    )
