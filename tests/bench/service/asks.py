"""The requests of the workload, each with the right answer, worked out by `pipeline.prepare`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from preprocessor import pipeline
from preprocessor.errors import PreprocessorError
from preprocessor.models.family import Model
from preprocessor.service.reading import read_spec
from preprocessor.traffic.load import Ask, ask_prepare
from preprocessor.traffic.seed import TEXT
from preprocessor.types.request import PreparationRequest
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.bench.service import checksum


def video_ask(model: Model, name: str, data: bytes, fps: float) -> Ask:
    """A clip and 50 tokens of text."""
    medium = pb.Media(key="clip", modality=pb.MODALITY_VIDEO, chunked=pb.Chunked(), sampling=pb.Sampling(fps=fps))
    return make_ask(model, name, _spec(medium), {"clip": data})


def image_ask(model: Model, name: str, data: bytes) -> Ask:
    """A picture and 50 tokens of text."""
    return make_ask(
        model, name, _spec(pb.Media(key="photo", modality=pb.MODALITY_IMAGE, chunked=pb.Chunked())), {"photo": data}
    )


def text_ask(model: Model, name: str) -> Ask:
    """50 tokens of text alone."""
    return make_ask(model, name, _spec(), {})


def make_ask(model: Model, name: str, spec: pb.PrepareSpec, files: Mapping[str, bytes]) -> Ask:
    """Any request to Prepare; its files go in chunks."""
    ask = ask_prepare(name, spec, files)
    try:
        right_outcome = checksum.of_tensors(pipeline.prepare(model, request_of(ask)).tensors)
    except PreprocessorError as error:
        right_outcome = error.reason
    return replace(ask, right_outcome=right_outcome)


def request_of(ask: Ask) -> PreparationRequest:
    """The request as the pipeline takes it."""
    first, *rest = (pb.PrepareRequest.FromString(message) for message in ask.messages)
    files: dict[str, bytes] = {}
    for message in rest:
        files[message.chunk.key] = files.get(message.chunk.key, b"") + message.chunk.data
    request, sources = read_spec(first.spec)
    return sources.fill(request, files)


def _spec(*media: pb.Media) -> pb.PrepareSpec:
    message = pb.Message(role="user", parts=[*(pb.Part(media_key=medium.key) for medium in media), pb.Part(text=TEXT)])
    return pb.PrepareSpec(chat=pb.ChatPrompt(messages=[message]), media=media)
