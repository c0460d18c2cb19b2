"""Was the engine set up for the prompts that come from here? Each side says what it is, part by part.

A wrong pairing does not fail: patches cut for another model, or ids of another tokenizer, give fluent nonsense. So the
engine's model publishes what it was set up for in its Triton configuration, and the sender compares:

    parameters [ { key: "fingerprint.patch_size"  value: { string_value: "16" } }, … ]

A part that one side leaves out or empty is not compared, unless this side requires the engine to publish it. What must be
equal is in `EXACT_PARTS`; of anything else, such as the versions of libraries, a difference is logged and no more: it
explains a difference in the last digits, and a rolling update would otherwise stop the service.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum

from engine_client.contract.published import PARAMETER_PREFIX, published_parts

EXACT_PARTS = frozenset(
    {
        "contract_version",
        "family",
        "tokenizer_sha256",
        "patch_size",
        "merge_size",
        "temporal_patch_size",
        "pixel_mean",
        "pixel_std",
        "rescale_factor",
        "video_markers",
    }
)
"""A difference in one of these changes what a prompt means."""


class OnMismatch(StrEnum):
    """What becomes of an engine that differs in a part that must be equal."""

    REFUSE = "refuse"
    """It gets no prompts."""
    REQUIRE = "require"
    """As REFUSE, and an engine that leaves out or empty a part that must be equal gets none either."""
    WARN = "warn"
    """It gets them, and the log says what differs."""


@dataclass(frozen=True, slots=True)
class Comparison:
    """What differs, each with both values; empty where all that both sides say is equal."""

    refused: tuple[str, ...]
    warned: tuple[str, ...]
    not_compared: tuple[str, ...] = ()
    """Names of parts that must be equal and that the engine leaves out or empty."""


@dataclass(frozen=True, slots=True)
class Fingerprint:
    """What this side is, and how strict it is.

    Raises:
        ValueError: `on_mismatch` is none of its values.
    """

    parts: Mapping[str, str]
    """By name, such as `patch_size`; values as JSON where they are not plain text."""
    on_mismatch: OnMismatch = OnMismatch.REFUSE
    exact_parts: frozenset[str] = EXACT_PARTS
    unpublished_parts: frozenset[str] = frozenset()
    """What engines of this kind never publish: `OnMismatch.REQUIRE` does not ask for it."""

    def __post_init__(self) -> None:
        if self.on_mismatch not in tuple(OnMismatch):
            raise ValueError(f"on_mismatch is {self.on_mismatch!r}; it must be one of {', '.join(OnMismatch)}")

    def compare(self, parameters: Mapping[str, str]) -> Comparison:
        """Compare with what an engine publishes.

        Args:
            parameters: Of its model's configuration; those without the prefix are ignored.
        """
        refused: list[str] = []
        warned: list[str] = []
        published = published_parts(parameters)
        for name in sorted(published.keys() & self.parts.keys()):
            ours, theirs = self.parts[name].strip(), published[name]
            if ours and not _are_equal(ours, theirs):
                is_refused = name in self.exact_parts and self.on_mismatch != OnMismatch.WARN
                text = f"fingerprint {name} of the engine is {theirs}, of this side {ours}"
                (refused if is_refused else warned).append(text)
        missing = [
            name for name in sorted(self.exact_parts & self.parts.keys() - published.keys()) if self.parts[name].strip()
        ]
        if self.on_mismatch == OnMismatch.REQUIRE:
            refused += [
                f"fingerprint {name} is not published by the engine, and must be"
                for name in missing
                if name not in self.unpublished_parts
            ]
        return Comparison(tuple(refused), tuple(warned), tuple(missing))


def format_parameters(parts: Mapping[str, str]) -> str:
    """The parts as entries of `parameters [ … ]` in a `config.pbtxt`, for an operator to put there."""
    # JSON's escapes are also those of protobuf's text format, for all that JSON writes with ensure_ascii.
    return ",\n".join(
        f"  {{ key: {json.dumps(PARAMETER_PREFIX + name)}  value: {{ string_value: {json.dumps(value)} }} }}"
        for name, value in sorted(parts.items())
    )


def _are_equal(ours: str, theirs: str) -> bool:
    """Equal as text, or as JSON: `[0.5,0.5]` is `[0.50, 0.5]`."""
    if ours == theirs:
        return True
    try:
        return bool(json.loads(ours) == json.loads(theirs))
    except ValueError:
        return False
