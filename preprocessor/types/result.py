"""What came of a plan: the pixels, what happened while they were made, and the prompt that is ready for an engine."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy.typing as npt

from preprocessor.types.plan import Plan, Substitution
from preprocessor.types.timing import Timings


@dataclass(frozen=True, slots=True)
class PixelReport:
    """What happened while pixels were made.

    Attributes:
        decoded_frame_count: Frames of videos that were decoded, wanted or not.
    """

    timings: Timings
    substitutions: tuple[Substitution, ...]
    decoded_frame_count: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Prepared:
    """A prompt ready for an engine: its plan, and `tensors` with the pixels among them.

    Attributes:
        decoded_frame_count: As of `PixelReport`; 0 where the model's own processor made the pixels.
    """

    plan: Plan
    tensors: Mapping[str, npt.NDArray[Any]] = field(repr=False)
    timings: Timings
    substitutions: tuple[Substitution, ...] = ()
    decoded_frame_count: int = 0
