"""How to reach the engines of the settings, and what they declare; needs no model, so none has to be loaded for it."""

from __future__ import annotations

import asyncio
from concurrent.futures import Executor

from engine_client import (
    CredentialsError,
    EngineError,
    EngineOptions,
    Fingerprint,
    MappingError,
    TokenMetadata,
    UnknownScheme,
    connect_engine,
    tls_credentials,
)
from engine_client.contract.published import published_parts
from preprocessor.config import EngineSettings, SettingError

ASK_SECONDS = 3.0
"""For an engine to say what it is. One that is still loading its model refuses at once."""


def engine_options(
    settings: EngineSettings, fingerprint: Fingerprint | None = None, executor: Executor | None = None
) -> EngineOptions:
    """How to reach the engines, and what they must be.

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
        token = TokenMetadata(settings.token_file) if settings.token_file else None
    except CredentialsError as error:
        raise SettingError("--engine-token-file", settings.token_file, f"a file that can be used ({error})") from error
    return EngineOptions(
        model_name=settings.model,
        credentials=credentials,
        tls_server_name=settings.tls_server_name or None,
        call_metadata=token,
        tensor_mapping=settings.profile,
        fingerprint=fingerprint,
        executor=executor,
        max_silence_seconds=settings.max_silence_seconds,
    )


async def declared_video_markers(settings: EngineSettings) -> str:
    """What the engines declare of the vision markers around a video, before a model is loaded for them.

    Returns:
        "keep" or "replace", as the first address that declares it; "auto" where none does within `ASK_SECONDS`, or none can be
        asked.
    """
    try:
        options = engine_options(settings)
    except SettingError:  # `connect_engines` reports it
        return "auto"
    addresses = [address.strip() for address in settings.address.split(",")]
    declared = await asyncio.gather(*(_declared_by(address, options) for address in addresses))
    return next((markers for markers in declared if markers in ("keep", "replace")), "auto")


async def _declared_by(address: str, options: EngineOptions) -> str:
    try:
        engine = connect_engine(address, options)
    except (MappingError, UnknownScheme, ValueError):  # as above
        return ""
    try:
        info = await engine.describe(ASK_SECONDS)
    except EngineError:
        return ""
    finally:
        await engine.close()
    return published_parts(info.parameters).get("video_markers", "")
