"""Checks of the engines: reachable, ready, with the right tensors, set up for the same model, and how tensors reach them."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path

from engine_client import (
    EngineClient,
    EngineDeadlineExceeded,
    EngineError,
    EngineInfo,
    EngineOptions,
    EngineUnavailable,
    Fingerprint,
    MappingError,
    OnMismatch,
    OwnedRegion,
    TensorMapping,
    Transport,
    TritonEngine,
    UnknownScheme,
    connect_engine,
    load_mapping,
)
from engine_client.client import ChoosesTransport
from engine_client.contract.published import published_parts
from preprocessor.cli.doctor.finding import Finding, failed, ok, warning
from preprocessor.config import EngineSettings, SettingError
from preprocessor.service.engine_options import engine_options

# Longer than a probe's: an engine that is far away or busy is not down.
_PATIENCE_SECONDS = 5.0
_CORRECT_THE_FILE = "correct the file or the setting that names it"


async def check_engines(settings: EngineSettings, parts: Mapping[str, str] | None, region_bytes: int) -> list[Finding]:
    """Ask each engine of the settings.

    Args:
        parts: What the engine must have been set up for; None where the model does not load.
        region_bytes: Size of the memory to be shared.
    """
    if not settings.address:
        return [ok("engine", "none is set; Generate is not served")]
    try:
        options = engine_options(settings)
        mapping = load_mapping(settings.profile) if settings.profile else None
    except SettingError as error:
        return [failed("engine", str(error), _CORRECT_THE_FILE)]
    except MappingError as error:
        return [failed("engine", f"--engine-profile: {error}", _CORRECT_THE_FILE)]
    region = _create_region(settings, region_bytes)
    findings: list[Finding] = [] if options.credentials or not options.call_metadata else [_token_in_the_open()]
    # Tensors and fingerprint are compared here, each with a finding of its own.
    options = dataclasses.replace(options, tensor_mapping="", fingerprint=None)
    try:
        for address in map(str.strip, settings.address.split(",")):
            findings += await _check_address(address, options, settings, region, mapping, parts)
    finally:
        if region is not None:
            region.close()
    return findings


async def _check_address(
    address: str,
    options: EngineOptions,
    settings: EngineSettings,
    region: OwnedRegion | None,
    mapping: TensorMapping | None,
    parts: Mapping[str, str] | None,
) -> list[Finding]:
    try:
        engine = connect_engine(address, options)
    except UnknownScheme as error:
        return [failed("engine", str(error), "--engine with an address of an engine that is known here")]
    try:
        if region is not None and engine.capabilities.reads_shared_memory:
            engine.share(region, is_required=True)  # what it says against it is reported, and not only logged
        return await _check_engine(address, engine, settings, mapping, parts)
    finally:
        await engine.close()


async def _check_engine(
    address: str,
    engine: EngineClient,
    settings: EngineSettings,
    mapping: TensorMapping | None,
    parts: Mapping[str, str] | None,
) -> list[Finding]:
    try:
        await engine.check_ready(_PATIENCE_SECONDS)
        info = await engine.describe(_PATIENCE_SECONDS)
    except EngineError as error:
        fix = (
            "start it or fix the network, see its log; --engine, --engine-model and --engine-tls-* must be the engine's"
        )
        return [failed("engine", f"{address}: {error}", fix)]
    versions = ", ".join(info.model_versions)
    ready = ok(
        "engine", f"{address}: ready; {info.server_name} {info.server_version}, {info.model_name} version {versions}"
    )
    fingerprint = check_fingerprint(address, info, parts, OnMismatch(settings.on_mismatch))
    findings = [ready, check_contract(address, info, mapping)] if isinstance(engine, TritonEngine) else [ready]
    findings.append(fingerprint)
    if isinstance(engine, ChoosesTransport):
        findings.append(await _check_transport(address, engine, settings.transport))
    return findings


def check_contract(address: str, info: EngineInfo, mapping: TensorMapping | None) -> Finding:
    """Whether the engine's model takes the tensors that would be sent."""
    mismatches = (mapping or TensorMapping()).mismatches(info)
    wanted = "those of the tensor mapping" if mapping else "those of the engine contract"
    if mismatches:
        fix = "--engine-profile that describes this model (engine_client/README.md), or --engine-model of another"
        return failed("engine contract", f"{address}: {'; '.join(mismatches)}", fix)
    return ok("engine contract", f"{address}: tensors are {wanted}")


def check_fingerprint(
    address: str, info: EngineInfo, parts: Mapping[str, str] | None, on_mismatch: OnMismatch
) -> Finding:
    """Whether the engine was set up for the prompts of this model."""
    name, published = "engine fingerprint", published_parts(info.parameters)
    publish = "put what `preprocessor fingerprint MODEL` prints into its model's config.pbtxt"
    if parts is None:
        return warning(name, f"{address}: not compared, the model does not load", "see model")
    if not published and on_mismatch != OnMismatch.REQUIRE:
        return warning(name, f"{address}: it publishes none, so nothing is compared", publish)
    comparison = Fingerprint(parts, on_mismatch).compare(info.parameters)
    if comparison.refused:
        fix = f"--model and --video-markers that the engine runs with, or another engine; where they do fit, {publish}"
        return failed(name, f"{address}: {'; '.join(comparison.refused)}", fix)
    if comparison.warned:
        fix = "find out whether these differences are meant; they are logged and refuse nothing"
        return warning(name, f"{address}: {'; '.join(comparison.warned)}", fix)
    return ok(name, f"{address}: equal in {', '.join(sorted(published.keys() & parts.keys()))}")


async def _check_transport(address: str, engine: ChoosesTransport, asked: str) -> Finding:
    name = "engine transport"
    try:
        chosen = await engine.choose_transport()
    except (EngineUnavailable, EngineDeadlineExceeded) as error:
        fix = (
            "for an engine on this host, mount one /dev/shm in both containers, writable for both users; for another host, "
            "--engine-transport grpc"
        )
        if asked == Transport.SHARED_MEMORY:
            return failed(name, str(error), fix)
        return warning(name, f"tensors go by gRPC: {error}", fix)
    if chosen is Transport.GRPC and asked != Transport.GRPC:  # no region could be made: `check_shared_memory` tells why
        return warning(name, f"{address}: tensors go by gRPC", "see shared memory")
    return ok(name, f"{address}: tensors go by {chosen.value}")


def _create_region(settings: EngineSettings, region_bytes: int) -> OwnedRegion | None:
    """A region of the size and mode that the service uses; it takes no memory until something is written."""
    if settings.transport == Transport.GRPC or not Path("/dev/shm").is_dir():
        return None
    try:
        return OwnedRegion.create(region_bytes)
    except OSError:
        return None


def _token_in_the_open() -> Finding:
    return warning(
        "engine token",
        "--engine-token-file without TLS: whoever listens on the way can read the token",
        "--engine-tls-root, or a proxy on this host that encrypts",
    )
