"""From settings to the engine that `Generate` asks."""

from __future__ import annotations

import logging
import os
from concurrent.futures import Executor
from typing import Any

from engine_client import (
    CredentialsError,
    Endpoints,
    Fingerprint,
    OnMismatch,
    OwnedRegion,
    Profile,
    ProfileError,
    TokenFile,
    Transport,
    load_profile,
    remove_abandoned_regions,
    tls_credentials,
    triton_endpoints,
)
from preprocessor.config import EngineSettings, SettingError
from preprocessor.models.fingerprint import fingerprint_parts
from preprocessor.models.loaded import LoadedModel
from preprocessor.types.request import PixelForm
from preprocessor.workers.arena import Arena

logger = logging.getLogger(__name__)


def create_region(settings: EngineSettings, budget_bytes: int) -> OwnedRegion | None:
    """Memory for the arena that engines on this host can read; None where tensors are to be sent.

    What an earlier service left behind when it was killed is removed first.

    Raises:
        SettingError: Shared memory is asked for, and `/dev/shm` has no room for it.
    """
    if not settings.address or settings.transport == Transport.GRPC:
        return None
    for key in remove_abandoned_regions():
        logger.info("removed %s, whose owner has ended", key)
    try:
        return OwnedRegion.create(Arena.file_bytes(budget_bytes))
    except OSError as error:
        if settings.transport == Transport.SHARED_MEMORY:
            raise SettingError(
                "--engine-transport", settings.transport, f"a /dev/shm that holds the memory budget ({error})"
            ) from error
        logger.warning("tensors are sent to the engine, not shared with it: %s", error)
        return None


def arena_in(region: OwnedRegion, budget_bytes: int) -> Arena:
    """The arena in a region."""
    return Arena(os.open(f"/dev/shm{region.key}", os.O_RDWR | os.O_CLOEXEC), budget_bytes, region.buffer)


def connect_engine(
    settings: EngineSettings, model: LoadedModel, executor: Executor, region: OwnedRegion | None = None
) -> Endpoints:
    """The engines of the settings, as one. Nothing is sent yet.

    Args:
        model: What their models must have been set up for.
        executor: Where large messages are encoded.
        region: Where the tensors of prompts lie, if engines may read them there.
    Raises:
        SettingError: A file cannot be used.
    """
    return triton_endpoints(
        settings.address,
        settings.model,
        **connection_options(settings),
        profile=engine_profile(settings),
        fingerprint=Fingerprint(fingerprint_parts(model), OnMismatch(settings.on_mismatch)),
        executor=executor,
        max_silence_seconds=settings.max_silence_seconds,
        shared_region=region,
        transport=Transport(settings.transport) if region is not None else Transport.GRPC,
    )


def connection_options(settings: EngineSettings) -> dict[str, Any]:
    """How to prove who is who, as `TritonEngine` takes it.

    Raises:
        SettingError: A file cannot be used.
    """
    credentials = None
    if root_or_certificate := settings.tls_root or settings.tls_certificate:
        option = "--engine-tls-root" if settings.tls_root else "--engine-tls-certificate"
        try:
            credentials = tls_credentials(
                settings.tls_root or None, settings.tls_certificate or None, settings.tls_key or None
            )
        except CredentialsError as error:
            raise SettingError(option, root_or_certificate, f"files that can be used ({error})") from error
    try:
        token = TokenFile(settings.token_file) if settings.token_file else None
    except CredentialsError as error:
        raise SettingError("--engine-token-file", settings.token_file, f"a file that can be used ({error})") from error
    return {
        "credentials": credentials,
        "tls_server_name": settings.tls_server_name or None,
        "call_metadata": token,
    }


def engine_form(settings: EngineSettings) -> PixelForm | None:
    """The form in which the engine takes pixels; None is the model's own, uint8 on the fast path.

    Raises:
        SettingError: As `connect_engine`.
    """
    profile = engine_profile(settings)
    return (
        None
        if profile is None or profile.pixel_form.value == PixelForm.UINT8.value
        else PixelForm(profile.pixel_form.value)
    )


def engine_profile(settings: EngineSettings) -> Profile | None:
    """How the engine wants its tensors; None: as the engine contract has them, unchecked.

    Raises:
        SettingError: It cannot be read.
    """
    try:
        return load_profile(settings.profile) if settings.profile else None
    except ProfileError as error:
        raise SettingError("--engine-profile", settings.profile, f"a profile that can be read ({error})") from error
