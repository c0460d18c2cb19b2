"""`preprocessor bench`: a load on a service, measured from outside."""

from __future__ import annotations

import argparse
import functools
import json
import sys
import time

from preprocessor.cli.load_report import describe_load, figures, progress_line, report_table
from preprocessor.cli.prompts import build_prompt, build_prompt_of, credentials_of, has_prompt
from preprocessor.cli.unanswered import why_unanswered
from preprocessor.client import Parameters, Prompt
from preprocessor.client.channel import call_metadata, open_aio_channel
from preprocessor.traffic.callers import NobodyAnswers
from preprocessor.traffic.load import Ask, Connect, Load, ask_count_tokens, ask_generate, ask_prepare
from preprocessor.traffic.processes import CallersLost, put_load
from preprocessor.traffic.tally import Tally

_CALLERS, _MOST_OPEN = 8, 1024
_ARRIVALS_SEED = 0
_SEED_FPS = 1.0


def run(options: argparse.Namespace) -> int:
    load = Load(
        asks=(build_ask(options),),
        concurrency=options.concurrency or (_MOST_OPEN if options.rate else _CALLERS),
        seconds=options.seconds,
        rate_per_second=options.rate or 0.0,
        arrivals_seed=_ARRIVALS_SEED if options.arrivals == "poisson" else None,
        warm_up_seconds=options.warm_up_seconds,
        is_counted=True,
        timeout_seconds=options.timeout_seconds,
        metadata=call_metadata(credentials_of(options)),
        new_media_share=0.0 if options.repeat_media else 1.0,
        is_by_shared_memory=options.shared_memory,
    )
    is_watched = sys.stderr.isatty()
    try:
        tally = put_load(
            connect_to(options),
            load,
            process_count=options.processes,
            connection_count=options.connections,
            progress=_print_progress if is_watched else None,
        )
    except (NobodyAnswers, CallersLost) as error:
        why = why_unanswered(options.address, credentials_of(options)) if isinstance(error, NobodyAnswers) else ""
        print(f"preprocessor: {options.address}: {why or error}", file=sys.stderr)
        return 1
    finally:
        if is_watched:
            print(end="\r\x1b[K", file=sys.stderr)  # take the progress line away
    if options.json:
        print(json.dumps({"address": options.address} | figures(load, tally)))
    else:
        print(f"{describe_load(load)}; {options.address}\n")
        print(report_table(load, tally))
    return 0 if tally.answered_count else 1


def connect_to(options: argparse.Namespace) -> Connect:
    """Opens a channel as the options say. Each has a connection of its own: gRPC would share one among equal channels."""
    return functools.partial(
        open_aio_channel, options.address, credentials_of(options), (("grpc.use_local_subchannel_pool", 1),)
    )


def build_ask(options: argparse.Namespace) -> Ask:
    """The request to send again and again: the files of the command line, or the seed workload.

    Raises:
        OSError: A file cannot be read.
    """
    if has_prompt(options):
        prompt = build_prompt(options)
        name = ", ".join(medium.key for medium in prompt.spec.media) or "text"
    else:
        prompt, name = _seed_workload(options), "seed workload"
    match options.method:
        case "generate":
            return ask_generate(name, prompt, Parameters(max_tokens=options.max_tokens))
        case "count-tokens":
            return ask_count_tokens(name, prompt)
        case _:
            return ask_prepare(name, prompt)


def _seed_workload(options: argparse.Namespace) -> Prompt:
    from preprocessor.traffic import seed  # PyAV and OpenCV, of the extra `serve`; own files do not need them

    print("making the seed clip", file=sys.stderr)
    clip = seed.seed_clip()
    is_sampled = options.fps is not None or options.num_frames is not None or options.every_frame
    options = argparse.Namespace(**vars(options) | {"fps": options.fps if is_sampled else _SEED_FPS})
    return build_prompt_of(options, [("video", clip), ("text", seed.TEXT)])


def _print_progress(tally: Tally) -> None:
    print(end=f"\r\x1b[K{progress_line(tally, time.monotonic())}", file=sys.stderr, flush=True)
