"""What is known of a prompt that was prepared in this process, beside the messages that a service would send of it."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass
from typing import Any

from preprocessor.client import PrepareResult
from preprocessor.v1 import preprocessor_pb2 as pb


@dataclass(frozen=True, slots=True)
class Facts:
    """How much of its videos was decoded, and what `preprocessor plan` estimates.

    Attributes:
        decoded_frame_count: Frames of videos that were decoded, wanted or not; 0 where the model's own processor decoded.
        runs: Of each item the frames that the decoder passed, as (first, behind the last); None where that is not known.
        planning_seconds, pixel_seconds, request_seconds: CPU seconds as estimated from headers: of the plan, of the pixels, and
            of a request to a service in all. None where only a run tells.
    """

    decoded_frame_count: int
    runs: tuple[tuple[tuple[int, int], ...] | None, ...]
    planning_seconds: float | None = None
    pixel_seconds: float | None = None
    request_seconds: float | None = None

    def to_json(self) -> str:
        return json.dumps(dataclasses.asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Facts:
        """What `to_json` wrote.

        Raises:
            ValueError: It is something else.
        """
        values = json.loads(text)
        if not isinstance(values, dict) or values.keys() != {field.name for field in dataclasses.fields(cls)}:
            raise ValueError("facts have other names")
        seconds = {name: _seconds(value) for name, value in values.items() if name.endswith("_seconds")}
        return cls(_count(values["decoded_frame_count"]), tuple(map(_runs, _list(values["runs"]))), **seconds)


@dataclass(frozen=True, slots=True, eq=False)
class PreparedPrompt:
    """A prepared prompt with what is known of it. `facts` are there only if it was prepared in this process or with `--local`."""

    result: PrepareResult
    spec: pb.PrepareSpec
    model: pb.Model | None
    facts: Facts | None


def _runs(value: Any) -> tuple[tuple[int, int], ...] | None:
    if value is None:
        return None
    runs = []
    for run in _list(value):
        start, stop = map(_count, _list(run))
        runs.append((start, stop))
    return tuple(runs)


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"{value!r} is no list")
    return value


def _count(value: Any) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ValueError(f"{value!r} is no count")
    return value


def _seconds(value: Any) -> float | None:
    if value is None:
        return None
    if not isinstance(value, int | float) or isinstance(value, bool):
        raise ValueError(f"{value!r} is no number of seconds")
    return float(value)
