"""`preprocessor prepare`: a prompt with media → tensors, by a service or in this process."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping
from pathlib import Path

from preprocessor.cli.output import check_output, save_tensors, summary, table
from preprocessor.cli.prompts import build_spec, credentials_of
from preprocessor.cli.unanswered import explain
from preprocessor.client.calls import CallFailed, PrepareResult, open_channel, prepare
from preprocessor.errors import InvalidRequest
from preprocessor.v1 import preprocessor_pb2 as pb


def run(options: argparse.Namespace) -> int:
    if options.output:
        check_output(Path(options.output))
    spec, files = build_spec(options)
    try:
        result = _prepare_here(spec, files) if options.local else _ask_service(options, spec, files)
    except CallFailed as error:
        print(f"preprocessor: {explain(error, options, credentials_of(options))}", file=sys.stderr)
        return 1
    if options.output:
        save_tensors(Path(options.output), result.tensors)
    if options.json:
        print(json.dumps(summary(result.header, result.report)))
    else:
        print(table(result.header, result.report))
    return 0


def _ask_service(options: argparse.Namespace, spec: pb.PrepareSpec, files: Mapping[str, bytes]) -> PrepareResult:
    with open_channel(options.address, credentials_of(options)) as channel:
        try:
            return prepare(
                channel,
                spec,
                files,
                timeout_seconds=options.timeout_seconds,
                progress=_print_progress if sys.stderr.isatty() else None,
            )
        finally:
            if sys.stderr.isatty():
                print(end="\r\x1b[K", file=sys.stderr)  # take the progress line away


def _prepare_here(spec: pb.PrepareSpec, files: Mapping[str, bytes]) -> PrepareResult:
    """The same answer without a service: the same messages, the same pipeline."""
    from preprocessor import pipeline  # torch and transformers: seconds that a service's caller need not wait
    from preprocessor.models.registry import load_model
    from preprocessor.service import reading, writing

    model = load_model(spec.model or "qwen3-vl")
    request, sources = reading.read_spec(spec)
    if sources.urls:
        raise InvalidRequest("only a service fetches by URL; give the file itself", reason="FETCH_DISABLED")
    request = sources.fill(request, files)
    prepared = pipeline.prepare(model, request)
    sizes = {medium.key: len(medium.data) for medium in request.media}
    return PrepareResult(
        header=writing.write_header(model, prepared.plan, sizes, request_id="local"),
        report=writing.write_report(
            prepared.timings,
            sum(sizes.values()),
            prepared.plan.pixel_bytes,
            writing.write_substitutions(prepared.plan, prepared.substitutions),
        ),
        tensors=dict(prepared.tensors),
    )


def _print_progress(received_bytes: int, total_bytes: int) -> None:
    print(f"\rreceived {received_bytes / 1e6:,.0f} of {total_bytes / 1e6:,.0f} MB", end="", file=sys.stderr, flush=True)
