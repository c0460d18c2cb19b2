"""Checks of settings' values; each error names the option."""

from __future__ import annotations

import dataclasses
import ipaddress
import math
from typing import Any

from preprocessor.config.declare import SettingError, option_of


def require_positive_int(option: str, value: object) -> int:
    """The value, which must be a whole number above 0.

    Raises:
        SettingError: It is anything else; booleans and numeric text count as something else.
    """
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise SettingError(option, value, "a whole number of at least 1")
    return value


def require_seconds(option: str, seconds: float) -> None:
    """Check that it is a finite number of seconds above 0.

    Raises:
        SettingError: It is not a number above 0.
    """
    if isinstance(seconds, bool) or not (math.isfinite(seconds) and seconds > 0):
        raise SettingError(option, seconds, "a number of seconds above 0")


def split_address(option: str, address: str) -> tuple[str, int]:
    """Host and port of `host:port`; an IPv6 host stands in brackets, which are dropped.

    Raises:
        SettingError: There is no port, or it is not 0 to 65535.
    """
    host, separator, port = address.rpartition(":")
    if not (separator and host and port.isdigit() and int(port) < 65536):
        raise SettingError(option, address, "host:port, such as 0.0.0.0:50051")
    return host.strip("[]"), int(port)


def is_loopback(host: str) -> bool:
    """Whether only this machine can connect to the host. A name other than localhost may stand for any address."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"


def require_key_pair(certificate_option: str, certificate: str, key_option: str, key: str) -> None:
    """Check that both files are given, or neither.

    Raises:
        SettingError: Only one is; the error names it.
    """
    if certificate and not key:
        raise SettingError(certificate_option, certificate, f"{key_option} with it, or neither")
    if key and not certificate:
        raise SettingError(key_option, key, f"{certificate_option} with it, or neither")


def require_choices(settings: Any, prefix: str = "") -> None:
    """Check that every field with choices holds one of them.

    Raises:
        SettingError: One does not.
    """
    for field in dataclasses.fields(settings):
        choices, value = field.metadata.get("choices"), getattr(settings, field.name)
        if choices and value not in choices:
            raise SettingError(option_of(field, prefix), value, f"{', '.join(choices[:-1])} or {choices[-1]}")
