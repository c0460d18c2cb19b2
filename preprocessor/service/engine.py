"""From settings to the engine that `Generate` asks."""

from __future__ import annotations

import logging
import os
from concurrent.futures import Executor
from dataclasses import replace

from engine_client import (
    Endpoints,
    EngineCapabilities,
    EngineClient,
    Fingerprint,
    MappingError,
    OnMismatch,
    OwnedRegion,
    PixelType,
    Transport,
    UnknownScheme,
    connect_endpoints,
    remove_abandoned_regions,
)
from preprocessor.config import EngineSettings, SettingError
from preprocessor.models.fingerprint import fingerprint_parts
from preprocessor.models.loaded import LoadedModel
from preprocessor.models.registry import read_model_files
from preprocessor.service.engine_options import engine_options
from preprocessor.types.request import PixelForm
from preprocessor.workers.arena import Arena

logger = logging.getLogger(__name__)


def connect_engines(settings: EngineSettings, model: LoadedModel, executor: Executor) -> Endpoints:
    """The engines of the settings, as one. Nothing is sent yet.

    Args:
        model: What their models must have been set up for.
        executor: Where large messages are encoded.
    Raises:
        SettingError: A file cannot be used, an address has an unknown scheme, or the engines have nothing in common.
    """
    fingerprint = Fingerprint(fingerprint_parts(model), OnMismatch(settings.on_mismatch))
    options = replace(engine_options(settings, fingerprint, executor), model_files=read_model_files(model.name))
    try:
        return connect_endpoints(settings.address, options)
    except MappingError as error:
        raise SettingError(
            "--engine-profile", settings.profile, f"a tensor mapping that can be read ({error})"
        ) from error
    except UnknownScheme as error:
        raise SettingError("--engine", settings.address, f"addresses with a known scheme ({error})") from error
    except ValueError as error:
        raise SettingError("--engine", settings.address, f"engines that can serve as one ({error})") from error


def share_region(engine: EngineClient, settings: EngineSettings, budget_bytes: int) -> OwnedRegion | None:
    """Memory for the arena that the engine, told of it here, can read; None where tensors are to be sent.

    Regions whose owner was killed are removed first.

    Raises:
        SettingError: Shared memory is asked for, and the engine reads none, or `/dev/shm` has no room for it.
    """
    is_required = settings.transport == Transport.SHARED_MEMORY
    if not engine.capabilities.reads_shared_memory:
        if is_required:
            raise SettingError(
                "--engine-transport", settings.transport, "auto or grpc: this engine reads no shared memory"
            )
        return None
    if settings.transport == Transport.GRPC:
        return None
    remove_abandoned()
    try:
        region = OwnedRegion.create(Arena.file_bytes(budget_bytes))
    except OSError as error:
        if is_required:
            raise SettingError(
                "--engine-transport", settings.transport, f"a /dev/shm that holds the memory budget ({error})"
            ) from error
        logger.warning("tensors are sent to the engine, not shared with it: %s", error)
        return None
    engine.share(region, is_required=is_required)
    return region


def remove_abandoned() -> None:
    """Remove shared memory of this service and its callers whose owner has ended."""
    for key in remove_abandoned_regions():
        logger.info("removed %s, whose owner has ended", key)


def arena_in(region: OwnedRegion, budget_bytes: int) -> Arena:
    """The arena in a region."""
    return Arena(os.open(f"/dev/shm{region.key}", os.O_RDWR | os.O_CLOEXEC), budget_bytes, region.buffer)


def pixel_form_for(capabilities: EngineCapabilities) -> PixelForm | None:
    """The form in which an engine is given pixels; None is the model's own, uint8 on the fast path."""
    preferred = capabilities.pixel_types[0]
    return None if preferred is PixelType.UINT8 else PixelForm(preferred.value)
