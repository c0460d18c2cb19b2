"""Everything that can go wrong between a prepared prompt and its answer.

    EngineError                      catches all of these
    ├── EngineUnavailable            ENGINE_UNAVAILABLE        down, not loaded, or gone in mid-answer: another
    │   │                                                      engine may do, or this one later
    │   ├── EngineOverloaded         ENGINE_OVERLOADED         alive, and as full as it may be
    │   └── EngineMismatch           ENGINE_MISMATCH           it takes or was set up for something else than what
    │                                                          is sent here: see `mismatches`
    ├── EngineDeadlineExceeded       ENGINE_DEADLINE_EXCEEDED  the caller's own limit; the engine was told to stop
    ├── EngineRejected               ENGINE_REJECTED           the engine found the request wrong: do not repeat it
    └── EngineFailed                 ENGINE_FAILED             the engine took the request and broke, or its answer
                                                               makes no sense

An `EngineClient` raises no others, except the caller's own: what `RowProgress.fail` was given, what `pixels_on_demand` raises.
Each engine's folder maps what its own libraries raise to these, in one place, and keeps it as the cause.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar


class EngineError(Exception):
    """An engine did not answer, or not with an answer."""

    reason: ClassVar[str] = "ENGINE_ERROR"
    """Stable, for programs; the message is for people and may change."""

    def __init__(self, message: str, *, tokens_received: int = 0) -> None:
        super().__init__(message)
        self.tokens_received = tokens_received
        """Tokens that the caller already has. 0: a repeat elsewhere shows nothing twice."""


class EngineUnavailable(EngineError):
    reason = "ENGINE_UNAVAILABLE"


class EngineOverloaded(EngineUnavailable):
    reason = "ENGINE_OVERLOADED"


class EngineMismatch(EngineUnavailable):
    """Unavailable, because nothing sent to this engine would be understood as it was meant; another one may fit."""

    reason = "ENGINE_MISMATCH"

    def __init__(self, who: str, mismatches: Sequence[str]) -> None:
        super().__init__(f"{who} does not fit: {'; '.join(mismatches)}")
        self.mismatches = tuple(mismatches)
        """Each names what differs, with both sides."""


class EngineDeadlineExceeded(EngineError):
    reason = "ENGINE_DEADLINE_EXCEEDED"


class EngineRejected(EngineError):
    reason = "ENGINE_REJECTED"


class EngineFailed(EngineError):
    reason = "ENGINE_FAILED"
