"""The options of every command, each with its default and meaning."""

from __future__ import annotations

import argparse
import math
from collections.abc import Callable, Sequence
from itertools import groupby
from typing import Any

from preprocessor import __version__
from preprocessor.cli.reference import default_text
from preprocessor.cli.sources import CONFIG_FLAG, CONFIG_VARIABLE, OPTIONS
from preprocessor.config.declare import Option

_DEFAULT_ADDRESS = next(option.default for option in OPTIONS if option.key == "address")
_SETTINGS_RULE = """\
Each setting is also an environment variable, PREPROCESSOR_ and the option's name in capitals (PREPROCESSOR_DRAIN_SECONDS),
and a key of the TOML file that --config names; a flag goes before a variable, and a variable before the file.
--show-config prints such a file."""

_FILES = {"video": "a video file", "image": "an image file", "audio": "a file with sound"}
PIXEL_FORMS = ("uint8", "bf16", "fp16", "fp32")


def build_parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="preprocessor", description="Preprocessing for vision-language models, as a service or on the spot."
    )
    parser.add_argument("--version", action="version", version=f"preprocessor {__version__}")
    commands = parser.add_subparsers(dest="command", required=True, metavar="COMMAND")
    serve = _add_settings_command(commands, "serve", "run the service")
    serve.add_argument(
        "--show-config", action="store_true", help="print every setting with where it came from, and do nothing else"
    )
    doctor = _add_settings_command(commands, "doctor", "check what `serve` with the same options would run on")
    doctor.add_argument("--json", action="store_true", help="print one JSON object instead of a list")
    prepare = commands.add_parser("prepare", help="turn a prompt with media into tensors", formatter_class=_Formatter)
    _add_service(prepare)
    _add_prompt(prepare)
    prepare.add_argument("--local", action="store_true", help="prepare in this process instead of asking a service")
    _add_dtype(prepare)
    prepare.add_argument(
        "--output", action=_Once, metavar="FILE.safetensors", help="save the tensors by the engine contract's names"
    )
    generate = commands.add_parser(
        "generate", help="send a prompt with media through the service to its engine", formatter_class=_Formatter
    )
    _add_service(generate)
    _add_prompt(generate)
    generate.add_argument("--max-tokens", type=_whole(31), default=64, metavar="N", help="most tokens to generate")
    generate.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 takes the likeliest token")
    generate.add_argument("--top-p", type=float, default=1.0, metavar="P", help="0 < P <= 1")
    generate.add_argument("--top-k", type=_whole(31), default=0, metavar="K", help="0 sets no bound")
    generate.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="a text that ends the answer; may be repeated"
    )
    generate.add_argument("--seed", type=_whole(64), default=0, metavar="N", help="seed of the sampling")
    _add_features(generate)
    bench = commands.add_parser("bench", help="put a load on a service and measure it", formatter_class=_Formatter)
    _add_service(bench)
    _add_prompt(bench)
    _add_load(bench)
    plan = commands.add_parser(
        "plan", help="tell how many cores, bytes and pods a load needs", formatter_class=_Formatter
    )
    _add_prompt(plan)
    _add_dtype(plan)
    plan.add_argument("--rps", type=_positive(float), required=True, metavar="R", help="such requests a second")
    plan.add_argument("--cores-per-pod", type=_positive(int), default=4, metavar="N", help="--workers of a pod")
    plan.add_argument(
        "--utilization", type=_share, default=0.7, metavar="U", help="share of the cores that the load may take"
    )
    plan.add_argument(
        "--measure", action="store_true", help="prepare the request here a few times, instead of estimating its cost"
    )
    fingerprint = commands.add_parser(
        "fingerprint", help="print what an engine must be set up for, as parameters of its Triton model"
    )
    fingerprint.add_argument("model", metavar="MODEL", help="built-in name, local directory or hub id")
    fingerprint.add_argument(
        "--video-markers",
        choices=("auto", "keep", "replace"),
        default="auto",
        help="as `serve` takes it, without an engine",
    )
    commands.add_parser("constraints", help="print the versions this release was tested with, as pip's constraints")
    return parser


def _add_settings_command(commands: Any, name: str, about: str) -> argparse.ArgumentParser:
    """A command that takes every setting of the service."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=about,
        usage=f"preprocessor {name} [--config FILE] [option ...]",
        description=f"{about[0].upper()}{about[1:]}.",
        epilog=_SETTINGS_RULE,
        formatter_class=_Formatter,
        allow_abbrev=False,  # an abbreviation that is clear today is ambiguous after the next release
    )
    parser.add_argument(CONFIG_FLAG, metavar="FILE", help=f"a TOML file of settings [{CONFIG_VARIABLE}]")
    for holder, options in groupby(OPTIONS, key=lambda option: option.group):
        section = parser if holder is None else parser.add_argument_group(holder.metadata["title"])
        for option in options:
            _add_setting(section, option)
    return parser


def _add_setting(section: argparse._ActionsContainer, option: Option) -> None:
    """A flag that keeps what the user wrote, to be read with what the other sources say; see `sources`."""
    default = default_text(option)
    notes = f" (default: {default})" if default and option.kind is not bool else ""
    about = f"{option.meaning}{notes} [{option.variable}]".replace("%", "%%")
    if option.kind is bool:
        section.add_argument(
            option.flag, dest=option.flag, action=argparse.BooleanOptionalAction, default=None, help=about
        )
    else:
        action = "append" if option.is_list or option.is_joined else "store"
        section.add_argument(option.flag, dest=option.flag, action=action, metavar=option.metavar, help=about)


def _add_service(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--address", default=_DEFAULT_ADDRESS, metavar="HOST:PORT", help="the service")
    parser.add_argument(
        "--timeout-seconds", type=_positive(float), default=300.0, metavar="S", help="give up after this long"
    )
    _add_credentials(parser.add_argument_group("to and from a service on another machine"))


def _add_prompt(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model",
        action=_Once,
        default="",
        metavar="NAME",
        help="as the service names it; with --local, the model to load",
    )
    parser.add_argument(
        "--text", action=_Once, default="", metavar="TEXT", help="the user's text; it follows the media"
    )
    parser.add_argument(
        "--literal", action="store_true", help="let no piece of the text become a special token, whatever it spells"
    )
    parser.add_argument(
        "--tools", action=_Once, default="", metavar="FILE.json", help="a JSON array of tools for the chat template"
    )
    parser.add_argument(
        "--template-arguments",
        action=_Once,
        default="",
        metavar="JSON",
        help="a JSON object of arguments for the chat template",
    )
    parser.add_argument(
        "--processor-arguments",
        action=_Once,
        default="",
        metavar="JSON",
        help="a JSON object of arguments for the model's own processor, on the generic path",
    )
    for modality in ("video", "image", "audio"):
        parser.add_argument(
            f"--{modality}",
            dest="media",
            action=_AppendMedia,
            const=modality,
            metavar="FILE",
            help=f"{_FILES[modality]}, or a URL for the service to fetch; may be repeated, and keeps its place among the media",
        )
    parser.add_argument(
        "--frames",
        dest="media",
        action=_AppendMedia,
        const="frames",
        metavar="DIR",
        help="a video as a folder of its frames: .jpg, .png or .webp files in the order of their names, at the rate --fps or at "
        "the times --frame-times; may be repeated, and keeps its place among the media",
    )
    choice = parser.add_mutually_exclusive_group()  # `Sampling.choice`, of which a message keeps only the last
    choice.add_argument(
        "--fps",
        action=_Once,
        type=float,
        metavar="F",
        help="frames per second to use of every video; of --frames, their rate",
    )
    choice.add_argument(
        "--frame-times",
        action=_Once,
        metavar="FILE",
        help="when the frames of --frames are shown: a text file of seconds, one number for each frame; excludes --fps",
    )
    choice.add_argument(
        "--num-frames", action=_Once, type=_whole(31), metavar="N", help="frames to use of every video; excludes --fps"
    )
    choice.add_argument("--every-frame", action="store_true", help="use every frame of every video; excludes both")
    parser.add_argument("--start-seconds", action=_Once, type=float, metavar="S", help="use only frames from here on")
    parser.add_argument("--end-seconds", action=_Once, type=float, metavar="S", help="use only frames before this")
    parser.add_argument(
        "--tolerant", action="store_true", help="put the last good frame in the place of one that cannot be decoded"
    )
    parser.add_argument(
        "--min-pixels",
        action=_Once,
        type=_whole(63),
        metavar="N",
        help="least pixels after resizing; the model's own if absent",
    )
    parser.add_argument(
        "--max-pixels",
        action=_Once,
        type=_whole(63),
        metavar="N",
        help="most pixels after resizing; the model's own if absent",
    )
    parser.add_argument(
        "--background",
        action=_Once,
        metavar="COLOUR",
        help="what transparent parts of images are laid on: white, black, #rrggbb or none; the service's own if absent",
    )
    parser.add_argument("--json", action="store_true", help="print one JSON object instead of a table")


def _add_features(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("what an engine may lack, and is then refused by name")
    group.add_argument(
        "--min-p", type=float, metavar="P", help="least share of the likeliest token's probability, 0 to 1"
    )
    group.add_argument("--presence-penalty", type=float, metavar="X", help="on tokens of the answer, -2 to 2")
    group.add_argument("--frequency-penalty", type=float, metavar="X", help="the same for each time, -2 to 2")
    group.add_argument(
        "--repetition-penalty", type=float, metavar="X", help="on tokens of prompt and answer; 1 is none, 1/16 to 16"
    )
    group.add_argument(
        "--logprobs",
        type=_whole(31),
        metavar="K",
        help="tell the log probability of each token and of the K likeliest in its place, 0 to 20; with --json",
    )
    group.add_argument(
        "--answers", type=_whole(31), metavar="N", help="answers to the prompt, 1 to 128; needs a temperature above 0"
    )
    constraint = group.add_mutually_exclusive_group()  # `GenerationParameters.constraint`
    constraint.add_argument(
        "--json-schema", action=_Once, metavar="FILE.json", help="the answer is JSON that this schema allows"
    )
    constraint.add_argument(
        "--regex", action=_Once, metavar="TEXT", help="the whole answer matches this regular expression"
    )
    constraint.add_argument(
        "--grammar", action=_Once, metavar="FILE", help="the answer is a sentence of this EBNF grammar"
    )


def _add_load(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Puts a load on a service and measures it from outside. Without media or text it sends the seed workload: a 30 s "
        "374x374 clip made here, at 1 frame a second unless asked otherwise, and 50 tokens of text."
    )
    group = parser.add_argument_group("the load")
    group.add_argument(
        "--method", choices=("prepare", "generate", "count-tokens"), default="prepare", help="what to call"
    )
    group.add_argument(
        "--concurrency",
        type=_positive(int),
        metavar="N",
        help="closed loop: callers, each with one request open (default: 8); with --rate: the most open at once "
        "(default: 1024)",
    )
    group.add_argument(
        "--rate",
        type=_positive(float),
        metavar="R",
        help="open loop: requests a second, whatever the service does; latencies count from when a request was due",
    )
    group.add_argument(
        "--arrivals",
        choices=("even", "poisson"),
        default="even",
        help="with --rate: evenly spaced, or as independent callers arrive",
    )
    group.add_argument("--seconds", type=_positive(float), default=10.0, metavar="S", help="how long to measure")
    group.add_argument(
        "--warm-up-seconds", type=_not_negative, default=2.0, metavar="S", help="how long to run before that"
    )
    group.add_argument(
        "--processes", type=_positive(int), default=1, metavar="N", help="processes of callers; one fills one core"
    )
    group.add_argument("--connections", type=_positive(int), default=1, metavar="N", help="connections of each process")
    group.add_argument(
        "--repeat-media",
        action="store_true",
        help="let the service answer from its cache; without this the same media are new to it in each request",
    )
    _add_dtype(group)
    group.add_argument("--max-tokens", type=_positive(int), default=16, metavar="N", help="with --method generate")


def _add_dtype(parser: argparse._ActionsContainer) -> None:
    parser.add_argument(
        "--dtype",
        choices=PIXEL_FORMS,
        help="form of the pixels (default: uint8, or on the generic path what the model's processor makes)",
    )


def _positive(kind: type[int] | type[float]) -> Callable[[str], float]:
    def number(text: str) -> float:
        value = kind(text)
        if not 0 < value < math.inf:
            raise argparse.ArgumentTypeError(f"{text} is not accepted; give a number above 0")
        return value

    number.__name__ = kind.__name__  # argparse names it where the text is no number
    return number


def _whole(bits: int) -> Callable[[str], int]:
    """A whole number from 0 on that a field of so many bits holds."""

    def number(text: str) -> int:
        value = int(text)
        if not 0 <= value < 1 << bits:
            raise argparse.ArgumentTypeError(f"{text} is not accepted; give a whole number from 0 to {(1 << bits) - 1}")
        return value

    number.__name__ = "int"  # argparse names it where the text is no number
    return number


def _share(text: str) -> float:
    value = float(text)
    if not 0 < value < 1:
        raise argparse.ArgumentTypeError(f"{text} is not accepted; give a number between 0 and 1")
    return value


def _not_negative(text: str) -> float:
    value = float(text)
    if not 0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"{text} is not accepted; give a number from 0 on")
    return value


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


class _Once(argparse.Action):
    """Refuses an option that is given twice: it is for the whole request, and the first one would be lost."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        given = vars(namespace).setdefault("given_once", set())
        if self.dest in given:
            parser.error(f"{option_string} is given twice, and counts for the whole request; give it once")
        given.add(self.dest)
        setattr(namespace, self.dest, values)


class _AppendMedia(argparse.Action):
    """Collects (modality, path) pairs of --video, --image and --audio in the order of the command line."""

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
