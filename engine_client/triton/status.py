"""What Triton says when it fails, as gRPC statuses and as text, turned into `engine_client.errors`."""

from __future__ import annotations

from contextlib import AbstractContextManager

import grpc
from grpc.aio import AioRpcError

from engine_client.contract.errors import ItemsNotHeld
from engine_client.contract.tensors import USES_HELD_ITEMS
from engine_client.errors import (
    EngineError,
    EngineFailed,
    EngineOverloaded,
    EngineRejected,
    EngineUnavailable,
)
from engine_client.grpc_status import ERRORS_BY_STATUS, errors_by_status

# Triton 2.51 has no status for these: either it sends text alone, or, for a Python model whose process died, INTERNAL.
_UNAVAILABLE_PHRASES = (
    "unknown model",
    "is not ready",
    "is not healthy",
    # grpc.aio itself, as INTERNAL: the stream was over before a message was written, and why it was is lost.
    "Internal error from Core",
)
# gRPC core's own, where the other side closes or resets a connection with calls open, or just before a call begins. Each may
# stand in brackets behind another text, as in "Stream removed (Socket closed)".
_CONNECTION_LOST_DETAILS = ("Socket closed", "Connection reset by peer", "Stream removed", "Broken pipe")
# Triton's own full queue; and this project's models, which have no better status to send than UNAVAILABLE.
_OVERLOADED_PHRASES = ("maximum queue size", "too many prompts")
# How Triton 2.51 begins what it says of a request that it turns away before the model sees it.
_REJECTED_BEGINNINGS = ("[request id:", "unexpected inference input", "Unable to find shared memory", "Invalid offset")


def grpc_errors(who: str) -> AbstractContextManager[None]:
    """See `errors_by_status`."""
    return errors_by_status(who, _explain)


def _explain(error: AioRpcError, kind: type[EngineError]) -> tuple[type[EngineError], str]:
    details = _details_of(error)
    return (_told_by_text(details, kind) if kind in (EngineFailed, EngineUnavailable) else kind), details


def _details_of(error: AioRpcError) -> str:
    """The status message, or what gRPC's own texts for a lost connection mean."""
    details = error.details() or "no details"
    if error.code() is grpc.StatusCode.UNAVAILABLE and any(one in details for one in _CONNECTION_LOST_DETAILS):
        return f"the engine closed the connection during the call ({details})"
    return details


def reply_error(who: str, text: str) -> EngineError:
    """The error for a message that came in place of an answer: a text, without a status.

    Args:
        who: Starts the message; names the engine.
        text: What the engine said. A model may begin it with the name of a gRPC status and a colon, as
            `INVALID_ARGUMENT: grid_thw is missing`. Of other texts, those by which Triton itself turns a request away
            are the caller's fault or a matter of time; the rest come from a model that broke.
    """
    name, colon, rest = text.strip().partition(": ")
    status = grpc.StatusCode.__members__.get(name) if colon else None
    if status is not None:
        return _told_by_text(rest, ERRORS_BY_STATUS.get(status, EngineFailed))(f"{who}: {rest} ({name})")
    is_refused = text.startswith(_REJECTED_BEGINNINGS)
    return _told_by_text(text, EngineRejected if is_refused else EngineFailed)(f"{who}: {text.strip()}")


def is_region_unknown(error: EngineError) -> bool:
    """Whether the engine turned the request away because it does not know the shared memory that it refers to (Triton
    2.51): it has restarted since, or another one answers now, or has a shorter region by that name."""
    text = str(error)
    return "Unable to find shared memory region" in text or "Invalid offset + byte size for shared memory" in text


def is_not_held(error: EngineError) -> bool:
    """Whether the engine refused a prompt without pixels because it does not hold all of its items; or because it is now one
    with another model, which does not know such prompts (Triton 2.51)."""
    text = str(error)
    return ItemsNotHeld.REASON in text or ("unexpected inference input" in text and USES_HELD_ITEMS in text)


def _told_by_text(text: str, otherwise: type[EngineError]) -> type[EngineError]:
    if any(phrase in text for phrase in _OVERLOADED_PHRASES):
        return EngineOverloaded
    return EngineUnavailable if any(phrase in text for phrase in _UNAVAILABLE_PHRASES) else otherwise
