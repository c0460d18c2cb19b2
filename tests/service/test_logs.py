"""The log of a busy service, at level debug, contains no request content."""

from __future__ import annotations

import io
import logging
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from PIL import Image
from PIL.PngImagePlugin import PngInfo

from preprocessor.client import CallFailed
from preprocessor.client.channel import CHANNEL_OPTIONS
from preprocessor.errors import InvalidRequest, trace_of
from preprocessor.models.family import Model
from preprocessor.service.status import describe_fault
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.v1 import preprocessor_pb2_grpc as pb_grpc
from preprocessor.workers.channel import Fault, TaskFailed
from tests.bench.service.watched import WatchedServer
from tests.media import moving_shapes_clip, truncated_clip
from tests.service.conftest import chat, image, serving, video

SECRET = "xyzzyplugh"
"""In every place that a caller can fill."""
TOKEN = f"token-{SECRET}-0123456789"


def secret_image() -> bytes:
    notes = PngInfo()
    notes.add_text("Comment", SECRET)
    file = io.BytesIO()
    Image.new("RGB", (90, 60)).save(file, "PNG", pnginfo=notes)
    return file.getvalue()


def secret_specs() -> list[pb.PrepareSpec]:
    """Requests that succeed, and requests that fail at every stage, each with the secret in every field that takes text."""
    clip = moving_shapes_clip(seconds=1, width=160, height=120)
    fine = chat(SECRET, image("photo", secret_image()), video("clip", clip), cache_salt=SECRET)
    fine.chat.template_arguments[SECRET] = SECRET
    wizard = pb.Message(role=f"wizard {SECRET}", parts=[pb.Part(text=SECRET)])
    return [
        fine,
        chat(SECRET, model=SECRET),
        chat(SECRET, image(SECRET, SECRET.encode() * 100)),
        chat(SECRET, video(SECRET, truncated_clip())),
        chat(f"<|image_pad|>{SECRET}"),
        chat(SECRET, image(SECRET, secret_image()[:80])),
        chat(SECRET, video(SECRET, f"#EXTM3U\n#EXTINF:1,\nhttp://127.0.0.1/{SECRET}.ts\n".encode())),
        pb.PrepareSpec(chat=pb.ChatPrompt(messages=[wizard])),
        pb.PrepareSpec(text=SECRET, media=[image(SECRET, secret_image())]),
        pb.PrepareSpec(text="x", media=[pb.Media(key="a", modality=pb.MODALITY_IMAGE, same_file_as=SECRET)]),
    ]


def test_a_busy_service_logs_no_request_content(tmp_path: Path) -> None:
    (tmp_path / "tokens").write_text(f"gateway {TOKEN}\n")
    options = ("--workers", "1", "--log-level", "debug", "--token-file", str(tmp_path / "tokens"))
    verbose = {"GRPC_VERBOSITY": "INFO", "PYTHONASYNCIODEBUG": "1"}
    with WatchedServer(*options, environment=verbose, is_warm=True) as server:
        # Not grpc.aio: refused while it sends, it may say INTERNAL for whatever the service has answered.
        with grpc.insecure_channel(server.address, options=CHANNEL_OPTIONS) as channel:
            outcomes = [outcome(channel, spec, TOKEN) for spec in secret_specs()]
            outcomes.append(outcome(channel, secret_specs()[0], f"wrong-{SECRET}-0123456789"))
            malformed = b"\x0a\x05\xff" + SECRET.encode()
            call: Any = channel.stream_stream("/preprocessor.v1.Preprocessor/Prepare")
            with pytest.raises(grpc.RpcError):
                for _ in call(iter([malformed]), metadata=credentials(TOKEN)):
                    pass
        server.process.terminate()
        server.wait()
    log = "".join(server.log)
    assert outcomes.count("OK") == 1
    assert outcomes.count("INVALID_ARGUMENT") == len(outcomes) - 3, outcomes
    assert {"NOT_FOUND", "UNAUTHENTICATED"} < set(outcomes)
    assert log.count(" refused: ") >= len(outcomes) - 1, "the log says what was refused"
    assert [line for line in log.splitlines() if SECRET in line.lower()] == []


def credentials(token: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {token}"), ("x-note", SECRET))


def outcome(channel: grpc.Channel, spec: pb.PrepareSpec, token: str) -> str:
    """The status that a request ends with, by name."""
    stub = pb_grpc.PreprocessorStub(channel)
    try:
        for _ in stub.Prepare(iter([pb.PrepareRequest(spec=spec)]), metadata=credentials(token)):
            pass
    except grpc.RpcError as error:
        assert isinstance(error, grpc.Call)
        return error.code().name
    return "OK"


def fail_with_a_secret() -> None:
    try:
        raise KeyError(SECRET)
    except KeyError as error:
        raise ValueError(f"cannot use {SECRET}") from error


def test_a_fault_is_logged_by_location_and_type_only() -> None:
    with pytest.raises(ValueError, match=SECRET) as caught:
        fail_with_a_secret()
    quiet = describe_fault(caught.value, log_payloads=False)
    assert SECRET not in quiet
    assert "in fail_with_a_secret" in quiet
    assert quiet.index("KeyError") < quiet.index("ValueError")
    assert SECRET in describe_fault(caught.value, log_payloads=True)


def test_a_worker_s_fault_is_logged_by_its_location_in_the_worker() -> None:
    with pytest.raises(ValueError, match=SECRET) as caught:
        fail_with_a_secret()
    failed = TaskFailed(Fault(trace_of(caught.value), f"… {SECRET} …"))
    quiet = describe_fault(failed, log_payloads=False)
    assert SECRET not in quiet
    assert "in fail_with_a_secret" in quiet
    assert SECRET in describe_fault(failed, log_payloads=True)


async def test_a_refusal_caused_by_a_foreign_error_is_logged_with_its_traceback(
    model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def refuses(*_: object) -> None:
        error = InvalidRequest("not accepted", reason="PROCESSOR_REFUSED")
        error.trace = "in a_processor\nValueError"
        raise error

    monkeypatch.setattr("preprocessor.pipeline.plan", refuses)
    async with serving(model, is_in_process=True) as caller:
        with pytest.raises(CallFailed, match="PROCESSOR_REFUSED"):
            await caller.prepare(chat("hello"))
    assert [record.levelname for record in caplog.records if "in a_processor" in record.getMessage()] == ["WARNING"]


@pytest.mark.parametrize("log_payloads", [False, True])
async def test_a_fault_s_message_is_logged_only_if_enabled(
    model: Model, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, log_payloads: bool
) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError(SECRET)

    monkeypatch.setattr("preprocessor.pipeline.plan", broken)
    caplog.set_level(logging.DEBUG)
    async with serving(model, is_in_process=True, log_payloads=log_payloads) as caller:
        with pytest.raises(grpc.aio.AioRpcError):
            async for _ in caller.stub.Prepare(iter([pb.PrepareRequest(spec=chat("hello"))])):
                pass
    assert "ZeroDivisionError" in caplog.text
    assert (SECRET in caplog.text) == log_payloads
