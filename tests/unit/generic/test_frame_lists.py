"""Frames that the caller has chosen, in front of a model's own processor."""

from __future__ import annotations

import base64
from typing import Any

import numpy as np
import pytest

from preprocessor.models.generic import GenericModel, prepare_generic
from preprocessor.types.plan import Substitution
from preprocessor.types.request import FrameList, Media, OnDamage
from tests.frame_lists import at_times, image_files, listed
from tests.unit.generic.cases import LIMITS, chat
from tests.unit.generic.test_parity import VIDEO_LENGTHS, assert_equal

from transformers.image_utils import load_image  # isort: skip
from transformers.video_utils import VideoMetadata  # isort: skip

PICTURES = image_files(6, 96, 64, "PNG")


def answer_of(processor: Any, media: list[Media], metadata: list[VideoMetadata]) -> dict[str, Any]:
    """transformers' own answer to `chat`, of the same frames."""
    urls = ["data:image/any;base64," + base64.b64encode(one).decode() for one in PICTURES]
    frames = np.stack([np.asarray(load_image(url)) for url in urls])
    conversation = [
        {
            "role": message.role,
            "content": [
                {"type": "text", "text": part.text} if hasattr(part, "text") else {"type": "video", "video": frames}
                for part in message.parts
            ],
        }
        for message in chat(*media).prompt.messages  # type: ignore[union-attr]
    ]
    output = processor.apply_chat_template(
        conversation,
        tokenize=True,
        return_dict=True,
        return_tensors="pt",
        add_generation_prompt=True,
        processor_kwargs={"videos_kwargs": {"do_sample_frames": False, "video_metadata": metadata}},
    )
    return dict(output)


@pytest.mark.parametrize("name", list(VIDEO_LENGTHS))
def test_frames_come_out_as_transformers_makes_them(
    loaded: dict[str, GenericModel], processors: dict[str, Any], name: str
) -> None:
    media = [listed(PICTURES, "a", FrameList((), fps=3.0)), listed(PICTURES, "b", at_times(0.5, 1, 2, 4, 8, 9.25))]
    metadata = [
        VideoMetadata(total_num_frames=6, fps=3.0, duration=2.0, frames_indices=list(range(6))),
        VideoMetadata(
            total_num_frames=10.5,
            fps=1.0,
            duration=10.5,
            frames_indices=[0.5, 1, 2, 4, 8, 9.25],
        ),
    ]
    expected = answer_of(processors[name], media, metadata)
    assert_equal(prepare_generic(loaded[name], chat(*media), LIMITS).tensors, expected)


def test_a_frame_that_cannot_be_decoded_is_replaced_and_reported(loaded: dict[str, GenericModel]) -> None:
    pictures = [*PICTURES[:3], PICTURES[3][:70], *PICTURES[4:]]
    plan = prepare_generic(loaded["glm46v"], chat(listed(pictures, on_damage=OnDamage.REPEAT)), LIMITS)
    assert plan.substitutions == (Substitution(0, 3, 2),)
