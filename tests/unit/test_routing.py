"""The metadata by which a proxy finds the replica that has a prompt's media."""

from __future__ import annotations

import hashlib

import pytest

from preprocessor.client import Cached, Medium, Prompt, audio, chat, image, text, video
from preprocessor.client.known_files import digests_of
from preprocessor.client.routing import MEDIA_DIGEST, routing_metadata
from preprocessor.v1 import preprocessor_pb2 as pb
from preprocessor.wire.tensors import MAX_CHUNK_BYTES

SMALL, LARGE = b"a photo", bytes(MAX_CHUNK_BYTES + 1)


def named(prompt: Prompt) -> str:
    ((key, value),) = routing_metadata(prompt, digests_of(prompt))
    assert key == MEDIA_DIGEST
    return value


def turn(*media: Medium) -> Prompt:
    return chat([{"role": "user", "content": [*media, "What is this?"]}])


def of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()[:32]


@pytest.mark.parametrize(
    ("medium", "content"),
    [
        (image(SMALL), SMALL),
        (video(LARGE), LARGE),
        (image("https://cdn.example/photo.jpg"), b"https://cdn.example/photo.jpg"),
        (audio(video(SMALL)), SMALL),
    ],
)
def test_the_first_file_or_its_url_names_a_prompt(medium: Medium, content: bytes) -> None:
    assert named(turn(medium)) == of(content)


def test_turns_of_a_conversation_have_one_name() -> None:
    first = image(SMALL)
    assert named(turn(first)) == named(turn(first, video(LARGE))) == named(turn(first, image(b"another"), video(LARGE)))


def test_a_file_that_is_named_and_not_sent_has_the_name_that_it_had() -> None:
    sent = turn(video(LARGE))
    (medium,) = sent.spec.media
    digest = hashlib.sha256(LARGE).digest()
    cached = pb.Media(key=medium.key, cached=pb.Cached(), content_sha256=digest)
    assert named(Prompt(pb.PrepareSpec(media=[cached]))) == named(sent)


def test_a_name_of_the_caller_s_own_stands_for_the_file_in_every_turn() -> None:
    sent, named_only = turn(video(LARGE, uuid="clip")), turn(video(Cached(uuid="clip")))
    assert named(sent) == named(named_only) == of(b"clip")


def test_digests_that_are_known_are_not_made_again() -> None:
    prompt = turn(image(SMALL, key="it"))
    ((_, value),) = routing_metadata(prompt, {"it": bytes(range(32))})
    assert value == bytes(range(16)).hex()


def test_a_prompt_without_media_has_no_name() -> None:
    for prompt in (text("Hi"), turn(), Prompt(pb.PrepareSpec(media=[pb.Media(key="nothing")]))):
        assert routing_metadata(prompt, {}) == ()
