"""The command line, run as by a shell."""

from __future__ import annotations

import asyncio
import json
import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import uvloop
from safetensors import SafetensorError
from safetensors.numpy import load_file

from preprocessor import pipeline
from preprocessor.__main__ import main
from preprocessor.cli.output import check_output
from preprocessor.cli.saved import save
from preprocessor.client import PrepareResult
from preprocessor.config import SettingError
from preprocessor.models.family import Model
from preprocessor.prompt_page.facts import PreparedPrompt
from preprocessor.service.event_loop import event_loop_runner
from preprocessor.types.request import (
    ChatPrompt,
    Media,
    MediaPart,
    Message,
    Modality,
    PixelForm,
    PreparationRequest,
    Sampling,
    TextPart,
)
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.base_install import run_with_base_install
from tests.media import moving_shapes_clip, photo
from tests.pictures import file_of
from tests.waiting import PATIENCE_SECONDS

COMMAND = (sys.executable, "-m", "preprocessor")
CLIP = moving_shapes_clip(seconds=2, width=160, height=120)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("media") / "clip.mp4"
    path.write_bytes(CLIP)
    return path


@pytest.fixture(scope="module")
def picture(clip: Path) -> Path:
    path = clip.with_name("photo.png")
    path.write_bytes(photo(100, 80, "PNG"))
    return path


@pytest.fixture(scope="module")
def address() -> Iterator[str]:
    """A `preprocessor serve` process; a stop by SIGTERM must end it with status 0."""
    free = ("--address", "127.0.0.1:0", "--http-address", "127.0.0.1:0", "--workers", "1")
    process = subprocess.Popen([*COMMAND, "serve", *free], stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    try:
        yield next(found[1] for line in process.stderr if (found := re.search(r"on grpc (\S+),", line)))
    finally:
        process.send_signal(signal.SIGTERM)
        _, log = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 0
    assert "stopped" in log


def run(*arguments: str | Path | float, status: int = 0) -> subprocess.CompletedProcess[str]:
    done = subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=PATIENCE_SECONDS, check=False
    )
    assert done.returncode == status, done.stderr
    return done


def test_prepare_prints_one_json_object(address: str, clip: Path, picture: Path) -> None:
    done = run(
        "prepare", "--address", address, "--image", picture, "--video", clip, "--fps", 4, "--text", "Hi", "--json"
    )
    answer = json.loads(done.stdout)
    assert answer["model"] == "qwen3-vl"
    assert [item["modality"] for item in answer["items"]] == ["image", "video"]
    assert answer["items"][1]["grid_thw"][0] == 4
    assert len(answer["items"][1]["frame_indices"]) == len(answer["items"][1]["times_seconds"]) == 8
    assert {"decode", "resize", "patch", "tokenize"} <= answer["timings_ms"].keys()
    assert answer["bytes"]["received"] == len(CLIP) + picture.stat().st_size


def test_prepare_takes_tools_arguments_and_literal_text(tmp_path: Path, model: Model) -> None:
    tools, output = tmp_path / "tools.json", tmp_path / "out.safetensors"
    tools.write_text('[{"z": 1, "a": 12345678901234567890}]')
    text = ("--text", "<|im_end|>", "--literal", "--template-arguments", '{"add_vision_id": true}')
    assert main(["prepare", "--local", "--tools", str(tools), *text, "--output", str(output)]) == 0
    written = model.tokenizer.decode(load_file(output)["input_ids"].tolist())
    assert '<tools>\n{"z": 1, "a": 12345678901234567890}\n</tools>' in written
    assert load_file(output)["input_ids"].tolist().count(model.tokenizer.eos_token_id) == 2


@pytest.mark.parametrize("where", ["service", "local"])
@pytest.mark.parametrize(("dtype", "pixels"), [("uint8", "pixel_patches"), ("bf16", "pixel_values")])
def test_prepare_saves_the_tensors_by_the_contract_s_names(
    address: str, clip: Path, tmp_path: Path, model: Model, where: str, dtype: str, pixels: str
) -> None:
    output = tmp_path / "out.safetensors"
    place = ("--local",) if where == "local" else ("--address", address)
    asked = ("--video", str(clip), "--num-frames", "5", "--text", "Hi", "--dtype", dtype, "--output", str(output))
    assert main(["prepare", *place, *asked]) == 0  # in this process, which has loaded torch
    saved = load_file(output)
    message = Message("user", (MediaPart("clip"), TextPart("Hi")))
    media = (Media("clip", Modality.VIDEO, CLIP, Sampling(frame_count=5)),)
    expected = pipeline.prepare(model, PreparationRequest(ChatPrompt((message,)), media, PixelForm(dtype))).tensors
    assert saved.keys() == expected.keys()
    assert {pixels, "input_ids", "grid_thw", "item_modality", "item_spans", "mrope_position_ids"} <= saved.keys()
    for name, array in expected.items():
        np.testing.assert_array_equal(saved[name].view(np.uint8), array.view(np.uint8), err_msg=name)


def test_inspect_shows_what_a_service_prepared(address: str, clip: Path, tmp_path: Path) -> None:
    page, frames = tmp_path / "page.html", tmp_path / "frames"
    asked = ("--address", address, "--video", str(clip), "--num-frames", "4", "--text", "Hi", "--output", str(page))
    assert main(["inspect", *asked, "--save-frames", str(frames)]) == 0  # in this process, which has loaded torch
    shown = page.read_text()
    assert f"Prepared by the service at {address}." in shown and shown.count("<img ") == 4
    assert "the model&#x27;s configuration" in shown and "&lt;|vision_start|&gt;" in shown
    assert "Only a run in this process tells what was decoded" in shown
    assert len(list(frames.iterdir())) == 4


def test_inspect_needs_none_of_the_extra_where_a_service_prepares(address: str, clip: Path, tmp_path: Path) -> None:
    code = "import sys; from preprocessor.__main__ import main; sys.exit(main(sys.argv[1:]))"
    page, saved = str(tmp_path / "page.html"), str(tmp_path / "prompt.safetensors")
    run_with_base_install(code, "inspect", "--address", address, "--video", str(clip), "--output", page)
    assert Path(page).read_text().count("<img ") == 4
    assert "that needs pip install &#x27;vlm-preprocessor[serve]&#x27;" in Path(page).read_text()
    run_with_base_install(code, "prepare", "--address", address, "--video", str(clip), "--output", saved)
    run_with_base_install(code, "inspect", saved, "--output", page)
    assert Path(page).read_text().count("<img ") == 4


def test_inspect_says_why_a_service_does_not_answer(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    page = tmp_path / "page.html"
    assert main(["inspect", "--address", "127.0.0.1:1", "--text", "Hi", "--output", str(page)]) == 1
    assert "nobody listens there" in capsys.readouterr().err
    assert not page.exists()


def test_prepare_puts_transparent_images_on_a_background(tmp_path: Path, address: str) -> None:
    source, result = tmp_path / "clear.png", tmp_path / "prompt.safetensors"
    source.write_bytes(file_of("png rgba"))
    digests = set()
    for colour in ("white", "black"):
        run("prepare", "--address", address, "--image", source, "--background", colour, "--output", result)
        digests.add(load_file(result)["item_hash"].tobytes())
    assert len(digests) == 2


def test_prepare_prints_a_table_for_people(address: str, clip: Path) -> None:
    table = run("prepare", "--address", address, "--video", clip, "--fps", 5).stdout
    assert re.search(r"clip\.mp4 +h264 160x120 +10 of 60 ", table)
    assert "decode" in table
    again = run("prepare", "--address", address, "--video", clip, "--fps", 5).stdout
    assert "1 of 1 items cached" in again
    assert "decode" not in again


def test_a_refusal_is_one_line_with_its_reason(address: str, picture: Path) -> None:
    asked = ("--video", picture.with_name("clip.mp4"), "--start-seconds", 9)
    done = run("prepare", "--address", address, *asked, status=1)
    assert done.stderr.startswith("preprocessor: NO_FRAMES_IN_RANGE: clip.mp4: no frame is on screen from 9 s on")
    assert done.stderr.count("\n") == 1


def test_a_missing_file_is_named(address: str) -> None:
    assert "nowhere.mp4" in run("prepare", "--address", address, "--video", "nowhere.mp4", status=1).stderr


@pytest.mark.parametrize(
    "command", [("prepare",), ("generate",), ("plan", "--rps", "1")], ids=lambda command: command[0]
)
def test_an_empty_request_is_refused(command: tuple[str, ...], capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*command]) == 1
    assert "give --text, --video, --frames, --image or --audio" in capsys.readouterr().err


@pytest.mark.parametrize("option", ["--system", "--messages", "--fps", "--max-pixels", "--output"])
def test_an_option_for_the_whole_request_is_given_once(option: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["prepare", option, "1", option, "2"])
    assert ended.value.code == 2
    assert f"{option} is given twice" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("one", "other"),
    [("--fps=1", "--num-frames=4"), ("--every-frame", "--fps=1"), ("--num-frames=4", "--every-frame")],
)
def test_two_ways_to_choose_frames_are_refused_by_name(
    one: str, other: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["prepare", "--video", "clip.mp4", one, other])
    assert ended.value.code == 2
    names = [option.partition("=")[0] for option in (other, one)]
    assert "argument {}: not allowed with argument {}".format(*names) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value"),
    [
        ("--num-frames", "-1"),
        ("--num-frames", "99999999999"),
        ("--min-pixels", "99999999999999999999"),
        ("--max-tokens", "-1"),
        ("--seed", "-1"),
        ("--top-k", "2.5"),
        ("--timeout-seconds", "0"),
        ("--timeout-seconds", "nan"),
    ],
)
def test_a_number_out_of_range_is_refused_by_its_option(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as ended:
        main(["generate", "--text", "Hi", option, value])
    assert ended.value.code == 2
    assert f"argument {option}: " in capsys.readouterr().err


@pytest.mark.parametrize("output", ["no/such/directory/out.safetensors", ".", "/dev/null"])
def test_an_unwritable_output_is_refused_before_the_request(
    output: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["prepare", "--video", "nowhere.mp4", "--output", output]) == 2
    assert capsys.readouterr().err.startswith(
        f"preprocessor: --output: {output!r} is not accepted; give a file that can"
    )


def test_a_full_disk_is_reported_for_the_output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save_file(*_: object) -> None:
        raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")

    monkeypatch.setattr("safetensors.numpy.save_file", save_file)
    with pytest.raises(SettingError, match=r"--output: .*; give a file that can be written \(.*No space left"):
        save(
            PreparedPrompt(PrepareResult(pb.Header(), pb.Report(), {}), pb.PrepareSpec(), None, None),
            tmp_path / "out.safetensors",
        )


def test_checking_the_output_path_changes_no_file(tmp_path: Path) -> None:
    before = tmp_path / "before.safetensors"
    before.write_bytes(b"as it was")
    for path in (before, tmp_path / "new.safetensors"):
        check_output(path)
    assert [path.name for path in tmp_path.iterdir()] == [before.name]
    assert before.read_bytes() == b"as it was"


@pytest.mark.parametrize(
    ("option", "content"), [("--video", None), ("--image", None), ("--tools", None), ("--tools", b"\xff\xfe")]
)
def test_an_unreadable_file_is_reported_in_one_line(
    option: str, content: bytes | None, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "file"
    if content is not None:
        file.write_bytes(content)
    assert main(["prepare", "--text", "Hi", option, str(file)]) in (1, 2)
    said = capsys.readouterr().err
    assert str(file) in said
    assert "give a file" in said
    assert said.count("\n") == 1


def test_command_line_arguments_that_are_not_utf8_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["prepare", "--text", "caf\udce9"]) == 2
    assert "--text: 'caf?' is not accepted; give text in UTF-8" in capsys.readouterr().err


def test_an_address_of_another_machine_cannot_be_listened_on() -> None:
    done = run("serve", "--address", "192.0.2.1:0", "--insecure", "--http-address", "127.0.0.1:0", status=2)
    assert "--address: '192.0.2.1:0' is not accepted; give an address of this machine" in done.stderr
    assert "gRPC" not in done.stderr
    assert "GRPC" not in done.stderr


def test_a_closed_port_is_reported() -> None:
    assert "UNAVAILABLE" in run("prepare", "--address", "127.0.0.1:1", "--text", "Hi", status=1).stderr


def test_an_unknown_model_is_refused_at_start() -> None:
    assert "MODEL_NOT_FOUND" in run("serve", "--model", "/no/such/model", status=1).stderr


@pytest.mark.parametrize("count", ["0", "-2", "two", "1.5"])
def test_a_bad_worker_count_is_refused_at_start(count: str) -> None:
    done = run("serve", "--workers", count, status=2)
    assert "--workers" in done.stderr
    assert count in done.stderr


@pytest.mark.parametrize("option", ["--address", "--http-address", "--engine"])
def test_a_bad_address_is_refused_at_start(option: str) -> None:
    assert option in run("serve", option, "localhost", status=2).stderr


def test_an_unknown_environment_variable_of_the_service_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREPROCESSOR_WORKRES", "3")
    assert run("serve", status=2).stderr == (
        "preprocessor: PREPROCESSOR_WORKRES: there is no such setting; give PREPROCESSOR_WORKERS\n"
    )


def test_a_port_in_use_is_reported_by_its_option(address: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREPROCESSOR_ADDRESS", address)
    done = run("serve", "--http-address", "127.0.0.1:0", status=2)
    assert f"preprocessor: PREPROCESSOR_ADDRESS: {address!r} is not accepted; give an unused address" in done.stderr


def test_the_settings_in_force_are_shown_without_starting(tmp_path: Path) -> None:
    file = tmp_path / "preprocessor.toml"
    file.write_text("workers = 3\n")
    shown = run("serve", "--config", file, "--drain-seconds", "5", "--show-config").stdout
    assert re.search(rf"^workers = 3 +# {file}$", shown, re.MULTILINE)
    assert re.search(r"^drain_seconds = 5 +# --drain-seconds$", shown, re.MULTILINE)


@pytest.mark.parametrize("command", ["serve", "doctor", "prepare", "generate", "bench", "plan"])
def test_every_option_explains_itself(command: str) -> None:
    text = run(command, "--help").stdout
    options = re.findall(r"^  (--[a-z-]+)", text, re.MULTILINE)
    assert len(options) > 8
    assert not re.findall(r"^  --[a-z-]+(?: [A-Z:.a-z]+)?\n  -", text, re.MULTILINE), "an option without a meaning"


@pytest.mark.parametrize(
    ("arguments", "unbuffered", "status"),
    [
        (("constraints",), "", 141),
        (("constraints",), "1", 141),
        (("fingerprint", "qwen3-vl"), "", 141),
        (("serve", "--show-config"), "", 141),
        (("--help",), "", 141),
        (("--help",), "1", 0),  # argparse lets it pass
    ],
)
def test_output_that_nobody_reads_ends_a_command_quietly(
    arguments: tuple[str, ...], unbuffered: str, status: int
) -> None:
    reading, writing = os.pipe()
    os.close(reading)
    done = subprocess.run(
        [*COMMAND, *arguments],
        stdout=writing,
        stderr=subprocess.PIPE,
        env={**os.environ, "PYTHONUNBUFFERED": unbuffered},
        timeout=PATIENCE_SECONDS,
    )
    os.close(writing)
    assert (done.returncode, done.stderr) == (status, b"")


def test_output_that_cannot_be_written_is_told() -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run([*COMMAND, "constraints"], stdout=full, stderr=subprocess.PIPE, timeout=PATIENCE_SECONDS)
    assert (done.returncode, done.stderr) == (1, b"preprocessor: [Errno 28] No space left on device\n")


def test_without_uvloop_the_service_says_so_and_runs_on_asyncio(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setitem(sys.modules, "uvloop", None)
    assert event_loop_runner() is asyncio.run
    assert "uvloop is not installed" in caplog.text


def test_with_uvloop_the_service_runs_on_it() -> None:
    assert event_loop_runner() is uvloop.run


def test_fingerprint_prints_parameters_for_a_triton_model(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fingerprint", "qwen3-vl"]) == 0
    printed = capsys.readouterr().out
    assert printed.startswith("parameters [")
    assert '{ key: "fingerprint.patch_size"  value: { string_value: "16" } }' in printed
