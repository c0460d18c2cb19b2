"""All checks, in the order in which their findings are listed."""

from __future__ import annotations

import asyncio
import resource
import sys

from preprocessor.cli.doctor import engine, files, isolation, resources, software
from preprocessor.cli.doctor.finding import Finding
from preprocessor.config import ServeSettings
from preprocessor.config.machine import available_cpu_count, available_memory_bytes
from preprocessor.models.fingerprint import fingerprint_parts
from preprocessor.service.engine_options import declared_video_markers
from preprocessor.vision import native
from preprocessor.workers.arena import Arena
from preprocessor.workers.chunks import chunk_bytes


def examine_software() -> list[Finding]:
    """The checks that do not depend on settings."""
    return [
        software.check_libraries(software.required_libraries(), software.tested_versions()),
        software.check_decoders(*software.decoders_here()),
        software.check_images(*software.images_here()),
        software.check_resize(native.VARIANTS),
    ]


def examine(settings: ServeSettings) -> list[Finding]:
    """Check all that `serve` with these settings would use. Takes seconds: it loads the model, and asks every engine."""
    region_bytes = Arena.file_bytes(settings.memory_budget_bytes)
    open_files = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    video_markers = settings.video_markers
    if video_markers == "auto" and settings.engine.address:
        video_markers = asyncio.run(declared_video_markers(settings.engine))
    found_model, model = files.check_model(settings.model, video_markers, settings.preparation)
    parts = None if model is None else fingerprint_parts(model)
    return [
        *examine_software(),
        resources.check_cores(settings.worker_count, available_cpu_count()),
        resources.check_memory(settings.memory_budget_bytes, available_memory_bytes(), settings.more_bytes),
        resources.check_shared_memory(
            settings.engine.transport, bool(settings.engine.address), resources.shared_memory_free_bytes(), region_bytes
        ),
        resources.check_open_files(
            open_files if open_files != resource.RLIM_INFINITY else sys.maxsize,
            settings.worker_count,
            settings.memory_budget_bytes // chunk_bytes(settings.memory_budget_bytes),
        ),
        isolation.check_isolation(settings.is_in_process, *isolation.try_sandbox()),
        files.check_files(settings),
        found_model,
        *asyncio.run(engine.check_engines(settings.engine, parts, region_bytes)),
    ]
