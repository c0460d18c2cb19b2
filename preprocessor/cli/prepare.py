"""`preprocessor prepare`: a prompt with media → tensors, by a service or in this process."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

from preprocessor.cli.local import prepare_here
from preprocessor.cli.output import check_output, summary, table
from preprocessor.cli.progress import ProgressLine
from preprocessor.cli.prompts import build_prompt, credentials_of
from preprocessor.cli.saved import save
from preprocessor.cli.unanswered import explain
from preprocessor.client import CallFailed, Client, Prompt
from preprocessor.prompt_page.facts import PreparedPrompt


def run(options: argparse.Namespace) -> int:
    if options.output:
        check_output(Path(options.output))
    prompt = build_prompt(options)
    try:
        if options.local:
            prepared, _ = prepare_here(prompt)
        else:
            prepared = ask_service(
                options, prompt, with_model=bool(options.output), with_shared_memory=options.shared_memory
            )
    except CallFailed as error:
        print(f"preprocessor: {explain(error, options, credentials_of(options))}", file=sys.stderr)
        return 1
    if options.output:
        save(prepared, Path(options.output))
    result = prepared.result
    if options.json:
        print(json.dumps(summary(result.header, result.report)))
    else:
        print(table(result.header, result.report))
    return 0


def ask_service(
    options: argparse.Namespace, prompt: Prompt, *, with_model: bool, with_shared_memory: bool = False
) -> PreparedPrompt:
    """A service's answer; how much was sent and received is shown if standard error is a terminal.

    Args:
        with_model: Ask what the model's settings are, too.
        with_shared_memory: See `Client.prepare`.
    Raises:
        CallFailed: The service refused the call, or did not answer.
    """
    with Client(options.address, credentials_of(options)) as client:
        with ProgressLine() as line:
            result = client.prepare(
                prompt,
                timeout_seconds=options.timeout_seconds,
                progress=line.received,
                upload_progress=line.sent,
                shared_memory=with_shared_memory,
            )
        model = client.get_model(timeout_seconds=options.timeout_seconds) if with_model else None
        return PreparedPrompt(result, prompt.spec, model, None)
