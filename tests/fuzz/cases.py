"""The cases of a run: each is made of the run's seed and its own number alone, so that any of them can be made again."""

from __future__ import annotations

import hashlib
import random
from collections.abc import Sequence
from dataclasses import dataclass

from preprocessor.client.requests import media_chunks
from preprocessor.v1 import preprocessor_pb2 as pb
from tests.fuzz import messages
from tests.fuzz.mutators import mutate
from tests.fuzz.seeds import SEEDS, Seed, file_of

_MESSAGES_SHARE = 0.15
_COUNT_SHARE = 0.2
_CACHED_SHARE = 0.2
_LISTED_SHARE = 0.15
_WEIGHTS = {pb.MODALITY_VIDEO: 5, pb.MODALITY_IMAGE: 4, pb.MODALITY_AUDIO: 2}


@dataclass(frozen=True, slots=True)
class Case:
    """One request.

    Attributes:
        number: Its place in the run.
        kind: The seed's name, or "messages".
        method: Of the service.
        data: The mutated file.
        sent: Serialized messages.
        told: What was done to the file or the messages.
    """

    number: int
    kind: str
    method: str
    modality: pb.Modality.ValueType
    data: bytes
    sent: tuple[bytes, ...]
    told: str


def make_case(run_seed: int, number: int, only: str = "") -> Case:
    """Args:
    only: Part of the names of the seeds to take; "" takes all of them, and requests too.
    """
    source = random.Random(f"{run_seed}/{number}")
    names = [name for name in SEEDS if only in name]
    if not only and source.random() < _MESSAGES_SHARE:
        return _messages_case(number, source)
    seed = SEEDS[_choose(names, source)]
    donor = file_of(_choose(names, source))
    data, told = mutate(file_of(seed.name), seed.structure, source, donor)
    spec, modality = _spec(seed, source), seed.modality
    if modality == pb.MODALITY_IMAGE and source.random() < _LISTED_SHARE:
        data, modality = messages.list_frames(spec.media[0], file_of(seed.name), data, source), pb.MODALITY_VIDEO
        told += ", a frame of a list"
    files = {"it": data} if spec.media[0].HasField("chunked") else {}
    chunks = (pb.PrepareRequest(chunk=chunk) for chunk in media_chunks(files))
    sent = [pb.PrepareRequest(spec=spec), *chunks]
    method = "CountTokens" if source.random() < _COUNT_SHARE else "Prepare"
    return Case(number, seed.name, method, modality, data, tuple(one.SerializeToString() for one in sent), told)


def _choose(names: Sequence[str], source: random.Random) -> str:
    """A seed of a modality chosen before, for there are many kinds of images."""
    by_modality: dict[pb.Modality.ValueType, list[str]] = {}
    for name in names:
        by_modality.setdefault(SEEDS[name].modality, []).append(name)
    modalities = list(by_modality)
    return source.choice(by_modality[source.choices(modalities, [_WEIGHTS[one] for one in modalities])[0]])


def _messages_case(number: int, source: random.Random) -> Case:
    """A good file, and a request about it that is not."""
    seed = SEEDS[source.choice(("mp4 h264", "image png", "gif", "image jpeg"))]
    data = file_of(seed.name)
    spec = _spec(seed, source)
    modality = seed.modality
    if modality == pb.MODALITY_IMAGE and source.random() < 0.5:
        data, modality = messages.list_frames(spec.media[0], data, data, source), pb.MODALITY_VIDEO
    is_cached = source.random() < _CACHED_SHARE
    if is_cached:  # known, if an earlier case has sent the file
        spec.media[0].cached.SetInParent()
        spec.media[0].content_sha256 = hashlib.sha256(data).digest()
    spoil = source.choice((messages.spoil_spec, messages.spoil_bytes))
    is_generate = source.random() < 0.2
    whole = pb.GenerateSpec(prompt=spec) if is_generate else spec
    told = [spoil(whole, source)] if source.random() < 0.8 else []
    is_inline = spec.media[:1] and spec.media[0].HasField("inline_frames")
    following, how = messages.chunks({} if is_cached or is_inline else {"it": data}, source)
    request = pb.GenerateRequest if is_generate else pb.PrepareRequest
    sent = [request(spec=whole), *(request(chunk=chunk) for chunk in following)]  # type: ignore[arg-type]
    if source.random() < 0.1:
        source.shuffle(sent)
        told.append("shuffled with the spec")
    method = "Generate" if is_generate else source.choice(("Prepare", "CountTokens"))
    serialized = [one.SerializeToString() for one in sent]
    if source.random() < 0.1:
        place = source.randrange(len(serialized))
        serialized[place], raw = mutate(serialized[place], "pieces", source)
        told.append(f"message {place} as bytes: {raw}")
    return Case(number, "messages", method, modality, b"", tuple(serialized), "; ".join([*told, how]))


def _spec(seed: Seed, source: random.Random) -> pb.PrepareSpec:
    medium = pb.Media(key="it", modality=seed.modality, chunked=pb.Chunked())
    if seed.modality == pb.MODALITY_VIDEO:
        sampling = source.choice((pb.Sampling(), pb.Sampling(frame_count=4), pb.Sampling(every_frame=pb.EveryFrame())))
        medium.sampling.CopyFrom(sampling)
        if source.random() < 0.5:
            medium.damage_policy = pb.DAMAGE_POLICY_TOLERANT
    message = pb.Message(role="user", parts=[pb.Part(media_key="it"), pb.Part(text="look")])
    return pb.PrepareSpec(chat=pb.ChatPrompt(messages=[message]), media=[medium])
