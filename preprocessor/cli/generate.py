"""`preprocessor generate`: a prompt with media through the service to its engine, the answer printed as it comes."""

from __future__ import annotations

import argparse
import json
import sys
from typing import Any

from preprocessor.cli.output import summary, table
from preprocessor.cli.progress import ProgressLine
from preprocessor.cli.prompts import build_prompt, credentials_of, generation_parameters
from preprocessor.cli.unanswered import explain
from preprocessor.client import CallFailed, Client, OneAnswer
from preprocessor.v1 import preprocessor_pb2 as pb

_FINISH_REASONS = {pb.FINISH_REASON_STOP: "stop", pb.FINISH_REASON_LENGTH: "length"}


def run(options: argparse.Namespace) -> int:
    prompt, parameters, has_begun = build_prompt(options), generation_parameters(options), False
    is_streamed = not options.json and (options.answers or 1) == 1  # several answers come at the same time
    try:
        with (
            Client(options.address, credentials_of(options)) as client,
            ProgressLine() as line,
            client.generate(
                prompt, timeout_seconds=options.timeout_seconds, upload_progress=line.sent, **parameters
            ) as answer,
        ):
            for delta in answer:
                line.clear()
                has_begun = True
                if is_streamed:
                    print(delta.text, end="", flush=True)
    except CallFailed as error:
        if has_begun and is_streamed:
            print()  # the part of the answer that has come ends its line
        print(f"preprocessor: {explain(error, options, credentials_of(options))}", file=sys.stderr)
        return 1
    report = answer.completion.report
    if options.json:
        answers = [_as_json(one, with_logprobs=options.logprobs is not None) for one in answer.answers]
        print(json.dumps(summary(answer.header, report) | answers[0] | ({"answers": answers} if answers[1:] else {})))
        return 0
    for one in answer.answers:
        if not is_streamed:
            print(one.text, end="")
        print(
            f"\n\n{len(one.token_ids)} tokens, finished by {_FINISH_REASONS[one.end.finish_reason]}: {one.token_ids}\n"
        )
    print(table(answer.header, report))
    return 0


def _as_json(answer: OneAnswer, *, with_logprobs: bool) -> dict[str, Any]:
    found: dict[str, Any] = {
        "text": answer.text,
        "token_ids": answer.token_ids,
        "finish_reason": _FINISH_REASONS[answer.end.finish_reason],
    }
    if with_logprobs:
        found["logprobs"] = [
            {"logprob": one.logprob, "top": [[other.token_id, other.logprob] for other in one.top]}
            for one in answer.logprobs
        ]
    return found
