"""`preprocessor generate`: a prompt with media through the service to its engine, the answer printed as it comes."""

from __future__ import annotations

import argparse
import json
import sys

from preprocessor.cli.output import summary, table
from preprocessor.cli.prompts import build_parameters, build_spec, credentials_of
from preprocessor.cli.unanswered import explain
from preprocessor.client.calls import CallFailed, generate, open_channel
from preprocessor.v1 import preprocessor_pb2 as pb

_FINISH_REASONS = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}


def run(options: argparse.Namespace) -> int:
    spec, files = build_spec(options)
    header, completion = pb.Header(), pb.Completion()
    token_ids: list[int] = []
    texts: list[str] = []
    try:
        with open_channel(options.address, credentials_of(options)) as channel:
            for response in generate(
                channel, spec, build_parameters(options), files, timeout_seconds=options.timeout_seconds
            ):
                match response.WhichOneof("message"):
                    case "header":
                        header = response.header
                    case "delta":
                        token_ids += response.delta.token_ids
                        texts.append(response.delta.text)
                        if not options.json:
                            print(response.delta.text, end="", flush=True)
                    case "completion":
                        completion = response.completion
    except CallFailed as error:
        if texts and not options.json:
            print()  # the part of the answer that has come ends its line
        print(f"preprocessor: {explain(error, options, credentials_of(options))}", file=sys.stderr)
        return 1
    reason = _FINISH_REASONS[completion.finish_reason]
    if options.json:
        answer = {"text": "".join(texts), "token_ids": token_ids, "finish_reason": reason}
        print(json.dumps(summary(header, completion.report) | answer))
    else:
        print(f"\n\n{len(token_ids)} tokens, finished by {reason}: {token_ids}\n")
        print(table(header, completion.report))
    return 0
