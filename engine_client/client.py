"""The interface of every engine."""

from __future__ import annotations

from collections.abc import AsyncGenerator, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np

from engine_client.capabilities import EngineCapabilities
from engine_client.shm import SharedRegion
from engine_client.types import EngineInfo, EngineRequest, EngineStep, Transport

Metadata = Sequence[tuple[str, str]]
"""gRPC metadata to send along, for example a `traceparent`; keys in lower case."""

PROBE_TIMEOUT_SECONDS = 2.0  # as long as a Kubernetes probe usually waits


class EngineClient(Protocol):
    """Sends prepared prompts to one engine. Safe to use by many tasks of one event loop at once."""

    @property
    def capabilities(self) -> EngineCapabilities:
        """What it takes: to be read before a prompt is prepared."""
        ...

    def share(self, region: SharedRegion, *, is_required: bool = False) -> None:
        """Let the engine read arrays in the region where they are, instead of sending them.

        To be called before the first request, and only where `capabilities.reads_shared_memory`. The region must exist as
        long as this client.

        Args:
            region: Memory of this process that others on this host can map.
            is_required: Treat an engine that cannot read the region as unavailable; else tensors are sent to it.
        """
        ...

    def generate(
        self, request: EngineRequest, *, timeout_seconds: float | None = None, metadata: Metadata = ()
    ) -> AsyncGenerator[EngineStep, None]:
        """Stream the answer to one prompt.

        Leaving early stops the engine too: by cancelling the task, or by closing the generator. A bare `break` closes
        it only when it is collected; `contextlib.aclosing` closes it at once.

        Args:
            request: The prompt; `EngineRequest` says how long its arrays must stay as they are.
            timeout_seconds: For the whole answer; None waits as long as it takes.
            metadata: To send along.
        Yields:
            Steps with at least one token id or a finish reason; the last of each answer has the finish reason.
        Raises:
            EngineRejected: the engine found the request wrong, or lacks one of `request.sampling.features`.
            EngineUnavailable: the engine cannot be reached, or the connection broke.
            EngineDeadlineExceeded: `timeout_seconds` passed.
            EngineFailed: the engine broke.
            Exception: what `RowProgress.fail` was given, for a request with `pending`; what `request.pixels_on_demand` raises.
        """
        ...

    async def check_ready(self, timeout_seconds: float = PROBE_TIMEOUT_SECONDS) -> None:
        """Return if the engine would take a prompt now.

        Raises:
            EngineUnavailable: it would not, and why; no answer within `timeout_seconds` counts as well.
        """
        ...

    async def describe(self, timeout_seconds: float = PROBE_TIMEOUT_SECONDS) -> EngineInfo:
        """Ask the engine what it is and what its model takes.

        Raises:
            EngineError: it does not say.
        """
        ...

    async def sampling_features(self, timeout_seconds: float = PROBE_TIMEOUT_SECONDS) -> frozenset[str]:
        """Which parameters of `FEATURE_TENSORS` the engine has; it is asked at most once as long as it is there.

        Raises:
            EngineUnavailable: it does not say.
        """
        ...

    async def close(self) -> None:
        """Close connections; answers in progress end with EngineUnavailable. Closing twice is allowed."""
        ...


@runtime_checkable
class ChoosesTransport(Protocol):
    """An engine that can be asked how tensors would reach it."""

    async def choose_transport(self) -> Transport:
        """How the tensors of a prompt would travel now: SHARED_MEMORY, where the engine reads the region, or GRPC.

        Raises:
            EngineUnavailable: the engine does not answer; or the region is required, and it cannot read it: the text says why.
        """
        ...


@runtime_checkable
class HoldsItems(Protocol):
    """An engine that may hold what it has made of items, so that their pixels need not be sent again."""

    def holds(self, item_hashes: np.ndarray[Any, Any]) -> bool:
        """Whether the engine has said that it holds all of these, and nothing since that it does not.

        That may have changed, so a request without pixels has `pixels_on_demand`: a wrong guess costs a round trip.

        Args:
            item_hashes: `item_hash` of a prompt, uint8 [M, 32].
        """
        ...
