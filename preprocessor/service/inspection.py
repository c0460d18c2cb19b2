"""`/inspect` of the HTTP port: a form for a text and a file, and the page that shows what they became.

For looking at a running service by hand, so it is off unless `--inspect` is given. It answers only callers on this host, such as
`kubectl port-forward`, because the HTTP port has no TLS. A browser asks for the token: any name, and the token as the password.
The prompt goes the way of every call of `Prepare`, with its limits and quotas. One page is made at a time, to bound the memory
for rows, arrays and the page. Uploads are received before that, and have the limits of all uploads (`UploadStream`).
"""

from __future__ import annotations

import asyncio
import base64
import binascii
import contextlib
import functools
import ipaddress
from collections.abc import AsyncIterator, Callable, Collection, Iterator, Mapping
from concurrent.futures import Executor
from typing import Any
from urllib.parse import urlsplit

from aiohttp import BodyPartReader, hdrs, web
from aiohttp.http_exceptions import HttpProcessingError

from preprocessor.client import Prompt, audio, chat, image, video
from preprocessor.client.answers import ResultAssembler
from preprocessor.client.media import Medium
from preprocessor.config import INSPECTED_BYTES, Limits, ServeSettings, is_loopback, split_address
from preprocessor.errors import DeadlineExceeded, InvalidRequest, LimitExceeded
from preprocessor.models.loaded import LoadedModel
from preprocessor.models.versions import library_versions
from preprocessor.prompt_page.build import Subject, build_page
from preprocessor.prompt_page.facts import PreparedPrompt
from preprocessor.prompt_page.form import render_form
from preprocessor.prompt_page.render import render
from preprocessor.prompt_page.tokens import token_texts
from preprocessor.service import writing
from preprocessor.service.auth_interceptor import AuthInterceptor
from preprocessor.service.calls import Call
from preprocessor.service.files import FileReceiver, FilesTotal
from preprocessor.service.openai.context import HttpContext, check_model, run_call
from preprocessor.service.openai.errors import HttpError
from preprocessor.service.servicer import PreprocessorServicer
from preprocessor.service.upload_stream import Upload
from preprocessor.types.request import Media, Modality
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.wire.tensors import MAX_CHUNK_BYTES

_PATH = "/inspect"
_LONGEST_FIELD = 64 << 10  # bytes of a text
_MOST_FRAMES = 16  # shown of each item
_KEY = "file"
_TURN_SECONDS = 30.0  # for pages of others, while the memory budget holds the file
_MAKERS: Mapping[Modality, Callable[..., Medium]] = {
    Modality.IMAGE: image,
    Modality.VIDEO: video,
    Modality.AUDIO: audio,
}
_NOT_KNOWN = (
    "A service does not tell what was decoded beside the sampled frames, nor what `preprocessor plan` estimates."
)


class Inspection:
    """Handles requests for `/inspect` by the handlers of a `PreprocessorServicer`.

    Args:
        auth_interceptor: That of the gRPC server, whose tokens and quotas hold here too.
        executor: Where pages are written.
    """

    def __init__(
        self,
        model: LoadedModel,
        settings: ServeSettings,
        servicer: PreprocessorServicer,
        auth_interceptor: AuthInterceptor,
        executor: Executor,
    ) -> None:
        self._model = model
        self._limits = settings.limits
        self._own_names = {"localhost", split_address("--http-address", settings.http_address)[0].lower()}
        self._servicer = servicer
        self._auth_interceptor = auth_interceptor
        self._executor = executor
        self._one_page = asyncio.Lock()

    def add_to(self, application: web.Application) -> None:
        """Serve it there."""
        application.add_routes([web.get(_PATH, self._ask), web.post(_PATH, self._show)])

    async def _ask(self, request: web.Request) -> web.StreamResponse:
        self._check_origin(request)
        error = await check_model(self._auth_interceptor, self._servicer, _with_bearer(request))
        return self._form(error) if error is not None else _page(render_form(self._model.name))

    async def _show(self, request: web.Request) -> web.StreamResponse:
        self._check_origin(request)
        if request.content_type != "multipart/form-data":
            raise web.HTTPUnsupportedMediaType(text="send multipart/form-data: fields text, fps and file\n")
        request = _with_bearer(request)
        form, result = _Form(request, self._limits), ResultAssembler()
        async with contextlib.AsyncExitStack() as turn:

            async def receive_spec(
                upload: Upload[pb.PrepareRequest], call: Call
            ) -> tuple[pb.PrepareSpec, Mapping[str, memoryview]]:
                received = await form.receive_spec(upload, call)
                upload.end()
                await self._begin_page(turn)
                return received

            async def write(message: pb.PrepareResponse | bytes) -> None:
                response = pb.PrepareResponse.FromString(message) if isinstance(message, bytes) else message
                if sum(tensor.total_bytes for tensor in response.header.tensors) > INSPECTED_BYTES:
                    raise LimitExceeded(
                        f"a page is made of at most {INSPECTED_BYTES >> 20} MiB of pixels; send fewer frames, or take "
                        "`preprocessor inspect`",
                        reason="PAGE_TOO_LARGE",
                    )
                result.add(response)

            context = HttpContext(request, form.messages(), write)
            behaviour = functools.partial(self._servicer.prepare, receive_spec=receive_spec)
            await run_call(self._auth_interceptor, behaviour, "Prepare", pb.PrepareRequest.FromString, context)
            if context.error is not None:
                return self._form(context.error)
            loop = asyncio.get_running_loop()
            return _page(await loop.run_in_executor(self._executor, self._write_page, result, form.spec))

    async def _begin_page(self, turn: contextlib.AsyncExitStack) -> None:
        """Wait until no other page is being made; others wait until `turn` is closed.

        Raises:
            DeadlineExceeded: Others took too long.
        """
        try:
            async with asyncio.timeout(_TURN_SECONDS):
                await turn.enter_async_context(self._one_page)
        except TimeoutError:
            raise DeadlineExceeded(
                f"other pages were being made for {_TURN_SECONDS:g} seconds, and only one is at a time; try again"
            ) from None

    def _write_page(self, assembler: ResultAssembler, spec: pb.PrepareSpec) -> str:
        result = assembler.result()
        model = writing.write_model(self._model, False, library_versions())
        ids = result.tensors.get("input_ids")
        texts = token_texts(self._model.tokenizer, [] if ids is None else ids.ravel().tolist())
        prepared = PreparedPrompt(result, spec, model, None)
        return render(build_page(Subject(prepared, "Prepared by a service.", texts, (_NOT_KNOWN,)), _MOST_FRAMES))

    def _check_origin(self, request: web.Request) -> None:
        """Refuse other hosts, whose tokens everyone on the way could read, and pages of other sites.

        Raises:
            HTTPForbidden: It is one of these.
            HTTPMisdirectedRequest: The request asks for another host.
        """
        if not is_loopback(request.remote or ""):
            raise web.HTTPForbidden(
                text=f"{_PATH} answers callers on this host alone, such as `kubectl port-forward`\n"
            )
        # To a browser, a page of another site is a page of this one if that site's name leads here (DNS rebinding).
        if not _is_own_host(request.headers.get(hdrs.HOST, ""), self._own_names):
            raise web.HTTPMisdirectedRequest(
                text=f"{_PATH} answers by an IP address, localhost or the host of --http-address, by no other name\n"
            )
        origin = request.headers.get(hdrs.ORIGIN)
        is_own = origin is None or origin.partition("://")[2] == request.host
        if not is_own or request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            raise web.HTTPForbidden(text=f"{_PATH} answers no page of another site\n")

    def _form(self, error: HttpError) -> web.Response:
        headers = dict(error.headers)
        if error.status == 401:
            headers[hdrs.WWW_AUTHENTICATE] = 'Basic realm="any name, and the token as password", charset="UTF-8"'
        problem = f"{error.reason}: {error.message}" if error.reason else error.message
        # Who is not let in does not learn the model's name.
        name = "this service" if error.status in (401, 403) else self._model.name
        return _page(render_form(name, problem), error.status, headers)


class _Form:
    """A form that is being received: a text, a rate and a file, each at most once, in any order.

    Attributes:
        spec: What was asked for, without the file; complete once `receive_spec` has returned.
    """

    def __init__(self, request: web.Request, limits: Limits) -> None:
        self.spec = pb.PrepareSpec()
        self._request = request
        self._limits = limits
        self._fields: dict[str, str] = {}
        self._modality: Modality | None = None  # of the file; None where there is none

    async def receive_spec(
        self, upload: Upload[pb.PrepareRequest], call: Call
    ) -> tuple[pb.PrepareSpec, Mapping[str, memoryview]]:
        """See `servicer.ReceiveSpec`. The file comes first, since the fields behind it belong to the spec too.

        Raises:
            InvalidRequest: `INVALID_FORM`: a field is unknown, repeated, too long, or no number; the file's type is not given; or
                it is no form. Or as `Upload.chunk`.
            LimitExceeded, DeadlineExceeded, Overloaded: As `receive_files`.
        """
        receiver: FileReceiver | None = None
        with call.timings.stage("receive"):
            while (chunk := await upload.chunk()) is not None:
                if receiver is None:
                    assert self._modality is not None
                    total = FilesTotal(self._limits)
                    receiver = FileReceiver(Media(_KEY, self._modality, b""), total, call.resources, None)
                await receiver.write(chunk.data)
            self.spec = _prompt_of(self._fields, self._modality).spec
            return self.spec, {} if receiver is None else {_KEY: await receiver.file.finish()}

    async def messages(self) -> AsyncIterator[bytes]:
        """The file as messages that `Upload` receives; all else is kept here."""
        seen: set[str] = set()
        with _reading():
            reader = await self._request.multipart()
        while True:
            with _reading():
                part = await reader.next()
            if part is None:
                return
            if not isinstance(part, BodyPartReader) or part.name not in ("text", "fps", _KEY):
                raise _invalid("the fields are text, fps and file")
            if part.name in seen:
                raise _invalid(f"{part.name} is given twice")
            seen.add(part.name)
            if part.name != _KEY:
                self._fields[part.name] = await _text_of(part)
            elif part.filename:
                self._modality = _modality_of(part)
                yield _chunk(b"")  # so that an empty file is one
                async for piece in _pieces(part, MAX_CHUNK_BYTES):
                    yield _chunk(piece)
            elif await _text_of(part):  # a browser sends an empty one where none was chosen
                raise _invalid("file has a filename; curl sends one with -F file=@PATH")


def _chunk(data: bytes) -> bytes:
    return pb.PrepareRequest(chunk=pb.MediaChunk(data=data)).SerializeToString()


async def _pieces(part: BodyPartReader, most_bytes: int) -> AsyncIterator[bytes]:
    """What a part holds, as it comes.

    Raises:
        InvalidRequest: `INVALID_FORM`: the form ends within it.
    """
    while not part.at_eof():
        with _reading():
            piece = await part.read_chunk(most_bytes)
        if piece:
            yield bytes(piece)


async def _text_of(part: BodyPartReader) -> str:
    data = b""
    async for piece in _pieces(part, part.chunk_size):
        data += piece
        if len(data) > _LONGEST_FIELD:
            raise _invalid(f"{part.name} has at most {_LONGEST_FIELD >> 10} KiB")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _invalid(f"{part.name} is UTF-8") from error


def _modality_of(part: BodyPartReader) -> Modality:
    content_type = part.headers.get(hdrs.CONTENT_TYPE, "")
    modality = Modality.__members__.get(content_type.partition("/")[0].upper())
    if modality is None:
        raise _invalid(f"the file's type is image/…, video/… or audio/…, not {content_type[:100]!r}")
    return modality


@contextlib.contextmanager
def _reading() -> Iterator[None]:
    """Refuses a body that aiohttp cannot read as a form.

    Raises:
        InvalidRequest: `INVALID_FORM`.
    """
    try:
        yield
    except (ValueError, RuntimeError, HttpProcessingError) as error:  # whose texts may quote the body
        raise _invalid("the body is no whole multipart/form-data: send one with a boundary, to its end") from error


def _prompt_of(fields: Mapping[str, str], modality: Modality | None) -> Prompt:
    parts: list[Any] = [fields.get("text", "")]
    if modality is not None:
        is_rated = modality is Modality.VIDEO and fields.get("fps")
        given: dict[str, Any] = {"fps": _rate(fields["fps"])} if is_rated else {}
        parts.insert(0, _MAKERS[modality](b"", key=_KEY, **given))
    prompt = chat([{"role": "user", "content": parts}])
    for medium in prompt.spec.media:
        medium.chunked.SetInParent()
    return prompt


def _rate(text: str) -> float:
    try:
        return float(text)
    except ValueError as error:
        raise _invalid(f"fps is a number, not {text[:100]!r}") from error


def _invalid(message: str) -> InvalidRequest:
    return InvalidRequest(message, reason="INVALID_FORM")


def _is_own_host(host: str, own_names: Collection[str]) -> bool:
    """Whether a `Host` header has one of the names, or an IP address, which nobody else's name server can give out."""
    with contextlib.suppress(ValueError):  # neither a host nor an address
        name = urlsplit(f"//{host}").hostname or ""
        return name in own_names or bool(ipaddress.ip_address(name))
    return False


def _with_bearer(request: web.Request) -> web.Request:
    """The same request with the password of basic authentication as its token."""
    scheme, _, credentials = request.headers.get(hdrs.AUTHORIZATION, "").partition(" ")
    if scheme.lower() != "basic":
        return request
    try:
        token = base64.b64decode(credentials, validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError):
        token = ""
    headers = request.headers.copy()
    headers[hdrs.AUTHORIZATION] = f"Bearer {token}"
    return request.clone(headers=headers)


def _page(text: str, status: int = 200, headers: dict[str, str] | None = None) -> web.Response:
    # With the policy no-referrer, browsers would not tell the origin of the form either.
    further = {"Cache-Control": "no-store", "X-Content-Type-Options": "nosniff", "Referrer-Policy": "same-origin"}
    return web.Response(text=text, status=status, headers={**further, **(headers or {})}, content_type="text/html")
