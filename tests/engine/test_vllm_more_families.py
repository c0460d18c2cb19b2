"""Families beside Qwen in a real vLLM: its answers to our prompts are those to the same files and frames by its own processing.

The servers run vLLM's own processing too (`--mm-processor inprocess`, of smg-grpc-servicer): it gets the text's tokens and the
files. A video goes there as a list of frames, as here.
"""

from __future__ import annotations

import base64
import json
import random
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import grpc
import pytest
from smg_grpc_proto.generated import common_pb2
from smg_grpc_proto.generated import vllm_engine_pb2 as pb
from smg_grpc_proto.generated import vllm_engine_pb2_grpc as pb_grpc

from engine_client import EngineRejected, Fingerprint
from engine_client.vllm import VllmEngine
from preprocessor.models.family import Model
from preprocessor.models.fingerprint import fingerprint_parts
from preprocessor.types.request import FrameList, Media, Modality
from tests.engine.family_prompts import IMAGES, ONE_SIZE, request_of
from tests.engine.tiny_families import write_family
from tests.engine.vllm_prompts import PATIENCE_SECONDS, TOKEN_COUNT, answer, broken, picture, tensors_of
from tests.engine.vllm_server import INSTALLED, SharedVllm
from tests.frame_lists import image_files, listed
from tests.golden import oracle, tile_oracle
from tests.loading import load_family_model

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.timeout(1500),
    pytest.mark.skipif(not INSTALLED.exists(), reason="no vLLM; `make vllm` sets one up"),
]
NAMES = ("glm-4.1v", "mistral3", "internvl", "gemma4")
"""One of each form of rows; inputs of the others are compared in `test_vllm_family_inputs.py`, which takes no start."""
BROKEN_COUNT = 100
OWN_PROCESSING = ("--mm-processor", "inprocess")
FRAMES = image_files(6, image_format="PNG")
CLIP = listed(FRAMES, "clip", FrameList((), fps=1.0))  # vLLM takes listed frames for one a second
VIDEOS: Mapping[str, tuple[Media, ...]] = {"video": (CLIP,), "images and video": (picture("a"), CLIP, picture("b"))}


@dataclass(frozen=True)
class Tiny:
    name: str
    folder: Path
    model: Model

    def token_ids(self, media: tuple[Media, ...]) -> list[int]:
        """Of the text with one placeholder a medium."""
        processor = tile_oracle.processor_in(str(self.folder))
        text, _ = oracle.rendered(processor, request_of(media))
        bos = processor.tokenizer.bos_token
        ids: list[int] = processor.tokenizer(text, add_special_tokens=not text.startswith(bos or " "))["input_ids"]
        return ids


@pytest.fixture(scope="module", params=NAMES)
def tiny(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Tiny:
    folder = tmp_path_factory.mktemp(request.param)
    write_family(folder, request.param)
    return Tiny(request.param, folder, load_family_model(str(folder)))


def own_answer(address: str, tiny: Tiny, media: tuple[Media, ...]) -> list[int]:
    """vLLM's tokens where it processes the files itself."""
    request = pb.GenerateRequest(
        request_id=f"own-{json.dumps([one.key for one in media])}",
        tokenized=pb.TokenizedInput(input_ids=tiny.token_ids(media)),
        sampling_params=pb.SamplingParams(temperature=0, max_tokens=TOKEN_COUNT, ignore_eos=False),
        stream=False,
    )
    for one in media:
        is_video = one.modality is Modality.VIDEO
        files = FRAMES if is_video else [one.content]
        url = ("data:video/jpeg;base64," if is_video else "data:image/png;base64,") + ",".join(
            base64.b64encode(file).decode() for file in files
        )
        request.media_refs.items.add(modality=common_pb2.VIDEO if is_video else common_pb2.IMAGE, url=url)
    with grpc.insecure_channel(address) as channel:
        (reply,) = pb_grpc.VllmEngineStub(channel).Generate(request, timeout=PATIENCE_SECONDS)
    return list(reply.complete.output_ids)


async def test_tokens_equal_those_of_vllms_own_processing_and_no_prompt_ends_the_core(
    tiny: Tiny, vllm: SharedVllm
) -> None:
    address = vllm.serving(tiny.folder, *OWN_PROCESSING).address
    kinds = {**IMAGES, **(VIDEOS if Modality.VIDEO in tiny.model.modalities else {})}
    if tiny.name in ONE_SIZE:
        del kinds["images that differ"]
    fingerprint = Fingerprint(fingerprint_parts(tiny.model))
    answers: dict[str, list[int]] = {}
    async with VllmEngine(address, fingerprint=fingerprint) as engine:
        for kind, media in kinds.items():
            answers[kind], _ = await answer(engine, tensors_of(tiny.model, media))
            if media:
                assert answers[kind] == own_answer(address, tiny, media), kind
        whole = tensors_of(tiny.model, (picture(),))
        inverted = whole | {"pixel_patches": 255 - whole["pixel_patches"], "item_hash": whole["item_hash"] ^ 1}
        assert (await answer(engine, inverted))[0] != answers["image"]  # so pixels decide
        chance = random.Random(23)
        wholes = [tensors_of(tiny.model, media) for media in kinds.values() if media]
        for _ in range(BROKEN_COUNT):
            with suppress(EngineRejected):
                await answer(engine, broken(chance.choice(wholes), chance), max_tokens=1)
        assert (await answer(engine, whole | {"item_hash": whole["item_hash"] ^ 2}))[0] == answers["image"]
