"""What one engine says of its model: whether it is ready, what it is and takes. Asked, and remembered while it is there."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping

from engine_client.compatibility import CompatibilityCheck
from engine_client.connection import Connection, ConnectionWatch
from engine_client.contract.tensors import FIRST_ROW
from engine_client.errors import EngineDeadlineExceeded, EngineError, EngineUnavailable
from engine_client.triton import kserve
from engine_client.triton.tensor_mapping import TensorMapping
from engine_client.types import EngineInfo

_COMPARISONS = 3  # the first may have made the connection; another is for one that ended meanwhile


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
        self._datatypes: tuple[Mapping[str, str], Mapping[str, str]] | None = None

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
        except EngineDeadlineExceeded as error:
            raise EngineUnavailable(f"{self._who} did not say within {timeout_seconds} s that it is ready") from error
        except EngineUnavailable:
            raise
        except EngineError as error:
            raise EngineUnavailable(str(error)) from error
        if not kserve.decode_model_ready(model):
            raise EngineUnavailable(f"{self._who} is not loaded")
        if not kserve.decode_server_ready(server):
            raise EngineUnavailable(f"{self._who} is loaded, but its server is not ready")
        if not self._compatibility.is_trivial:
            await self._check_compatibility(timeout_seconds)

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
        return kserve.with_model_config(kserve.decode_engine_info(server, model), config)

    async def require_compatible(self, timeout_seconds: float) -> None:
        """Return if it fits; checked again where another engine may answer by now, after an error or a restart.

        Raises:
            EngineUnavailable: it does not, as EngineMismatch; or does not say.
        """
        if self._compatibility.is_trivial:
            return
        if self._compared is None or self._compared.has_ended:
            await self._check_compatibility(timeout_seconds)

    async def require_compared(self) -> None:
        """Check, once an answer has begun, that it comes from the engine that was found to fit.

        Raises:
            EngineUnavailable: It may come from another one.
        """
        if self._compared is not None:
            await self._compared.require()

    async def takes_pieces(self, timeout_seconds: float) -> bool:
        """Whether it can be sent a prompt in several messages.

        Raises:
            EngineUnavailable: it does not say.
        """
        inputs, _ = await self._declared_datatypes(timeout_seconds)
        return FIRST_ROW in inputs

    async def sampling_features(self, mapping: TensorMapping, timeout_seconds: float) -> frozenset[str]:
        """Which parameters of `FEATURE_TENSORS` it has, sent as `mapping` says.

        Raises:
            EngineUnavailable: it does not say.
        """
        return mapping.features(*await self._declared_datatypes(timeout_seconds))

    def forget(self) -> None:
        """What answers next may be another process, with another model."""
        self._compared = None
        self._datatypes = None

    async def _declared_datatypes(self, timeout_seconds: float) -> tuple[Mapping[str, str], Mapping[str, str]]:
        """Of its inputs and its outputs, by name; asked once as long as the engine is there."""
        if self._datatypes is None:
            question = kserve.encode_model_metadata(self._model_name)
            try:
                wire = await self._connection.ask("ModelMetadata", question, timeout_seconds)
            except EngineDeadlineExceeded as error:  # this call's, not the request's
                raise EngineUnavailable(f"{self._who} does not say what it takes: {error}") from error
            self._datatypes = kserve.decode_datatypes(wire)
        return self._datatypes

    async def _check_compatibility(self, timeout_seconds: float) -> None:
        try:
            for _ in range(_COMPARISONS):
                watch = self._connection.watch()
                self._compatibility.require(await self.describe(timeout_seconds))
                if await watch.settle():
                    break
        except EngineUnavailable:
            raise
        except EngineError as error:
            raise EngineUnavailable(f"{self._who} does not say what it is: {error}") from error
        self._compared = watch
