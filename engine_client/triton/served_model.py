"""What one engine says of its model: whether it is ready, what it is and takes. Asked, and remembered while it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from functools import partial

from engine_client.compatibility import CompatibilityCheck
from engine_client.connection import Connection, ConnectionWatch
from engine_client.contract.tensors import FIRST_ROW
from engine_client.errors import EngineDeadlineExceeded, EngineError, EngineUnavailable
from engine_client.shared_task import UNSEEN_SECONDS, SharedTask
from engine_client.triton import kserve
from engine_client.triton.tensor_mapping import TensorMapping
from engine_client.types import EngineInfo

_Datatypes = tuple[Mapping[str, str], Mapping[str, str]]
"""Of a model's inputs and its outputs, by name."""

_CALL_TIMEOUT_SECONDS = 5.0  # as Triton answers these without touching a model


class ServedModel:
    """One model of one engine.

    Args:
        connection: To the engine.
        model_name: As the engine calls it.
        who: Starts the messages of errors.
        compatibility: What must hold before it gets a prompt.
    """

    def __init__(self, connection: Connection, model_name: str, who: str, compatibility: CompatibilityCheck) -> None:
        self._connection = connection
        self._model_name = model_name
        self._who = who
        self._compatibility = compatibility
        self._compared: ConnectionWatch | None = None  # by which it was found to fit
        self._comparison = SharedTask(self._compare)
        self._datatypes: _Datatypes | None = None
        self._reading = SharedTask(self._read_datatypes)

    async def check_ready(self, timeout_seconds: float) -> None:
        """Return if it is ready and fits.

        Raises:
            EngineUnavailable: it is not, or does not say; EngineMismatch where it does not fit.
        """
        try:
            server, model = await asyncio.gather(
                self._connection.ask("ServerReady", kserve.encode_server_ready(), timeout_seconds),
                self._connection.ask("ModelReady", kserve.encode_model_ready(self._model_name), timeout_seconds),
            )
            with self._connection.errors():
                is_loaded, is_ready = kserve.decode_model_ready(model), kserve.decode_server_ready(server)
        except EngineDeadlineExceeded as error:
            raise EngineUnavailable(f"{self._who} did not say within {timeout_seconds} s that it is ready") from error
        except EngineUnavailable:
            raise
        except EngineError as error:
            raise EngineUnavailable(str(error)) from error
        if not is_loaded:
            raise EngineUnavailable(f"{self._who} is not loaded")
        if not is_ready:
            raise EngineUnavailable(f"{self._who} is loaded, but its server is not ready")
        if self._compatibility.is_trivial:
            return
        try:
            async with asyncio.timeout(timeout_seconds):
                await self._comparison.outcome(unseen_seconds=UNSEEN_SECONDS)
        except TimeoutError as error:
            raise EngineUnavailable(f"{self._who} did not say within {timeout_seconds} s what it is") from error

    async def describe(self, timeout_seconds: float) -> EngineInfo:
        """Ask what it is and what it takes.

        Raises:
            EngineError: it does not say.
        """
        server, model, config = await asyncio.gather(
            self._connection.ask("ServerMetadata", kserve.encode_server_metadata(), timeout_seconds),
            self._connection.ask("ModelMetadata", kserve.encode_model_metadata(self._model_name), timeout_seconds),
            self._connection.ask("ModelConfig", kserve.encode_model_config(self._model_name), timeout_seconds),
        )
        with self._connection.errors():
            return kserve.with_model_config(kserve.decode_engine_info(server, model), config)

    async def require_compatible(self) -> ConnectionWatch | None:
        """Return if it fits; checked again where another engine may answer by now, after an error or a restart.

        Returns:
            The connection by which it was found to fit: who relies on it checks, once an answer has begun, that it came by that.
            None where there is nothing to check.
        Raises:
            EngineUnavailable: it does not, as EngineMismatch; or does not say.
        """
        if self._compatibility.is_trivial:
            return None
        if self._compared is None or self._compared.has_ended:
            return await self._comparison.outcome()
        return self._compared

    async def takes_pieces(self) -> bool:
        """Whether it can be sent a prompt in several messages.

        Raises:
            EngineUnavailable: it does not say.
        """
        inputs, _ = await self._declared_datatypes()
        return FIRST_ROW in inputs

    async def sampling_features(self, mapping: TensorMapping) -> frozenset[str]:
        """Which parameters of `FEATURE_TENSORS` it has, sent as `mapping` says.

        Raises:
            EngineUnavailable: it does not say.
        """
        return mapping.features(*await self._declared_datatypes())

    def forget(self) -> None:
        """What answers next may be another process, with another model."""
        self._compared = None
        self._comparison.forget()
        self._datatypes = None

    async def close(self) -> None:
        """Wait until nothing is asked any more; to be called when the connection is closed."""
        await self._comparison.ended()
        await self._reading.ended()

    async def _declared_datatypes(self) -> _Datatypes:
        """Asked once as long as the engine is there."""
        return self._datatypes or await self._reading.outcome()

    async def _read_datatypes(self) -> _Datatypes:
        question = kserve.encode_model_metadata(self._model_name)
        try:
            wire = await self._connection.ask("ModelMetadata", question, _CALL_TIMEOUT_SECONDS)
        except EngineDeadlineExceeded as error:  # this call's, not the request's
            raise EngineUnavailable(f"{self._who} does not say what it takes: {error}") from error
        with self._connection.errors():
            self._datatypes = kserve.decode_datatypes(wire)
        return self._datatypes

    async def _compare(self) -> ConnectionWatch:
        describe = partial(self.describe, _CALL_TIMEOUT_SECONDS)
        info, watch = await self._connection.ask_by_one(describe, _CALL_TIMEOUT_SECONDS)
        self._compatibility.require(info)
        self._compared = watch
        return watch
