"""The options of every command, each with its default and meaning."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from preprocessor.config import Limits, ServeSettings, parse_bytes
from preprocessor.version import VERSION

_DEFAULTS = {
    field.name: field.default_factory() if callable(field.default_factory) else field.default
    for field in dataclasses.fields(ServeSettings)
}
_LIMIT_MEANINGS = {
    "max_media_count": "images and videos in one request",
    "max_media_bytes": "bytes of one file",
    "max_request_bytes": "bytes of all files of a request",
    "max_image_bytes": "bytes of an image file",
    "max_image_pixels": "pixels of an image, before resizing",
    "max_frame_pixels": "pixels of a video frame, before resizing",
    "max_clip_frames": "frames in a video file",
    "max_audio_seconds": "seconds of a sound",
    "max_pixel_bytes": "bytes of the pixel tensor of one request",
    "max_prompt_length": "characters of a rendered prompt, or token ids",
}


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preprocessor", description="Preprocessing for vision-language models, as a service or on the spot."
    )
    parser.add_argument("--version", action="version", version=f"preprocessor {VERSION}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    _add_serve(commands.add_parser("serve", help="run the service", formatter_class=_Formatter))
    prepare = commands.add_parser("prepare", help="turn a prompt with media into tensors", formatter_class=_Formatter)
    _add_prompt(prepare)
    prepare.add_argument("--local", action="store_true", help="prepare in this process instead of asking a service")
    prepare.add_argument(
        "--dtype", choices=("uint8", "bf16", "fp16", "fp32"), default="uint8", help="form of the pixels"
    )
    prepare.add_argument("--output", metavar="FILE.safetensors", help="save the tensors by the engine contract's names")
    generate = commands.add_parser(
        "generate", help="send a prompt with media through the service to its engine", formatter_class=_Formatter
    )
    _add_prompt(generate)
    generate.add_argument("--max-tokens", type=int, default=64, metavar="N", help="most tokens to generate")
    generate.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 takes the likeliest token")
    generate.add_argument("--top-p", type=float, default=1.0, metavar="P", help="0 < P <= 1")
    generate.add_argument("--top-k", type=int, default=0, metavar="K", help="0 sets no bound")
    generate.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="a text that ends the answer; may be repeated"
    )
    generate.add_argument("--seed", type=int, default=0, metavar="N", help="seed of the sampling")
    return parser


def _add_serve(parser: argparse.ArgumentParser) -> None:
    add = _adder(parser)
    add("--model", "model", str, "NAME", "built-in name, local directory or hub id")
    add("--address", "address", str, "HOST:PORT", "where gRPC listens; port 0 takes a free one")
    add("--http-address", "http_address", str, "HOST:PORT", "where /livez, /readyz and /metrics listen")
    add("--workers", "worker_count", int, "N", "cores to work on; the default is the cgroup's CPU limit")
    add("--max-queued", "max_queued_count", int, "N", "requests that may wait for a worker before more are refused")
    add(
        "--memory-budget",
        "memory_budget_bytes",
        parse_bytes,
        "SIZE",
        "memory for all requests together, such as 4GiB; the default is half of the cgroup's limit",
    )
    add("--worker-memory", "worker_memory_bytes", parse_bytes, "SIZE", "memory one worker may take; 0 means the budget")
    add("--max-cpu-seconds", "max_cpu_seconds", float, "S", "CPU that one request may use in one stage")
    add("--max-jobs-a-worker", "max_jobs_a_worker", int, "N", "jobs after which a worker process is replaced")
    parser.add_argument(
        "--in-process",
        dest="is_in_process",
        action="store_true",
        help="work on threads: for debugging only, nothing is isolated",
    )
    add("--engine", "engine_address", str, "HOST:PORT", "Triton's gRPC address; without it, Generate is not served")
    add("--engine-model", "engine_model", str, "NAME", "the model's name in Triton")
    add("--video-decoder", "video_decoder", str, "NAME", "pyav, or opencv to decode as OpenCV does")
    add("--drain-seconds", "drain_seconds", float, "S", "how long a stop waits for calls under way")
    add("--upload-idle-seconds", "upload_idle_seconds", float, "S", "longest silence within an upload")
    add("--default-timeout-seconds", "default_timeout_seconds", float, "S", "deadline of a call that brings none")
    limits = parser.add_argument_group("limits on one request")
    for field in dataclasses.fields(Limits):
        limits.add_argument(
            "--" + field.name.replace("_", "-"),
            type=int,
            default=field.default,
            metavar="N",
            help=_LIMIT_MEANINGS[field.name],
        )
    parser.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info", help="what to log"
    )


def _add_prompt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--address", default=_DEFAULTS["address"], metavar="HOST:PORT", help="the service")
    parser.add_argument(
        "--model", default="", metavar="NAME", help="as the service names it; with --local, the model to load"
    )
    parser.add_argument("--text", default="", metavar="TEXT", help="the user's text; it follows the media")
    for modality in ("video", "image"):
        parser.add_argument(
            f"--{modality}",
            dest="media",
            action=_AppendMedia,
            const=modality,
            metavar="FILE",
            help=f"a {modality} file; may be repeated, and keeps its place among the media",
        )
    parser.add_argument("--fps", type=float, metavar="F", help="frames a second to use of every video")
    parser.add_argument("--num-frames", type=int, metavar="N", help="frames to use of every video; excludes --fps")
    parser.add_argument("--every-frame", action="store_true", help="use every frame of every video; excludes both")
    parser.add_argument("--start-seconds", type=float, metavar="S", help="use only frames from here on")
    parser.add_argument("--end-seconds", type=float, metavar="S", help="use only frames before this")
    parser.add_argument(
        "--tolerant", action="store_true", help="put the last good frame in the place of one that cannot be decoded"
    )
    parser.add_argument(
        "--min-pixels", type=int, metavar="N", help="least pixels after resizing; the model's own if absent"
    )
    parser.add_argument(
        "--max-pixels", type=int, metavar="N", help="most pixels after resizing; the model's own if absent"
    )
    parser.add_argument("--timeout-seconds", type=float, default=300.0, metavar="S", help="give up after this long")
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


class _AppendMedia(argparse.Action):
    """Collects (modality, path) pairs of --video and --image in the order of the command line."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or []), (self.const, values)])


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default only where there is one to show."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        is_silent = action.default in (None, "", False)
        return action.help if is_silent else super()._get_help_string(action)


def _adder(parser: argparse.ArgumentParser) -> Any:
    def add(option: str, setting: str, kind: type, metavar: str, meaning: str) -> None:
        parser.add_argument(option, dest=setting, type=kind, default=_DEFAULTS[setting], metavar=metavar, help=meaning)

    return add
