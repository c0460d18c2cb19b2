"""Which tokens stand for which image, where a processor's prompt tells."""

from __future__ import annotations

import numpy as np
import pytest

from preprocessor.models.generic import GenericModel, prepare_generic
from preprocessor.types.request import Media
from tests.media import photo
from tests.unit.generic.cases import LIMITS, chat, image, video

WIDE = photo(90, 30, "PNG")


@pytest.mark.parametrize(
    ("name", "token"),
    [
        ("gemma3", "<image_soft_token>"),
        ("internvl", "<IMG_CONTEXT>"),
        ("glm46v", "<|image|>"),
        ("llava_next", "<image>"),
    ],
)
def test_each_image_has_the_run_of_its_tokens(name: str, token: str, loaded: dict[str, GenericModel]) -> None:
    model = loaded[name]
    plan = prepare_generic(model, chat(image("a"), image("b", WIDE)), LIMITS)
    told, token_id = plan.item_tensors, model.tokenizer.convert_tokens_to_ids(token)
    runs = [plan.token_ids[offset : offset + length] for _, offset, length in told["item_spans"].tolist()]
    assert all((run == token_id).all() for run in runs)
    assert sum(map(len, runs)) == (plan.token_ids == token_id).sum()
    assert told["item_spans"][:, 0].tolist() == [0, 1]
    assert told["item_modality"].tolist() == [1, 1]
    assert [each.tobytes() for each in told["item_hash"]] == [item.digest for item in plan.items]
    assert {array.dtype for array in told.values()} == {np.dtype(np.int32), np.dtype(np.uint8)}


@pytest.mark.parametrize(
    ("name", "media"),
    [
        ("idefics3", (image("tiles with tokens between them"),)),
        ("pixtral", (image("rows with tokens between them"),)),
        ("internvl", (image("an image"), video("and a clip"))),
        ("gemma3", ()),
    ],
)
def test_nothing_is_said_where_it_is_not_known(
    name: str, media: tuple[Media, ...], loaded: dict[str, GenericModel]
) -> None:
    assert not prepare_generic(loaded[name], chat(*media), LIMITS).item_tensors
