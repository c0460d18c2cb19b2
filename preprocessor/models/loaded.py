"""What every loaded model can do, whichever way it prepares prompts.

Two ways exist. A model of a known family (`models.family`) plans from headers alone, and its pixels are written later, a frame
at a time. Any other model (`models.generic`) runs its own processor while it plans, so that its plan already holds its pixels. A
model that takes sound (`models.with_sound`) goes one way or the other with each request.
The rest of the program asks the model or the plan, and does not look at which of the two it has.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from transformers.tokenization_utils_tokenizers import TokenizersBackend

from preprocessor.config import Limits
from preprocessor.models.video_markers import VideoMarkers
from preprocessor.text.encoded_text import TextMemory
from preprocessor.types.plan import ItemPlan, Plan, Workload
from preprocessor.types.request import Modality, PixelForm, PreparationRequest
from preprocessor.types.timing import Stopwatch
from preprocessor.vision.spec import PixelSpec, VideoSpec

CancelCheck = Callable[[], None]
"""Called between packets and frames; raises to stop the work."""

WriteFrame = Callable[[npt.NDArray[np.uint8], npt.NDArray[np.uint8], slice, Stopwatch], None]
"""Writes one frame's share of the rows of its group.

Called with (frame, rows, places, stopwatch): the frame RGB uint8 [height, width, 3] as decoded; the group's rows uint8
[group_rows, feature_count], C-contiguous; the frame's places among the group's frames, more than one where it stands for missing
ones too; and a stopwatch, whose stages "resize" and "patch" it ends; where one kernel does both, all of it is "resize".
A row's values are ordered by channel first.
"""


_SECONDS_A_FILE_BYTE = 5e-9  # a walk over the packets and a digest
_SECONDS_A_LISTED_FRAME = 100e-6  # its image file's header
_PLANNING_BYTES = 16 << 20


class ModelPath(enum.Enum):
    """How a model prepares prompts."""

    FAST = "fast"  # planned from headers by its family's rules
    GENERIC = "generic"  # by transformers' own processor


@dataclass(frozen=True, slots=True)
class ModelDescription:
    """What a model says about itself.

    Attributes:
        family: Name of its family, or of its processor's class.
        placeholders: The token that stands for a medium in a prompt, where it is known.
        image, video: Its pixel settings; None on the generic path, whose processor keeps them to itself.
        video_markers: Whether the markers around a video stay; None where its family has no such choice, or is not known.
    """

    path: ModelPath
    family: str
    placeholders: Mapping[Modality, str]
    image: PixelSpec | None = None
    video: VideoSpec | None = None
    video_markers: VideoMarkers | None = None


@dataclass(frozen=True, slots=True, eq=False)
class RowWriter:
    """How the rows of one item are made.

    Attributes:
        write_frame: See `WriteFrame`.
        normalized: The value of every uint8 in every channel, [3, 256] in the asked form; None where uint8 is asked for.
    """

    write_frame: WriteFrame
    normalized: npt.NDArray[Any] | None


@dataclass(frozen=True, slots=True, eq=False)
class PlannedItem:
    """An item as some request had it, for others with the same file and settings. It pickles.

    Attributes:
        item: Its key and its first row are those of that request.
        layout: What the model's family has decided beside it: a `models.family.ItemLayout`.
    """

    item: ItemPlan
    layout: Any


@dataclass(slots=True)
class PlanMemory:
    """What earlier requests have found out, and what this one adds to that.

    Attributes:
        items: By media key, items that are planned already: their files are not read, and may be empty. A model that plans from
            headers adds all others.
        text: What is known of its prompt's text; None if nothing is to be kept of it.
    """

    items: dict[str, PlannedItem] = field(default_factory=dict)
    text: TextMemory | None = None


class LoadedModel(Protocol):
    """A model as far as preprocessing knows it. It pickles.

    Attributes:
        name: As the user gave it: a built-in name, a directory or a hub id.
        tokenizer: For readers in any thread (decoding, templates).
        modalities: What the model takes beside text.
        stop_token_ids: Ids that end an answer.
        fingerprint: Changes whenever the same request could come out differently.
    """

    @property
    def name(self) -> str: ...
    @property
    def tokenizer(self) -> TokenizersBackend: ...
    @property
    def modalities(self) -> frozenset[Modality]: ...
    @property
    def stop_token_ids(self) -> tuple[int, ...]: ...
    @property
    def fingerprint(self) -> str: ...

    def plans_from_headers(self, request: PreparationRequest) -> bool:
        """Whether `plan` decodes nothing of this request. Otherwise it does all of the work."""

    def check_arguments(self, arguments: Mapping[str, Any]) -> None:
        """Refuse arguments of a processor that this model does not take.

        Raises:
            InvalidRequest: `INVALID_PROCESSOR_ARGUMENTS`.
        """

    def plan(
        self,
        request: PreparationRequest,
        limits: Limits,
        check: CancelCheck,
        memory: PlanMemory,
    ) -> Plan:
        """Plan a request that `pipeline.request_checks.check_request` has let through.

        Args:
            check: Called between packets; whatever it raises ends the work.
            memory: Used and added to by a model that plans from headers.
        Raises:
            InvalidRequest, UnsupportedMedia, CorruptMedia, LimitExceeded: As `pipeline.plan`.
        """

    def planning_workload(self, request: PreparationRequest, most_bytes: int) -> Workload:
        """What `plan` will cost, from the files' sizes alone.

        Args:
            most_bytes: The largest result to be expected, where the size of a result can only be guessed.
        """

    def row_writer(self, item: ItemPlan, form: PixelForm) -> RowWriter:
        """How the rows of an item of one of its plans are made. Called only for plans that have `pixels`."""

    def describe(self) -> ModelDescription: ...


def header_workload(request: PreparationRequest) -> Workload:
    """Of a plan from headers alone; the worker holds a copy of its own of each file."""
    file_bytes = sum(len(medium.data) for medium in request.media)
    listed_count = sum(len(medium.frames.sizes_bytes) for medium in request.media if medium.frames is not None)
    seconds = file_bytes * _SECONDS_A_FILE_BYTE + listed_count * _SECONDS_A_LISTED_FRAME
    return Workload(seconds, file_bytes + _PLANNING_BYTES)
