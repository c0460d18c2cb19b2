"""The options that describe a prompt → the messages that are sent."""

from __future__ import annotations

import argparse
import ast
import io
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from preprocessor.__main__ import main
from preprocessor.cli.options import build_parser
from preprocessor.cli.prompts import build_prompt
from preprocessor.config import SettingError
from preprocessor.errors import InvalidRequest
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.media import photo

ROOT = Path(__file__).parents[2]
Told = list[tuple[str, list[str]]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The current folder: three files, a folder of frames, and files for other options."""
    for name in ("a.png", "b.png", "clip.mp4", "frames/1.png", "frames/2.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(photo(32, 32, "PNG") + name.encode())
    (tmp_path / "times").write_text("0 1.5")
    (tmp_path / "tools.json").write_text("[1]")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def spec_of(*arguments: str) -> pb.PrepareSpec:
    return build_prompt(build_parser().parse_args(["prepare", *arguments])).spec


def told(spec: pb.PrepareSpec) -> Told:
    """Role and parts of each message; a literal text in brackets."""
    return [
        (message.role, [part.text or part.media_key or f"[{part.literal_text}]" for part in message.parts])
        for message in spec.chat.messages
    ]


CONVERSATIONS: dict[str, tuple[str, Told]] = {
    "text follows media": ("--text T --image a.png --image b.png", [("user", ["a.png", "b.png", "T"])]),
    "texts among media": ("--text 1 --image a.png --text 2 --image b.png", [("user", ["1", "a.png", "2", "b.png"])]),
    "turns": (
        "--system S --image a.png --text 1 --assistant A --text 2 --assistant B --text 3 --image b.png",
        [
            ("system", ["S"]),
            *[("user", ["a.png", "1"]), ("assistant", ["A"]), ("user", ["2"]), ("assistant", ["B"])],
            ("user", ["b.png", "3"]),
        ],
    ),
    "a sound": ("--audio clip.mp4 --text T", [("user", ["clip.mp4", "T"])]),
    "literal": (
        "--system S --text 1 --assistant A --literal",
        [("system", ["S"]), ("user", ["[1]"]), ("assistant", ["A"])],
    ),
}


@pytest.mark.parametrize("case", CONVERSATIONS)
def test_a_conversation_is_written_from_left_to_right(case: str, here: Path) -> None:
    arguments, expected = CONVERSATIONS[case]
    assert told(spec_of(*arguments.split())) == expected


def test_frames_are_in_the_order_of_the_numbers_in_their_names(here: Path) -> None:
    folder = here / "numbered"
    folder.mkdir()
    names = ["a1.png", "a2.JPG", "a10.png", "a10b2.png", "a10b11.png", "b1.webp", "b01.png"]
    for name in (".a0.png", "._a1.png", "notes.txt", *names):
        (folder / name).write_bytes(name.encode())
    sent = spec_of("--frames", "numbered", "--fps", "1", "--text", "T").media[0]
    assert sent.inline_data.decode() == "a1.pnga2.JPGa10.pnga10b2.pnga10b11.pngb01.pngb1.webp"
    assert list(sent.frames.sizes_bytes) == [6, 6, 7, 9, 10, 7, 7]


MESSAGES = [
    {"role": "system", "content": "S"},
    {"role": "user", "content": ["see", {"type": "image", "path": "a.png"}, {"type": "text", "text": "1"}]},
    {"role": "assistant", "content": None, "tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]},
    {"role": "tool", "content": "done"},
]
BEGIN = [("system", ["S"]), ("user", ["see", "a.png", "1"]), ("assistant", []), ("tool", ["done"])]


@pytest.mark.parametrize("form", ["array", "object"])
def test_messages_of_a_file_come_first_and_media_are_beside_it(form: str, here: Path) -> None:
    file = here / "frames" / "talk.json"
    (here / "frames" / "a.png").write_bytes(b"beside it")
    file.write_text(json.dumps(MESSAGES if form == "array" else {"messages": MESSAGES, "tools": [{"z": 1, "a": 2.0}]}))
    spec = spec_of("--messages", str(file), "--text", "2", "--max-pixels", "9999")
    assert told(spec) == [*BEGIN, ("user", ["2"])]
    assert spec.chat.messages[2].extra_json == '{"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}'
    assert spec.chat.tools_json == ("" if form == "array" else '[{"z": 1, "a": 2.0}]')
    assert (spec.media[0].inline_data, spec.media[0].max_pixel_count) == (b"beside it", 9999)


def test_messages_may_come_by_standard_input(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(json.dumps(MESSAGES)))
    assert told(spec_of("--messages", "-", "--literal")) == [
        *[("system", ["S"]), ("user", ["[see]", "a.png", "[1]"]), ("assistant", []), ("tool", ["[done]"])]
    ]


@pytest.mark.parametrize("content", ["", "{", '"Hi"', '{"messages": {}}', '{"messages": [], "model": "m"}', "\xff"])
def test_a_file_of_another_form_is_refused_by_the_option(content: str, here: Path) -> None:
    (here / "talk.json").write_text(content, encoding="latin-1")
    with pytest.raises(SettingError, match=r"^--messages: 'talk.json' is not accepted"):
        spec_of("--messages", "talk.json")


@pytest.mark.parametrize(
    ("arguments", "wrong"),
    [
        ("--messages talk.json --system S", "leave --system out"),
        ("--messages talk.json --tools tools.json", "leave --tools out"),
        ("--image a.png --frame-times times", "--frames, which is not given"),
    ],
)
def test_options_that_contradict_each_other_are_refused(arguments: str, wrong: str, here: Path) -> None:
    (here / "talk.json").write_text(json.dumps({"messages": MESSAGES, "tools": []}))
    with pytest.raises(InvalidRequest, match=wrong):
        spec_of(*arguments.split())


def test_a_bad_message_of_a_file_is_one_line(here: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (here / "talk.json").write_text('[{"role": "user", "content": [{"type": "image", "file": "a.png"}]}]')
    assert main(["prepare", "--messages", "talk.json"]) == 1
    error = capsys.readouterr().err
    assert error.startswith("preprocessor: INVALID_MESSAGE: ")
    assert error.count("\n") == 1


CLIP = "--video clip.mp4"
# What each option is added to, and with which value: it must change what is sent.
USES: dict[str, tuple[str, str]] = {
    "--model": (CLIP, "m"),
    "--system": (CLIP, "S"),
    "--messages": (CLIP, "talk.json"),
    "--text": (CLIP, "T"),
    "--assistant": (CLIP, "A"),
    "--image": (CLIP, "a.png"),
    "--video": ("--text T", "clip.mp4"),
    "--audio": (CLIP, "a.png"),
    "--frames": ("--text T --fps 2", "frames"),
    "--literal": ("--text T", ""),
    "--tools": (CLIP, "tools.json"),
    "--template-arguments": (CLIP, '{"a":1}'),
    "--processor-arguments": (CLIP, '{"a":1}'),
    "--fps": (CLIP, "2"),
    "--frame-times": ("--frames frames", "times"),
    "--num-frames": (CLIP, "4"),
    "--every-frame": (CLIP, ""),
    "--start-seconds": (CLIP, "1"),
    "--end-seconds": (CLIP, "1"),
    "--tolerant": (CLIP, ""),
    "--min-pixels": (CLIP, "1000"),
    "--max-pixels": (CLIP, "1000"),
    "--background": ("--image a.png", "white"),
    "--dtype": (CLIP, "bf16"),
}
OUTSIDE = {"--json"}  # of the table; tests/service/test_cli.py tests it


@pytest.mark.parametrize("option", USES)
def test_every_option_of_a_prompt_changes_what_is_sent(option: str, here: Path) -> None:
    (here / "talk.json").write_text(json.dumps(MESSAGES))
    base, value = USES[option]
    given = spec_of(*base.split(), option, *([value] if value else []))
    try:
        without = spec_of(*base.split())
    except InvalidRequest:  # such as frames without times
        return
    assert given != without


@pytest.mark.parametrize("command", ["prepare", "generate", "bench", "plan", "inspect"])
@pytest.mark.parametrize(
    "wrong",
    [
        *(f"--fps {value}" for value in ("nan", "inf", "0", "-1")),
        *(f"--{name}-seconds {value}" for name in ("start", "end") for value in ("nan", "inf", "-1")),
        *("--num-frames 0", "--min-pixels 0", "--max-pixels 0", "--background puce"),
        *("--min-pixels 10 --max-pixels 5", "--max-pixels 5 --min-pixels 10"),
        *("--start-seconds 2 --end-seconds 2", "--end-seconds 1 --start-seconds 2"),
    ],
)
def test_a_value_that_no_medium_could_have_is_refused_without_one(
    wrong: str, command: str, capsys: pytest.CaptureFixture[str]
) -> None:
    further = ["--rps", "1"] if command == "plan" else []
    with pytest.raises(SystemExit) as ended:
        main([command, *further, "--text", "Hi", *wrong.split()])
    error = capsys.readouterr().err
    assert ended.value.code == 2
    assert "is not accepted; give " in error or "'puce' is no background" in error


def test_bounds_in_order_are_taken() -> None:
    taken = [
        "--min-pixels",
        "5",
        "--max-pixels",
        "5",
        "--start-seconds",
        "0",
        "--end-seconds",
        "0.5",
        "--background",
        "NONE",
    ]
    assert spec_of("--text", "Hi", *taken).chat.messages


def test_help_is_true_for_its_command() -> None:
    """What commands have in common, where it differs."""
    helps = {name: " ".join(parser.format_help().split()) for name, parser in parsers()}
    for name, model, url in (
        ("prepare", "as the service names it; with --local", "without --local a URL for the service to fetch"),
        ("generate", "as the service names it (", "or a URL for the service to fetch"),
        ("bench", "as the service names it (", "or a URL for the service to fetch"),
        ("inspect", "with --address, as the service names it", "with --address a URL for the service to fetch"),
    ):
        assert model in helps[name] and url in helps[name], name
    assert "service to fetch" not in helps["plan"] and "as the service names it" not in helps["plan"]
    assert "instead of the answer as it comes" in helps["generate"] and "instead of lines" in helps["inspect"]


def test_every_command_describes_itself() -> None:
    assert [name for name, parser in parsers() if not (parser.description or "").endswith(".")] == []


def test_no_option_of_a_prompt_is_left_untested() -> None:
    commands = dict(parsers())
    shared = set.intersection(
        *(options_of(commands[name]) for name in ("prepare", "generate", "bench", "plan", "inspect"))
    )
    assert shared - {"-h", "--help"} - OUTSIDE == USES.keys() - {"--dtype"}  # an engine decides that for `generate`


@pytest.mark.parametrize("command", ["prepare", "generate", "bench", "plan", "inspect", "fingerprint", "completion"])
def test_every_option_is_read_by_its_command(command: str) -> None:
    """An option that no code looks at would be accepted without an effect."""
    read = set()
    for path in (ROOT / "preprocessor").rglob("*.py"):
        if path.parent.name in ("cli", "client", "inspect") and path.name not in ("options.py", "prompt_options.py"):
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Attribute):
                    read.add(node.attr)
                elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
                    read.add(node.target.id)  # a field, as of `Credentials`
                elif isinstance(node, ast.Constant) and isinstance(node.value, str):
                    read.add(node.value)
    wanted = {action.dest for action in dict(parsers())[command]._actions}
    assert wanted - read - {"help"} == set()


def parsers() -> Iterator[tuple[str, argparse.ArgumentParser]]:
    (action,) = [one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction)]
    yield from action.choices.items()


def options_of(parser: Any) -> set[str]:
    return {option for action in parser._actions for option in action.option_strings}
