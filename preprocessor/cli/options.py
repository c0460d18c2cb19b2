"""The options of every command, each with its default and meaning."""

from __future__ import annotations

import argparse
from itertools import groupby
from typing import Any

from preprocessor import __version__
from preprocessor.cli.option_kinds import Formatter, Once, not_negative, positive, share, whole
from preprocessor.cli.prompt_options import (
    BY_SERVICE,
    BY_SERVICE_UNLESS_LOCAL,
    HERE,
    HERE_UNLESS_ADDRESS,
    add_dtype,
    add_prompt,
)
from preprocessor.cli.reference import default_text
from preprocessor.cli.sources import CONFIG_FLAG, CONFIG_VARIABLE, OPTIONS
from preprocessor.config.declare import Option

_DEFAULT_ADDRESS = next(option.default for option in OPTIONS if option.key == "address")
_SETTINGS_RULE = """\
Each setting is also an environment variable, PREPROCESSOR_ and the option's name in capitals (PREPROCESSOR_DRAIN_SECONDS),
and a key of the TOML file that --config names; a flag goes before a variable, and a variable before the file.
--show-config prints such a file."""


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
    prepare = commands.add_parser(
        "prepare",
        help="turn a prompt with media into tensors",
        description="Turns a prompt with media into the tensors that an engine takes, by a service or, with --local, in this "
        "process. It prints what was prepared and how long each stage took; --output saves the tensors.",
        formatter_class=Formatter,
    )
    _add_service(prepare)
    add_prompt(prepare, BY_SERVICE_UNLESS_LOCAL)
    where = prepare.add_mutually_exclusive_group()
    where.add_argument("--local", action="store_true", help="prepare in this process instead of asking a service")
    _add_shared_memory(where)
    add_dtype(prepare)
    prepare.add_argument(
        "--output", action=Once, metavar="FILE.safetensors", help="save the tensors by the engine contract's names"
    )
    generate = commands.add_parser(
        "generate",
        help="send a prompt with media through the service to its engine",
        description="Sends a prompt with media through the service to its engine, and prints the answer as it comes. The "
        "service must have been started with --engine.",
        formatter_class=Formatter,
    )
    _add_service(generate)
    add_prompt(generate, BY_SERVICE, "the answer as it comes and a table")
    generate.add_argument("--max-tokens", type=whole(31), default=64, metavar="N", help="most tokens to generate")
    generate.add_argument("--temperature", type=float, default=0.0, metavar="T", help="0 takes the likeliest token")
    generate.add_argument("--top-p", type=float, default=1.0, metavar="P", help="0 < P <= 1")
    generate.add_argument("--top-k", type=whole(31), default=0, metavar="K", help="0 sets no bound")
    generate.add_argument(
        "--stop", action="append", default=[], metavar="TEXT", help="a text that ends the answer; may be repeated"
    )
    generate.add_argument("--seed", type=whole(64), default=0, metavar="N", help="seed of the sampling")
    _add_features(generate)
    bench = commands.add_parser("bench", help="put a load on a service and measure it", formatter_class=Formatter)
    _add_service(bench)
    add_prompt(bench, BY_SERVICE)
    _add_load(bench)
    plan = commands.add_parser(
        "plan",
        help="tell how many cores, bytes and pods a load needs",
        description="Tells how many cores, bytes and pods a load of such requests needs. It asks no service: this process reads "
        "the files' headers and estimates, or measures with --measure.",
        formatter_class=Formatter,
    )
    add_prompt(plan, HERE)
    add_dtype(plan, "uint8")  # it refuses the generic path
    plan.add_argument("--rps", type=positive(float), required=True, metavar="R", help="such requests a second")
    plan.add_argument("--cores-per-pod", type=positive(int), default=4, metavar="N", help="--workers of a pod")
    plan.add_argument(
        "--utilization", type=share, default=0.7, metavar="U", help="share of the cores that the load may take"
    )
    plan.add_argument(
        "--measure", action="store_true", help="prepare the request here a few times, instead of estimating its cost"
    )
    inspect = commands.add_parser(
        "inspect", help="write an HTML file that shows what a prompt became", formatter_class=Formatter
    )
    _add_inspection(inspect)
    fingerprint = commands.add_parser(
        "fingerprint",
        help="print what an engine must be set up for, as parameters of its Triton model",
        description="Prints what an engine must be set up for: digests of everything about a model that can change a prompt or a "
        "pixel, as parameters for the config.pbtxt of its Triton model. A service refuses an engine with others.",
    )
    fingerprint.add_argument("model", metavar="MODEL", help="built-in name, local directory or hub id")
    fingerprint.add_argument(
        "--video-markers",
        choices=("auto", "keep", "replace"),
        default="auto",
        help="as `serve` takes it, without an engine",
    )
    commands.add_parser(
        "constraints",
        help="print the versions this release was tested with, as pip's constraints",
        description="Prints the versions of all libraries that this release was tested with, as a constraints file for pip "
        "(pip install --constraint). It needs none of them.",
    )
    completion = commands.add_parser(
        "completion",
        help="print what a shell needs to complete commands, options and files",
        description="Prints what a shell needs to complete this program's commands, options and files.",
        epilog="bash: source <(preprocessor completion bash). zsh: put what it prints into a file _preprocessor of a folder in "
        "$fpath. fish: put it into ~/.config/fish/completions/preprocessor.fish.",
    )
    completion.add_argument("shell", choices=("bash", "zsh", "fish"))
    return parser


def _add_settings_command(commands: Any, name: str, about: str) -> argparse.ArgumentParser:
    """A command that takes every setting of the service."""
    parser: argparse.ArgumentParser = commands.add_parser(
        name,
        help=about,
        usage=f"preprocessor {name} [--config FILE] [option ...]",
        description=f"{about[0].upper()}{about[1:]}.",
        epilog=_SETTINGS_RULE,
        formatter_class=Formatter,
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


def _add_service(parser: argparse.ArgumentParser, default_address: str | None = _DEFAULT_ADDRESS) -> None:
    about = "the service" if default_address else "a service that prepares the prompt, instead of this process"
    parser.add_argument("--address", default=default_address, metavar="HOST:PORT", help=about)
    parser.add_argument(
        "--timeout-seconds", type=positive(float), default=300.0, metavar="S", help="give up after this long"
    )
    _add_credentials(parser.add_argument_group("to and from a service on another machine"))


def _add_shared_memory(group: argparse._ActionsContainer) -> None:
    group.add_argument(
        "--shared-memory",
        action="store_true",
        help="have large tensors written into shared memory, by a service on this host that was started with "
        "--caller-shared-memory",
    )


def _add_inspection(parser: argparse.ArgumentParser) -> None:
    parser.description = (
        "Writes one HTML file that shows what a prompt became: the frames as the model gets them, the clip's timeline, the "
        "patch grid, the token map, sizes, costs and settings. It loads nothing. The prompt is prepared in this process, by "
        "the service at --address, or was saved by `prepare --output`."
    )
    parser.add_argument("saved", nargs="?", metavar="FILE.safetensors", help="a prompt that `prepare --output` saved")
    parser.add_argument("--output", action=Once, default="inspect.html", metavar="FILE.html", help="the page to write")
    parser.add_argument(
        "--save-frames", action=Once, metavar="DIR", help="write every frame as a PNG file into this folder too"
    )
    parser.add_argument(
        "--most-frames", type=positive(int), default=64, metavar="N", help="frames of each item that the page shows"
    )
    parser.add_argument(
        "--tokenizer",
        action=Once,
        default="",
        metavar="MODEL",
        help="with --address or a saved prompt: the model whose tokenizer tells the tokens' texts (default: that of the prompt, "
        "if it is built in)",
    )
    _add_service(parser, None)
    add_prompt(parser, HERE_UNLESS_ADDRESS, "lines of text")
    add_dtype(parser)


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
        type=whole(31),
        metavar="K",
        help="tell the log probability of each token and of the K likeliest in its place, 0 to 20; with --json",
    )
    group.add_argument(
        "--answers", type=whole(31), metavar="N", help="answers to the prompt, 1 to 128; needs a temperature above 0"
    )
    constraint = group.add_mutually_exclusive_group()  # `GenerationParameters.constraint`
    constraint.add_argument(
        "--json-schema", action=Once, metavar="FILE.json", help="the answer is JSON that this schema allows"
    )
    constraint.add_argument(
        "--regex", action=Once, metavar="TEXT", help="the whole answer matches this regular expression"
    )
    constraint.add_argument(
        "--grammar", action=Once, metavar="FILE", help="the answer is a sentence of this EBNF grammar"
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
        type=positive(int),
        metavar="N",
        help="closed loop: callers, each with one request open (default: 8); with --rate: the most open at once "
        "(default: 1024)",
    )
    group.add_argument(
        "--rate",
        type=positive(float),
        metavar="R",
        help="open loop: requests a second, whatever the service does; latencies count from when a request was due",
    )
    group.add_argument(
        "--arrivals",
        choices=("even", "poisson"),
        default="even",
        help="with --rate: evenly spaced, or as independent callers arrive",
    )
    group.add_argument("--seconds", type=positive(float), default=10.0, metavar="S", help="how long to measure")
    group.add_argument(
        "--warm-up-seconds", type=not_negative, default=2.0, metavar="S", help="how long to run before that"
    )
    group.add_argument(
        "--processes", type=positive(int), default=1, metavar="N", help="processes of callers; one fills one core"
    )
    group.add_argument("--connections", type=positive(int), default=1, metavar="N", help="connections of each process")
    group.add_argument(
        "--repeat-media",
        action="store_true",
        help="let the service answer from its cache; without this the same media are new to it in each request",
    )
    _add_shared_memory(group)
    add_dtype(group)
    group.add_argument("--max-tokens", type=positive(int), default=16, metavar="N", help="with --method generate")


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
