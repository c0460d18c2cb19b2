"""`preprocessor serve`: run the service until it is told to stop."""

from __future__ import annotations

import argparse
import gc
import logging
import os

from preprocessor.cli.reference import effective
from preprocessor.cli.sources import load_settings
from preprocessor.cli.video_markers import ask_for_video_markers
from preprocessor.config import ServeSettings, SettingError, require_memory
from preprocessor.config.credentials import read_server_files
from preprocessor.config.machine import SINGLE_THREADED, available_memory_bytes
from preprocessor.models.names import find_here
from preprocessor.service.addresses import check_addresses
from preprocessor.service.logs import configure
from preprocessor.service.tokens import CallerTokens

logger = logging.getLogger(__name__)


def run(options: argparse.Namespace) -> int:
    loaded = load_settings(options)
    if options.show_config:
        print(effective(loaded))
        return 0
    settings = loaded.settings
    with loaded.given.spelling():
        require_memory(settings.memory_budget_bytes, available_memory_bytes(), settings.more_bytes)
        if settings.isolation == "required":
            _require_isolation()
        _check_at_once(settings)
    configure(settings.log_level, settings.log_format)
    # From here on seconds of torch, after a wrong option has been refused at once. What sets up its threads when it is
    # imported must find one wanted: work runs in processes, and a process with threads cannot be forked.
    os.environ.update(SINGLE_THREADED)
    video_markers = ask_for_video_markers(settings)
    gc.disable()  # what is loaded stays: one collection of it takes a tenth of a start
    try:
        from preprocessor.models.registry import load_model
        from preprocessor.workers.fork_server import ForkServer
        from preprocessor.workers.forking import fork_current_process

        model = load_model(settings.model, video_markers(), settings.preparation)
        gc.freeze()  # before `enable`, or the next allocation would start a collection of it
    finally:
        gc.enable()  # even if loading failed: the caller may continue
    fork_server = None if settings.is_in_process else ForkServer(model, fork_current_process(model))
    from preprocessor.service.event_loop import event_loop_runner
    from preprocessor.service.server import serve  # gRPC comes after the fork: nothing of it is in the workers

    run_loop = event_loop_runner()
    with loaded.given.spelling():
        run_loop(serve(settings, model, fork_server))
    return 0


def _check_at_once(settings: ServeSettings) -> None:
    """Look for whatever the service would find wrong of its settings after seconds of loading.

    Raises:
        SettingError: An address cannot be listened on, or a file of certificates, keys or tokens cannot be used.
        ModelNotFound: The model is a path of this machine, and nothing is there.
    """
    find_here(settings.model)
    check_addresses(settings)
    if settings.access.tls_certificate:
        read_server_files(settings.access)
    if settings.access.token_file:
        CallerTokens(settings.access.token_file)


def _require_isolation() -> None:
    """Check that workers can be isolated.

    Raises:
        SettingError: Something that they need does not hold here.
    """
    from preprocessor.cli.doctor.isolation import lacking_means, try_sandbox

    holds, trouble = try_sandbox()
    if not holds or (lacking := lacking_means(holds)):
        lack = trouble or "without " + "; ".join(lacking)
        raise SettingError(
            "--isolation", "required", f"available, or mend what `preprocessor doctor` finds here: {lack}"
        )
