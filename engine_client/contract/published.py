"""What an engine's model publishes of how it was set up: `fingerprint.NAME` among the parameters of its configuration."""

from __future__ import annotations

from collections.abc import Mapping

PARAMETER_PREFIX = "fingerprint."


def published_parts(parameters: Mapping[str, str]) -> dict[str, str]:
    """The parts in a model's parameters; those left empty are left out."""
    return {
        key.removeprefix(PARAMETER_PREFIX): value.strip()
        for key, value in parameters.items()
        if key.startswith(PARAMETER_PREFIX) and value.strip()
    }
