"""`preprocessor prepare`: a prompt with media → tensors, by a service or in this process."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from preprocessor.cli.output import check_output, save_tensors, summary, table
from preprocessor.cli.progress import ProgressLine
from preprocessor.cli.prompts import build_prompt, credentials_of, read_whole
from preprocessor.cli.unanswered import explain
from preprocessor.client import CallFailed, Client, PrepareResult, Prompt


def run(options: argparse.Namespace) -> int:
    if options.output:
        check_output(Path(options.output))
    prompt = build_prompt(options)
    try:
        result = _prepare_here(prompt) if options.local else _ask_service(options, prompt)
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


def _ask_service(options: argparse.Namespace, prompt: Prompt) -> PrepareResult:
    with Client(options.address, credentials_of(options)) as client, ProgressLine() as line:
        return client.prepare(
            prompt, timeout_seconds=options.timeout_seconds, progress=line.received, upload_progress=line.sent
        )


def _prepare_here(prompt: Prompt) -> PrepareResult:
    """The same answer without a service: the same messages, the same pipeline."""
    from preprocessor import pipeline  # torch and transformers: seconds that a service's caller need not wait
    from preprocessor.models.registry import load_model
    from preprocessor.service import writing

    model = load_model(prompt.spec.model or "qwen3-vl")
    request = read_whole(prompt)
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
