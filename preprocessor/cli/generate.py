"""`preprocessor generate`: a prompt with media through the service to its engine, the answer printed as it comes."""

from __future__ import annotations

import argparse
import json
import sys

from preprocessor.cli.output import summary, table
from preprocessor.cli.prompts import build_prompt, credentials_of, generation_parameters
from preprocessor.cli.unanswered import explain
from preprocessor.client import CallFailed, Client
from preprocessor.v1 import preprocessor_pb2 as pb

_FINISH_REASONS = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}


def run(options: argparse.Namespace) -> int:
    prompt, has_begun = build_prompt(options), False
    try:
        with (
            Client(options.address, credentials_of(options)) as client,
            client.generate(
                prompt, timeout_seconds=options.timeout_seconds, **generation_parameters(options)
            ) as answer,
        ):
            for delta in answer:
                has_begun = True
                if not options.json:
                    print(delta.text, end="", flush=True)
    except CallFailed as error:
        if has_begun and not options.json:
            print()  # the part of the answer that has come ends its line
        print(f"preprocessor: {explain(error, options, credentials_of(options))}", file=sys.stderr)
        return 1
    reason, report = _FINISH_REASONS[answer.completion.finish_reason], answer.completion.report
    if options.json:
        result = {"text": answer.text, "token_ids": answer.token_ids, "finish_reason": reason}
        print(json.dumps(summary(answer.header, report) | result))
    else:
        print(f"\n\n{len(answer.token_ids)} tokens, finished by {reason}: {answer.token_ids}\n")
        print(table(answer.header, report))
    return 0
