"""The options that describe a prompt, which `prepare`, `generate`, `bench`, `plan` and `inspect` have in common."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from preprocessor.cli.option_kinds import Once, OnceInOrder, colour, not_negative, positive, whole

PIXEL_FORMS = ("uint8", "bf16", "fp16", "fp32")
_IN_PLACE = "may be repeated, and keeps its place"


@dataclass(frozen=True, slots=True)
class Place:
    """Where a command prepares a prompt, as its help tells of it.

    Attributes:
        model: What --model names.
        url: What a medium may be beside a file: the end of "an image file", or empty.
        background: What --background is if absent.
    """

    model: str
    url: str
    background: str


BY_SERVICE = Place(
    "as the service names it (default: whatever it serves)",
    ", or a URL for the service to fetch",
    "the service's own if absent",
)
_LOADED = "built-in name, local directory or hub id of the model to load (default: qwen3-vl)"
HERE = Place(_LOADED, "", "none if absent")
HERE_UNLESS_ADDRESS = Place(
    f"{_LOADED}; with --address, as the service names it",
    ", or with --address a URL for the service to fetch",
    "none if absent, with --address the service's own",
)
BY_SERVICE_UNLESS_LOCAL = Place(
    "as the service names it; with --local, the built-in name, local directory or hub id of the model to load (default: "
    "qwen3-vl)",
    ", or without --local a URL for the service to fetch",
    "the service's own if absent, with --local none",
)


def add_prompt(parser: argparse.ArgumentParser, place: Place, printed: str = "a table") -> None:
    """Add the options of a prompt.

    Args:
        printed: What --json replaces.
    """
    parser.add_argument("--model", action=Once, default="", metavar="NAME", help=place.model)
    _add_conversation(
        parser.add_argument_group(
            "the conversation",
            "--text and media are parts of one message of the user, in their order; --assistant ends it, and what follows is the "
            "next one. A message's only text comes after its media, wherever it is given.",
        ),
        place.url,
    )
    _add_sampling(parser.add_argument_group("frames and pixels"), place.background)
    parser.add_argument("--json", action="store_true", help=f"print one JSON object instead of {printed}")


def _add_conversation(group: argparse._ArgumentGroup, url: str) -> None:
    group.add_argument("--system", action=Once, default="", metavar="TEXT", help="the system prompt")
    group.add_argument(
        "--messages",
        action=Once,
        metavar="FILE.json",
        help="messages that come before those of the command line: a JSON array in OpenAI's or Hugging Face's form, or an object "
        "with `messages` and `tools`; - is standard input. Paths of media are relative to the file",
    )
    for role, about in (
        ("text", f"a text of the user; {_IN_PLACE} among the media"),
        ("assistant", "the model's answer to the message that ends here; may be repeated"),
    ):
        group.add_argument(f"--{role}", dest="parts", action=_AppendPart, const=role, metavar="TEXT", help=about)
    for modality, about in (("image", "an image file"), ("video", "a video file"), ("audio", "a file with sound")):
        group.add_argument(
            f"--{modality}",
            dest="parts",
            action=_AppendPart,
            const=modality,
            metavar="FILE",
            help=f"{about}{url}; {_IN_PLACE}",
        )
    group.add_argument(
        "--frames",
        dest="parts",
        action=_AppendPart,
        const="frames",
        metavar="DIR",
        help="a video as a folder of its frames: .jpg, .png or .webp files in the order of their names, 2 before 10, hidden "
        f"files left out; at the rate --fps or at the times --frame-times; {_IN_PLACE}",
    )
    group.add_argument(
        "--literal",
        action="store_true",
        help="let no piece of the user's text, or of a tool's answer, become a special token, whatever it spells",
    )
    group.add_argument(
        "--tools", action=Once, default="", metavar="FILE.json", help="a JSON array of tools for the chat template"
    )
    group.add_argument(
        "--template-arguments",
        action=Once,
        default="",
        metavar="JSON",
        help="a JSON object of arguments for the chat template",
    )
    group.add_argument(
        "--processor-arguments",
        action=Once,
        default="",
        metavar="JSON",
        help="a JSON object of arguments for the model's own processor, on the generic path",
    )


def _add_sampling(group: argparse._ArgumentGroup, background: str) -> None:
    choice = group.add_mutually_exclusive_group()  # `Sampling.choice`, of which a message keeps only the last
    choice.add_argument(
        "--fps",
        action=Once,
        type=positive(float),
        metavar="F",
        help="frames per second to use of every video; of --frames, their rate",
    )
    choice.add_argument(
        "--frame-times",
        action=Once,
        metavar="FILE",
        help="when the frames of --frames are shown: a text file of seconds, one number for each frame; excludes --fps",
    )
    choice.add_argument(
        "--num-frames", action=Once, type=whole(31, 1), metavar="N", help="frames to use of every video; excludes --fps"
    )
    choice.add_argument("--every-frame", action="store_true", help="use every frame of every video; excludes both")
    for name, about in (("start", "use only frames from here on"), ("end", "use only frames before this")):
        group.add_argument(
            f"--{name}-seconds",
            action=OnceInOrder,
            ordered=("start_seconds", "end_seconds"),
            may_be_equal=False,
            type=not_negative,
            metavar="S",
            help=about,
        )
    group.add_argument(
        "--tolerant", action="store_true", help="put the last good frame in the place of one that cannot be decoded"
    )
    for bound in ("min", "max"):
        group.add_argument(
            f"--{bound}-pixels",
            action=OnceInOrder,
            ordered=("min_pixels", "max_pixels"),
            may_be_equal=True,
            type=whole(63, 1),
            metavar="N",
            help=f"{'least' if bound == 'min' else 'most'} pixels after resizing; the model's own if absent",
        )
    group.add_argument(
        "--background",
        action=Once,
        type=colour,
        metavar="COLOUR",
        help=f"what transparent parts of images are laid on: white, black, #rrggbb or none; {background}",
    )


def add_dtype(
    parser: argparse._ActionsContainer, default: str = "uint8, or on the generic path what the model's processor makes"
) -> None:
    parser.add_argument("--dtype", choices=PIXEL_FORMS, help=f"form of the pixels (default: {default})")


class _AppendPart(argparse.Action):
    """Collects (kind, value) pairs of texts, answers and media in the order of the command line."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: str | Sequence[Any] | None,
        option_string: str | None = None,
    ) -> None:
        setattr(namespace, self.dest, [*(getattr(namespace, self.dest) or []), (self.const, values)])
