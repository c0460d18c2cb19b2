"""`/inspect` of the HTTP port: a form for a text and a file, and the page that shows what they became.

For looking at a running service by hand, so it is off unless `--inspect` is given. It answers only callers on this host, such as
`kubectl port-forward`, because the HTTP port has no TLS. A browser asks for the token: any name, and the token as the password.
The prompt goes the way of every call of `Prepare`, with its limits and quotas. One page is made at a time.
"""

from __future__ import annotations

import asyncio
import base64
import binascii
from collections.abc import AsyncIterator, Callable, Mapping
from concurrent.futures import Executor
from typing import Any

from aiohttp import BodyPartReader, MultipartReader, hdrs, web

from preprocessor.client import Prompt, audio, chat, image, video
from preprocessor.client.answers import ResultAssembler
from preprocessor.client.media import Medium
from preprocessor.config import INSPECTED_BYTES, is_loopback
from preprocessor.errors import InvalidRequest, LimitExceeded
from preprocessor.models.loaded import LoadedModel
from preprocessor.models.versions import library_versions
from preprocessor.prompt_page.build import Subject, build_page
from preprocessor.prompt_page.facts import PreparedPrompt
from preprocessor.prompt_page.form import render_form
from preprocessor.prompt_page.render import render
from preprocessor.prompt_page.tokens import token_texts
from preprocessor.service import writing
from preprocessor.service.auth_interceptor import AuthInterceptor
from preprocessor.service.openai.context import HttpContext, check_model, run_call
from preprocessor.service.openai.errors import HttpError
from preprocessor.service.servicer import PreprocessorServicer
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.wire.tensors import MAX_CHUNK_BYTES

_PATH = "/inspect"
_LONGEST_FIELD = 64 << 10  # bytes of a text
_MOST_FRAMES = 16  # shown of each item
_KEY = "file"
_MAKERS: Mapping[str, Callable[..., Medium]] = {"image": image, "video": video, "audio": audio}
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
        servicer: PreprocessorServicer,
        auth_interceptor: AuthInterceptor,
        executor: Executor,
    ) -> None:
        self._model = model
        self._servicer = servicer
        self._auth_interceptor = auth_interceptor
        self._executor = executor
        self._one_page = asyncio.Lock()

    def add_to(self, application: web.Application) -> None:
        """Serve it there."""
        application.add_routes([web.get(_PATH, self._ask), web.post(_PATH, self._show)])

    async def _ask(self, request: web.Request) -> web.StreamResponse:
        _check_origin(request)
        error = await check_model(self._auth_interceptor, self._servicer, _with_bearer(request))
        return self._form(error) if error is not None else _page(render_form(self._model.name))

    async def _show(self, request: web.Request) -> web.StreamResponse:
        _check_origin(request)
        if request.content_type != "multipart/form-data":
            raise web.HTTPUnsupportedMediaType(text="send multipart/form-data: fields text, fps and, at last, file\n")
        async with self._one_page:
            request = _with_bearer(request)
            form, result = _Form(await request.multipart()), ResultAssembler()

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
            parse = pb.PrepareRequest.FromString
            await run_call(self._auth_interceptor, self._servicer.Prepare, "Prepare", parse, context)
            if context.error is not None:
                return self._form(context.error)
            loop = asyncio.get_running_loop()
            return _page(await loop.run_in_executor(self._executor, self._write_page, result, form.spec))

    def _write_page(self, assembler: ResultAssembler, spec: pb.PrepareSpec) -> str:
        result = assembler.result()
        model = writing.write_model(self._model, False, library_versions())
        ids = result.tensors.get("input_ids")
        texts = token_texts(self._model.tokenizer, [] if ids is None else ids.ravel().tolist())
        prepared = PreparedPrompt(result, spec, model, None)
        return render(build_page(Subject(prepared, "Prepared by a service.", texts, (_NOT_KNOWN,)), _MOST_FRAMES))

    def _form(self, error: HttpError) -> web.Response:
        headers = dict(error.headers)
        if error.status == 401:
            headers[hdrs.WWW_AUTHENTICATE] = 'Basic realm="any name, and the token as password", charset="UTF-8"'
        problem = f"{error.reason}: {error.message}" if error.reason else error.message
        # Who is not let in does not learn the model's name.
        name = "this service" if error.status in (401, 403) else self._model.name
        return _page(render_form(name, problem), error.status, headers)


class _Form:
    """A form that is being received: texts first, then at most one file.

    Attributes:
        spec: What was asked for, without the file.
    """

    def __init__(self, reader: MultipartReader) -> None:
        self.spec = pb.PrepareSpec()
        self._reader = reader

    async def messages(self) -> AsyncIterator[bytes]:
        """The messages of a call of `Prepare`.

        Raises:
            InvalidRequest: `INVALID_FORM`: a field is unknown, too long, or no number; or the file's type is not given.
        """
        fields: dict[str, str] = {}
        file: BodyPartReader | None = None
        while file is None and (part := await self._reader.next()) is not None:
            if not isinstance(part, BodyPartReader) or part.name not in ("text", "fps", _KEY):
                raise _invalid("the fields are text, fps and, at last, file")
            if part.name == _KEY:
                file = part if part.filename else None  # a browser sends an empty one where none was chosen
            else:
                fields[part.name] = await _text_of(part)
        prompt = _prompt_of(fields, "" if file is None else file.headers.get(hdrs.CONTENT_TYPE, ""), file is not None)
        self.spec = prompt.spec
        yield pb.PrepareRequest(spec=prompt.spec).SerializeToString()
        if file is None:
            return
        offset, piece = 0, await file.read_chunk(MAX_CHUNK_BYTES)
        while True:
            following = await file.read_chunk(MAX_CHUNK_BYTES) if piece else b""
            chunk = pb.MediaChunk(key=_KEY, offset_bytes=offset, data=bytes(piece), last=not following)
            yield pb.PrepareRequest(chunk=chunk).SerializeToString()
            offset, piece = offset + len(piece), following
            if not piece:
                return


async def _text_of(part: BodyPartReader) -> str:
    data = b""
    while piece := await part.read_chunk():
        data += piece
        if len(data) > _LONGEST_FIELD:
            raise _invalid(f"{part.name} has at most {_LONGEST_FIELD >> 10} KiB")
    try:
        return data.decode()
    except UnicodeDecodeError as error:
        raise _invalid(f"{part.name} is UTF-8") from error


def _prompt_of(fields: dict[str, str], content_type: str, has_file: bool) -> Prompt:
    parts: list[Any] = [fields.get("text", "")]
    if has_file:
        kind = content_type.partition("/")[0]
        if kind not in _MAKERS:
            raise _invalid(f"the file's type is image/…, video/… or audio/…, not {content_type[:100]!r}")
        given: dict[str, Any] = {"fps": _rate(fields["fps"])} if kind == "video" and fields.get("fps") else {}
        parts.insert(0, _MAKERS[kind](b"", key=_KEY, **given))
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


def _check_origin(request: web.Request) -> None:
    """Refuse other hosts, whose tokens everyone on the way could read, and pages of other sites.

    Raises:
        HTTPForbidden: It is one of these.
    """
    if not is_loopback(request.remote or ""):
        raise web.HTTPForbidden(text=f"{_PATH} answers callers on this host alone, such as `kubectl port-forward`\n")
    origin = request.headers.get(hdrs.ORIGIN)
    is_own = origin is None or origin.partition("://")[2] == request.host
    if not is_own or request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
        raise web.HTTPForbidden(text=f"{_PATH} answers no page of another site\n")


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
