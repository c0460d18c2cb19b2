"""What goes to an engine and what comes back, whichever engine it is."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field, replace
from enum import StrEnum
from typing import Any

import numpy as np

from engine_client.contract import tensors as contract
from engine_client.contract.sampling import SamplingParameters, TokenLogprob
from engine_client.pending import RowProgress


class Transport(StrEnum):
    """How tensors reach an engine."""

    AUTO = "auto"
    """By shared memory where the engine sees the region, else by gRPC."""
    GRPC = "grpc"
    """Inside the messages, always."""
    SHARED_MEMORY = "shared-memory"
    """By shared memory, or not at all: an engine that does not see the region is unavailable."""


class FinishReason(StrEnum):
    """Why an answer ended by itself. One that was cancelled has no reason: nobody is left to read it."""

    STOP = contract.STOP
    """The model chose a stop token; it is the last token id of the answer."""
    LENGTH = contract.LENGTH
    """The answer has `max_tokens` tokens."""


@dataclass(frozen=True, slots=True, eq=False)
class Pixels:
    """Pixels that were made because an engine asked for them."""

    array: np.ndarray[Any, Any]
    """As `pixel_patches`."""
    pending: RowProgress | None = None
    """As that of `EngineRequest`."""


@dataclass(frozen=True, slots=True, eq=False)
class EngineRequest:
    """One prepared prompt. Not comparable: it holds arrays.

    The arrays must not change from the moment that they are given (of a tensor with `pending`, from the moment that a
    row is said to be final) until they are released. That is when the engine has read the last of them: by gRPC, when
    the last message was made; by shared memory, when the engine has replied to every message that refers to it, or has
    removed the names that it was given, which it does before the first token. `on_released` reports this. Without it,
    memory of your own may be reused after the first step or the end of the call, and memory of a shared region only after
    the first step: an engine that was told to stop may still read it.

    A request with `pixels_on_demand` has no pixels at first. The client of an engine that holds the items sends it as it is;
    any other asks for the pixels (`with_pixels`).
    """

    request_id: str
    """Chosen by the caller; it appears in the engine's logs."""
    tensors: Mapping[str, np.ndarray[Any, Any]]
    """By the names of the engine contract, without the sampling tensors: `input_ids` int32 [L] at least."""
    sampling: SamplingParameters = field(default_factory=SamplingParameters)
    pending: RowProgress | None = None
    """Set while one of the tensors is still being written; its rows are sent as they become final."""
    on_released: Callable[[], None] | None = None
    """Called once in the event loop, when the arrays are not needed any more: see above. It may be after the call has
    ended, if that was early; it is not called if the answer is never asked for. It must not raise."""
    pixels_on_demand: Callable[[], Awaitable[Pixels]] | None = None
    """Set in the place of pixels, only where `HoldsItems.holds` was true. Awaited if the engine that gets the request does not
    hold the items after all; the same array each time. What it raises ends the answer."""

    def __post_init__(self) -> None:
        if contract.INPUT_IDS not in self.tensors:
            raise ValueError(f"tensors has {sorted(self.tensors)}; it must have {contract.INPUT_IDS}")
        if self.pixels_on_demand is not None and (
            contract.PIXELS in self.tensors or contract.ITEM_HASH not in self.tensors or self.pending is not None
        ):
            raise ValueError(
                f"pixels_on_demand is given with {sorted(self.tensors)}; it is for a request with {contract.ITEM_HASH}, "
                f"without {contract.PIXELS} and pending"
            )
        if self.pending is not None:
            array = self.tensors.get(self.pending.tensor_name)
            if array is None or array.ndim == 0:
                raise ValueError(
                    f"pending is of {self.pending.tensor_name}; it must be a tensor of {list(self.tensors)}"
                )

    async def with_pixels(self) -> EngineRequest:
        """This request with its pixels.

        Raises:
            Exception: what `pixels_on_demand` raises.
        """
        if self.pixels_on_demand is None:
            return self
        pixels = await self.pixels_on_demand()
        return replace(
            self,
            tensors={**self.tensors, contract.PIXELS: pixels.array},
            pending=pixels.pending,
            pixels_on_demand=None,
        )

    def __repr__(self) -> str:
        shapes = ", ".join(f"{name}: {array.dtype} {list(array.shape)}" for name, array in self.tensors.items())
        return f"EngineRequest({self.request_id!r}, {{{shapes}}}, {self.sampling})"


@dataclass(frozen=True, slots=True)
class EngineStep:
    """What the engine sent at once: one token of an answer or a few."""

    token_ids: tuple[int, ...]
    finish_reason: FinishReason | None = None
    """On the last step of each answer only."""
    answer_index: int = 0
    """Which answer it belongs to: below `SamplingParameters.answer_count`."""
    logprobs: tuple[TokenLogprob, ...] = ()
    """One for each token id where `SamplingParameters.logprobs` asks for them; else empty."""


@dataclass(frozen=True, slots=True)
class TensorInfo:
    """One input or output of a model, as its engine declares it."""

    name: str
    datatype: str
    """KServe v2 name, for example `UINT8` or `BF16`."""
    shape: tuple[int, ...]
    """-1 where any length will do."""
    is_optional: bool | None = None
    """Whether a prompt may come without this input; None where the engine does not say."""


@dataclass(frozen=True, slots=True)
class EngineInfo:
    """Which engine answers, and what its model takes."""

    server_name: str
    server_version: str
    model_name: str
    model_versions: tuple[str, ...]
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    parameters: Mapping[str, str] = field(default_factory=dict)
    """What the model's own configuration says beside its tensors, such as a fingerprint."""
