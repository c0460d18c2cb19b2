"""Requests that name their media by URL, through the real service."""

from __future__ import annotations

import asyncio
import base64
import json
import struct
import subprocess
import sys
from collections.abc import AsyncIterator
from pathlib import Path

import grpc
import numpy as np
import pytest
import pytest_asyncio

from preprocessor.__main__ import main
from preprocessor.client import PrepareResult
from preprocessor.config import FetchSettings, Limits
from preprocessor.errors import FetchFailed
from preprocessor.models.family import Model
from preprocessor.service.status import status_of
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.media import moving_shapes_clip, photo
from tests.service.conftest import Caller, chat, image, serving, video
from tests.service.hosts import Answer, Host, chunked, drip, hang, redirect, respond, send
from tests.waiting import PATIENCE_SECONDS, eventually

CLIP = moving_shapes_clip(seconds=2, width=160, height=120)
PHOTO = photo(333, 222)
INVALID, FAILED = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.FAILED_PRECONDITION


def by_url(modality: pb.Modality.ValueType, url: str, key: str = "it", **fields: object) -> pb.Media:
    return pb.Media(key=key, modality=modality, url=url, **fields)  # type: ignore[arg-type]


def clip_at(url: str, key: str = "clip") -> pb.Media:
    return by_url(pb.MODALITY_VIDEO, url, key)


def photo_at(url: str, key: str = "photo") -> pb.Media:
    return by_url(pb.MODALITY_IMAGE, url, key)


def local(*hosts: Host, **settings: object) -> FetchSettings:
    """Settings that allow these hosts, by the name localhost."""
    allowed = {"hosts": "localhost", "networks": "127.0.0.1/32", "ports": ",".join(str(host.port) for host in hosts)}
    return FetchSettings(**{**allowed, **settings})  # type: ignore[arg-type]


@pytest_asyncio.fixture(scope="module")
async def host() -> AsyncIterator[Host]:
    async with Host({"/clip": respond(CLIP), "/photo": chunked(PHOTO[:100], PHOTO[100:])}) as one:
        yield one


@pytest_asyncio.fixture(scope="module")
async def fetching(model: Model, host: Host) -> AsyncIterator[Caller]:
    """A service that may fetch from the host; each test uses its own paths."""
    async with serving(model, fetch=local(host, read_seconds=5.0, total_seconds=20.0)) as one:
        yield one


def is_idle(caller: Caller) -> bool:
    return caller.server.pool.used_bytes == 0 and caller.server.pool.pending_count == 0


def url(host: Host, path: str) -> str:
    return host.url(path, "localhost")


def tensors_are_equal(one: PrepareResult, other: PrepareResult) -> bool:
    same = {name: np.array_equal(one.tensors[name], other.tensors[name]) for name in other.tensors}
    return one.tensors.keys() == other.tensors.keys() and all(same.values())


async def test_a_file_by_url_gives_the_same_result_as_an_upload(fetching: Caller, host: Host) -> None:
    given = await fetching.prepare(chat(image("photo", PHOTO), video("clip", CLIP), "What happens?"))
    fetched = await fetching.prepare(
        chat(photo_at(url(host, "/photo")), clip_at(url(host, "/clip")), "What happens?"),
    )
    assert tensors_are_equal(fetched, given)
    assert fetched.report.received_bytes == len(PHOTO) + len(CLIP)
    assert [item.source.size_bytes for item in fetched.header.items] == [len(PHOTO), len(CLIP)]
    assert "fetch" in {stage.stage for stage in fetched.report.stages}
    await eventually(lambda: is_idle(fetching))


async def test_one_file_is_fetched_while_another_is_uploaded(fetching: Caller, host: Host) -> None:
    given = await fetching.prepare(chat(image("photo", PHOTO), video("clip", CLIP)))
    spec = chat(photo_at(url(host, "/photo")), video("clip"))
    assert tensors_are_equal(await fetching.prepare(spec, {"clip": CLIP}), given)


async def test_many_files_of_one_request_come_a_few_at_once(fetching: Caller, host: Host) -> None:
    at_once: list[int] = []

    async def counted(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        at_once.append(host.busy_count)
        await respond(PHOTO, Connection="close")(reader, writer)

    host.answers["/many"] = counted
    media = [photo_at(url(host, "/many"), f"photo-{n}") for n in range(20)]
    result = await fetching.prepare(chat(*media))
    assert len(result.header.items) == 20 and len({item.digest for item in result.header.items}) == 1
    assert len(at_once) == 20 and max(at_once) <= 8


async def test_a_url_used_twice_is_fetched_once(fetching: Caller, host: Host) -> None:
    before = len(host.requests)
    again = pb.Media(key="again", modality=pb.MODALITY_VIDEO, same_file_as="clip")
    spec = chat(clip_at(url(host, "/clip")), again)
    counted = await fetching.stub.CountTokens(iter([pb.CountTokensRequest(spec=spec)]))
    assert counted.items[0].digest == counted.items[1].digest
    assert len(host.requests) == before + 1


@pytest.mark.parametrize("kind", ["text/html", "image/svg+xml", "application/x-sh", "video/mp4"])
async def test_content_type_and_extension_are_ignored(fetching: Caller, host: Host, kind: str) -> None:
    host.answers["/photo.exe"] = respond(PHOTO, Content_Type=kind)
    assert (await fetching.prepare(chat(photo_at(url(host, "/photo.exe"))))).header.token_count > 0


async def test_a_web_page_with_an_image_content_type_is_refused(fetching: Caller, host: Host) -> None:
    host.answers["/page"] = respond(b"<html><body>Sign in</body></html>" * 20, Content_Type="image/jpeg")
    error = await fetching.refusal(chat(photo_at(url(host, "/page"))))
    assert (error.code, error.reason) == (INVALID, "UNSUPPORTED_FORMAT")
    assert "HTML" in str(error)


async def test_an_empty_file_is_reported_as_empty(fetching: Caller, host: Host) -> None:
    host.answers["/empty"] = respond(b"")
    assert (await fetching.refusal(chat(photo_at(url(host, "/empty"))))).reason == "EMPTY_MEDIA"


@pytest.mark.parametrize(
    ("answer", "code", "expected"),
    [
        (respond(b"", "404 Not Found"), FAILED, "FETCH_STATUS"),
        (redirect("/away"), FAILED, "TOO_MANY_REDIRECTS"),
        (redirect("http://169.254.169.254/latest/meta-data/"), INVALID, "HOST_NOT_ALLOWED"),
        (redirect("file:///etc/passwd"), INVALID, "INVALID_URL"),
        (respond(PHOTO, Content_Encoding="gzip"), FAILED, "FETCH_ENCODED"),
        (
            send(b"HTTP/1.1 200 OK\r\nContent-Length: 99999\r\n\r\n" + PHOTO[:100], close=True),
            FAILED,
            "FETCH_INCOMPLETE",
        ),
        (send(b"no HTTP\r\n\r\n", close=True), FAILED, "BAD_ANSWER"),
    ],
)
async def test_a_host_that_does_not_send_the_file_fails_the_call(
    fetching: Caller, host: Host, answer: Answer, code: grpc.StatusCode, expected: str
) -> None:
    host.answers["/away"] = answer
    error = await fetching.refusal(chat(photo_at(url(host, "/away"))))
    assert (error.code, error.reason) == (code, expected)
    assert "photo" in error.message
    await eventually(lambda: is_idle(fetching))


async def test_with_any_host_allowed_no_private_address_is_reached(model: Model) -> None:
    async with Host({"/": respond(PHOTO)}) as inside:
        settings = FetchSettings(hosts="*", ports=f"80,{inside.port}")
        async with serving(model, fetch=settings) as caller:
            for name in ("localhost", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]"):
                error = await caller.refusal(chat(photo_at(inside.url("/", name))))
                assert (error.code, error.reason) == (INVALID, "ADDRESS_NOT_ALLOWED")
            error = await caller.refusal(chat(photo_at("http://169.254.169.254/latest/meta-data/")))
            assert error.reason == "ADDRESS_NOT_ALLOWED"
    assert inside.connection_count == 0


@pytest.mark.parametrize(
    "at", ["http://localhost/x", "https://localhost/x", "file:///etc/passwd", "s3://bucket/x", "x"]
)
async def test_by_default_nothing_is_fetched(caller: Caller, at: str) -> None:
    error = await caller.refusal(chat(photo_at(at)))
    assert (error.code, error.reason) == (INVALID, "FETCH_DISABLED")


async def test_an_empty_url_is_no_source(caller: Caller) -> None:
    assert (await caller.refusal(chat(photo_at("")))).reason == "MEDIA_SOURCE_MISSING"


async def test_a_data_url_needs_no_fetching(caller: Caller) -> None:
    given = await caller.prepare(chat(image("photo", PHOTO)))
    inside = "data:image/jpeg;base64," + base64.b64encode(PHOTO).decode()
    assert tensors_are_equal(await caller.prepare(chat(photo_at(inside))), given)
    in_lines = inside[:90] + "\r\n" + inside[90:].replace("/", "%2F") + "\n"
    assert tensors_are_equal(await caller.prepare(chat(photo_at(in_lines))), given)
    assert (await caller.refusal(chat(photo_at(inside + "@")))).reason == "INVALID_DATA_URL"
    assert (await caller.refusal(chat(photo_at("data:;base64,")))).reason == "EMPTY_MEDIA"
    large = "data:;base64," + base64.b64encode(bytes((4 << 20) + 1)).decode()
    assert (await caller.refusal(chat(photo_at(large)))).reason == "INLINE_TOO_LARGE"


async def test_local_files_are_read_only_below_a_root(model: Model, tmp_path: Path) -> None:
    (tmp_path / "media").mkdir()
    (tmp_path / "media" / "photo.jpg").write_bytes(PHOTO)
    (tmp_path / "media" / "link.jpg").symlink_to("../secret.jpg")
    (tmp_path / "secret.jpg").write_bytes(PHOTO)
    async with serving(model, fetch=FetchSettings(roots=str(tmp_path / "media"))) as caller:
        assert (await caller.prepare(chat(photo_at(f"file://{tmp_path}/media/photo.jpg")))).header.token_count > 0
        for path in ("media/link.jpg", "media/../secret.jpg", "secret.jpg"):
            assert (await caller.refusal(chat(photo_at(f"file://{tmp_path}/{path}")))).reason == "PATH_NOT_ALLOWED"


async def test_the_command_line_takes_a_url_for_a_file(
    fetching: Caller, host: Host, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["prepare", "--address", fetching.server.address, "--json"]
    media = ["--image", url(host, "/photo"), "--video", url(host, "/clip"), "--image", "data:;base64,/9j/"]
    assert await asyncio.to_thread(main, [*arguments, *media[:4], "--text", "What is this?"]) == 0
    assert [item["key"] for item in json.loads(capsys.readouterr().out)["items"]] == ["image", "video"]
    assert await asyncio.to_thread(main, [*arguments, *media]) == 1
    assert "image#2" in capsys.readouterr().err
    assert await asyncio.to_thread(main, ["prepare", "--local", *media[:2]]) == 1
    assert "FETCH_DISABLED" in capsys.readouterr().err


# -- limits ------------------------------------------------------------------------------------------------------------

ENDLESS = chunked(bytes(1 << 16), endless=True)
PROMISED = send(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")


@pytest.mark.parametrize(
    ("limits", "answer", "expected"),
    [
        (Limits(max_media_bytes=1 << 20), ENDLESS, "MEDIA_TOO_LARGE"),
        (Limits(max_image_bytes=1 << 20), ENDLESS, "MEDIA_TOO_LARGE"),
        (Limits(max_request_bytes=1 << 20), ENDLESS, "REQUEST_TOO_LARGE"),
        (Limits(max_media_bytes=999_999), PROMISED, "MEDIA_TOO_LARGE"),
        (Limits(max_request_bytes=999_999), PROMISED, "REQUEST_TOO_LARGE"),
    ],
)
async def test_a_file_larger_than_the_limit_is_not_read(
    model: Model, limits: Limits, answer: Answer, expected: str
) -> None:
    async with Host({"/": answer}) as host, serving(model, limits=limits, fetch=local(host)) as caller:
        error = await caller.refusal(chat(photo_at(url(host, "/"))))
        assert (error.code, error.reason) == (INVALID, expected)
        await eventually(lambda: host.busy_count == 0 and is_idle(caller))
        fetched = caller.server.metrics.registry.get_sample_value(
            "preprocessor_fetched_bytes_total", {"scheme": "http"}
        )
        assert (fetched or 0) < 3 << 20


async def test_an_endless_file_is_ended_when_the_memory_for_files_is_full(model: Model) -> None:
    async with Host({"/": ENDLESS}) as host, serving(model, fetch=local(host), memory_budget_bytes=64 << 20) as caller:
        error = await caller.refusal(chat(clip_at(url(host, "/"))))
        assert (error.code, error.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "MEMORY_BUDGET_FULL")
        await eventually(lambda: host.busy_count == 0 and is_idle(caller))


async def test_a_declared_size_alone_reserves_no_memory(model: Model) -> None:
    promise = hang(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % (15 << 20) + bytes(1 << 20))
    async with Host({"/": promise}) as host, serving(model, fetch=local(host), memory_budget_bytes=64 << 20) as caller:
        calls = [caller.stub.Prepare(iter([pb.PrepareRequest(spec=chat(clip_at(url(host, "/"))))])) for _ in range(4)]
        reading = [asyncio.create_task(call.read()) for call in calls]
        await eventually(lambda: caller.server.pool.used_bytes >= 4 << 20)
        assert caller.server.pool.used_bytes < 6 << 20
        await caller.prepare(chat(video("clip")), {"clip": CLIP})
        for call in calls:
            call.cancel()
        await asyncio.wait(reading)
        await eventually(lambda: host.busy_count == 0 and is_idle(caller))


async def test_a_large_file_of_known_size_is_received_into_its_final_memory(model: Model) -> None:
    """Five files of 3 MiB fit into 16 MiB of memory for files only if none is held, or counted, twice."""
    padded = CLIP + struct.pack(">I4s", 3 << 20, b"free") + bytes((3 << 20) - 8)
    async with (
        Host({"/": respond(padded)}) as host,
        serving(model, fetch=local(host), memory_budget_bytes=64 << 20) as caller,
    ):
        media = [clip_at(url(host, "/"), f"clip-{n}") for n in range(5)]
        result = await caller.prepare(chat(*media))
        assert result.report.received_bytes == 5 * len(padded)
        await eventually(lambda: is_idle(caller))


# -- time --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("answer", [hang(), drip(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n", b"x")])
async def test_cancelling_a_call_ends_its_fetch(fetching: Caller, host: Host, answer: Answer) -> None:
    host.answers["/slow"] = answer
    before = host.connection_count
    call = fetching.stub.Prepare(iter([pb.PrepareRequest(spec=chat(clip_at(url(host, "/slow"))))]))
    reading = asyncio.create_task(call.read())
    await eventually(lambda: any("/slow" in head for head in host.requests[before:]))
    call.cancel()
    await asyncio.wait([reading])
    await eventually(lambda: host.busy_count == 0 and is_idle(fetching))


async def test_the_calls_own_deadline_ends_the_fetch(fetching: Caller, host: Host) -> None:
    host.answers["/slow"] = hang()
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await fetching.stub.Prepare(
            iter([pb.PrepareRequest(spec=chat(clip_at(url(host, "/slow"))))]), timeout=0.3
        ).read()
    assert caught.value.code() is grpc.StatusCode.DEADLINE_EXCEEDED
    await eventually(lambda: host.busy_count == 0 and is_idle(fetching))


@pytest.mark.usefixtures("refusals_at_once")
async def test_a_failed_fetch_ends_the_call_during_the_upload(fetching: Caller, host: Host) -> None:
    call = fetching.stub.Prepare()
    await call.write(pb.PrepareRequest(spec=chat(photo_at(url(host, "/nowhere")), video("clip"))))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()  # the upload is never sent
    assert caught.value.code() is FAILED


@pytest.mark.usefixtures("refusals_at_once")
async def test_an_upload_that_fails_ends_the_fetch(fetching: Caller, host: Host) -> None:
    host.answers["/slow"] = hang()
    call = fetching.stub.Prepare()
    await call.write(pb.PrepareRequest(spec=chat(photo_at(url(host, "/slow")), video("clip"))))
    await eventually(lambda: host.busy_count > 0)
    await call.write(pb.PrepareRequest(chunk=pb.MediaChunk(key="other", data=b"x")))
    with pytest.raises(grpc.aio.AioRpcError) as caught:
        await call.read()
    assert caught.value.code() is INVALID
    await eventually(lambda: host.busy_count == 0 and is_idle(fetching))


async def test_others_are_served_while_a_host_is_slow(fetching: Caller, host: Host) -> None:
    host.answers["/slow"] = hang()
    calls = [
        fetching.stub.Prepare(iter([pb.PrepareRequest(spec=chat(photo_at(url(host, "/slow"))))])) for _ in range(10)
    ]
    reading = [asyncio.create_task(call.read()) for call in calls]
    await eventually(lambda: host.busy_count >= 10)
    assert (await fetching.prepare(chat(clip_at(url(host, "/clip"))))).header.token_count > 0
    for call in calls:
        call.cancel()
    await asyncio.wait(reading)
    await eventually(lambda: is_idle(fetching))


def test_fsspec_is_imported_only_where_a_store_is_configured() -> None:
    code = "import sys, preprocessor.service.fetch.stores; sys.exit('fsspec' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], timeout=PATIENCE_SECONDS).returncode == 0


def test_a_failed_fetch_has_no_status_for_which_proxies_eject_a_service() -> None:
    assert status_of(FetchFailed("x", reason="FETCH_STATUS"))[:2] == (FAILED, "FETCH_STATUS")
