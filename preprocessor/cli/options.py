"""The options of every command, each with its default and meaning."""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence
from typing import Any

from preprocessor.config import AccessSettings, EngineSettings, Limits, ServeSettings, WireSettings, option_of
from preprocessor.version import VERSION

_DEFAULT_ADDRESS = next(field.default for field in dataclasses.fields(ServeSettings) if field.name == "address")


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
    fingerprint = commands.add_parser(
        "fingerprint", help="print what an engine must be set up for, as parameters of its Triton model"
    )
    fingerprint.add_argument("model", metavar="MODEL", help="built-in name, local directory or hub id")
    return parser


def _add_serve(parser: argparse.ArgumentParser) -> None:
    _add_settings(parser, ServeSettings)
    _add_settings(parser.add_argument_group("who may call"), AccessSettings)
    _add_settings(parser.add_argument_group("the wire"), WireSettings)
    _add_settings(parser.add_argument_group("the engine, for Generate"), EngineSettings, "engine-")
    _add_settings(parser.add_argument_group("limits on one request"), Limits)
    parser.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="info", help="what to log"
    )


def _add_settings(group: argparse._ActionsContainer, settings: type, prefix: str = "") -> None:
    """An option for each field of a class of settings; see `config.setting`."""
    for field in dataclasses.fields(settings):
        if not field.metadata:
            continue  # settings of their own
        given = {"dest": prefix + field.name, "default": default_of(field), "help": field.metadata["meaning"]}
        if field.metadata["kind"] is bool:
            group.add_argument(option_of(field, prefix), action="store_true", **given)
        else:
            group.add_argument(
                option_of(field, prefix), type=field.metadata["kind"], metavar=field.metadata["metavar"], **given
            )


def default_of(field: dataclasses.Field[Any]) -> Any:
    """A setting's default, found now where it has to be found."""
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _add_prompt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--address", default=_DEFAULT_ADDRESS, metavar="HOST:PORT", help="the service")
    _add_credentials(parser.add_argument_group("to and from a service on another machine"))
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


def _add_credentials(group: argparse._ActionsContainer) -> None:
    """See `client.Credentials`."""
    group.add_argument("--tls", action="store_true", help="call by TLS; implied by the files below")
    for name, metavar, meaning in (
        ("tls-root", "FILE", "PEM of the authorities that may have signed the service's certificate"),
        ("tls-certificate", "FILE", "PEM of this side's certificate, for mutual TLS"),
        ("tls-key", "FILE", "PEM of its private key"),
        ("tls-server-name", "NAME", "the name in the service's certificate, where that is not the host"),
        ("token-file", "FILE", "a bearer token to send along"),
    ):
        group.add_argument(f"--{name}", default="", metavar=metavar, help=meaning)
    group.add_argument("--insecure", action="store_true", help="call another machine without TLS")


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
