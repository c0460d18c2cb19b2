"""What a vLLM server says of itself and of its model, and whether that can be served from here."""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from smg_grpc_proto.generated import vllm_engine_pb2 as pb

from engine_client.contract.layout import ModelLayout, RowForm
from engine_client.contract.published import PARAMETER_PREFIX
from engine_client.contract.tensors import IMAGE, VIDEO
from engine_client.contract.vllm_families import FAMILIES, VllmFamily, family_name, read_layout, why_refused
from engine_client.contract.vllm_rules import VisionMarkers
from engine_client.errors import EngineMismatch
from engine_client.types import EngineInfo

_CONTRACT_VERSION = "1"
"""Of the tensors that `engine_client.vllm.prompt` turns into vLLM's: a server knows nothing of them."""
_FLOAT_TYPES = ("float32", "float16", "bfloat16")
_MAX_TOKENIZER_BYTES = 256 << 20  # unpacked; an untrusted archive may claim anything


@dataclass(frozen=True, slots=True)
class VllmServer:
    """One server and its model, as it is now.

    Attributes:
        normalizes: It takes pixels as uint8 and normalizes them on its device; otherwise it takes normalized floats.
        float_type: Of the model's encoder, such as "bfloat16".
        max_prompt_tokens: The model's context, in tokens.
        max_item_tokens: Of one image or video; 0 where it does not say.
        max_items: By the contract's `item_modality`; what is not listed has no limit.
        pad_ids: Placeholder ids by `item_modality`, as far as the model's configuration is known.
        rows_per_token: Patches behind one placeholder; None where it is not known.
        vision_start_id, vision_end_id: The tokens before and after a picture's placeholders; None where they are not known.
        layout: As its `config.json` tells it; None of a Qwen model whose file does not.
        rescales_alone: Where it takes floats: values are multiplied by the rescale factor, not normalized (Gemma 4).
        shm_namespace: Tells whether this process sees the same `/dev/shm`.
    """

    model_name: str
    model_type: str
    normalizes: bool
    float_type: str
    max_prompt_tokens: int
    max_item_tokens: int
    max_items: Mapping[int, int]
    vocabulary_size: int
    pad_ids: Mapping[int, int]
    vision_start_id: int | None
    rows_per_token: int | None
    shm_namespace: str
    parameters: Mapping[str, str]
    vision_end_id: int | None = None
    layout: ModelLayout | None = None
    rescales_alone: bool = False

    @property
    def family(self) -> VllmFamily:
        return FAMILIES[self.model_type]

    @property
    def video_markers(self) -> VisionMarkers | None:
        """Those around the frames of a video; None where frames have no stamps, so that vLLM looks for no markers."""
        if not self.family.has_stamps:
            return None
        return VisionMarkers(self.vision_start_id, self.vision_end_id)

    @property
    def info(self) -> EngineInfo:
        return EngineInfo("vllm", "", self.model_name, (), inputs=(), outputs=(), parameters=self.parameters)


def read_server(
    who: str,
    model: pb.GetModelInfoResponse,
    server: pb.GetServerInfoResponse,
    bundle: Mapping[str, Any],
    own_files: Mapping[str, Any] | None = None,
) -> VllmServer:
    """What the answers of one server say together.

    Args:
        bundle: As `read_bundle`; empty where the server gives none.
        own_files: As `EngineOptions.model_files`; taken in place of those, but not as what the server has been set up for.
    Raises:
        EngineMismatch: its model or its servicer is one that cannot be served from here.
    """
    wrong: list[str] = []
    files = bundle or own_files or {}
    config = files.get("config.json", {})
    family = FAMILIES.get(model.model_type)
    layout = read_layout(
        model.model_type, config, vocabulary_size=model.vocab_size, max_positions=model.max_context_length
    )
    if family is None:
        wrong.append(f"its model is of the type {model.model_type or 'unknown'}; {why_refused(model.model_type)}")
    elif layout is None and family.needs_layout:
        needed = f", which must be of a {family.vision_type}" if family.vision_type else ""
        sent = "" if bundle else ", and it sends none of the model's files, as a vLLM that was started with a hub id"
        wrong.append(
            f"its model is of the type {model.model_type}, and its config.json does not tell the sizes of its pixels and "
            f"tokens{needed}{sent}"
        )
    if server.multimodal_encoder_dtype not in _FLOAT_TYPES:
        wrong.append(
            "it does not say the encoder's type, as smg-grpc-servicer before 0.14 does not; install smg-grpc-servicer>=0.14 there"
        )
    if wrong:
        raise EngineMismatch(who, wrong)
    limits = dict(part.split("=", 1) for part in server.mm_item_limits.split(",") if "=" in part)
    assert family is not None
    settings = _image_settings(files)
    merge = settings.get("merge_size")
    ids = {IMAGE: config.get("image_token_id"), VIDEO: config.get("video_token_id")}
    if layout is not None:
        ids = layout.placeholder_ids
    return VllmServer(
        model_name=model.served_model_name,
        model_type=model.model_type,
        normalizes=server.mm_device_do_normalize,
        float_type=server.multimodal_encoder_dtype,
        max_prompt_tokens=model.max_context_length,
        max_item_tokens=max(0, server.mm_encoder_budget),
        max_items={
            modality: int(limits[name])
            for name, modality in (("image", IMAGE), ("video", VIDEO))
            if limits.get(name, "").isdecimal()
        },
        vocabulary_size=model.vocab_size,
        pad_ids={modality: token_id for modality, token_id in ids.items() if isinstance(token_id, int)},
        vision_start_id=config.get("vision_start_token_id"),
        vision_end_id=config.get("vision_end_token_id"),
        rows_per_token=None if merge is None else int(merge) ** 2,
        shm_namespace=server.shm_namespace_id,
        layout=layout,
        rescales_alone=family.form is RowForm.PADDED and not settings.get("do_normalize", False),
        parameters={
            PARAMETER_PREFIX + name: value
            for name, value in _fingerprint(model.model_type, layout if bundle else None, bundle).items()
        },
    )


def read_bundle(chunks: Iterable[bytes]) -> dict[str, Any]:
    """The JSON files of the archive that `GetTokenizer` streams, by name; empty where it is no such archive."""
    found: dict[str, Any] = {}
    try:
        with zipfile.ZipFile(io.BytesIO(b"".join(chunks))) as archive:
            for entry in archive.infolist():
                if entry.filename.endswith(".json") and entry.file_size <= _MAX_TOKENIZER_BYTES:
                    content = json.loads(archive.read(entry))
                    if isinstance(content, dict):
                        found[entry.filename] = content
    except (zipfile.BadZipFile, ValueError, NotImplementedError):
        return {}
    return found


def _fingerprint(model_type: str, layout: ModelLayout | None, bundle: Mapping[str, Any]) -> dict[str, str]:
    """The parts of `engine_client.fingerprint` that are known of the server: most are told by its model's own files."""
    parts = {"contract_version": _CONTRACT_VERSION, "family": family_name(model_type, _processor_class(bundle))}
    if vocabulary := _vocabulary(bundle.get("tokenizer.json", {})):
        by_id = sorted((token_id, token) for token, token_id in vocabulary.items())
        parts["tokenizer_sha256"] = hashlib.sha256(json.dumps(by_id).encode()).hexdigest()
    settings = dict(_image_settings(bundle))
    if layout is not None and layout.form is not RowForm.PATCHES:  # these processors do not call it so
        settings |= {name: getattr(layout, name) for name in ("patch_size", "merge_size", "temporal_patch_size")}
    if layout is not None and layout.form is RowForm.PADDED and not settings.get("do_normalize", False):
        settings |= {"image_mean": [0.0] * 3, "image_std": [1.0] * 3}
    named = {"pixel_mean": "image_mean", "pixel_std": "image_std"}
    for name in ("patch_size", "merge_size", "temporal_patch_size", "pixel_mean", "pixel_std", "rescale_factor"):
        if (value := settings.get(named.get(name, name))) is not None:
            parts[name] = json.dumps(value)
    return parts


def _processor_class(bundle: Mapping[str, Any]) -> str:
    """Of transformers, where a file names it; the first that does decides, as in transformers 5.23, AutoProcessor."""
    files = ("processor_config.json", "preprocessor_config.json", "tokenizer_config.json")
    return next((str(named) for file in files if (named := bundle.get(file, {}).get("processor_class"))), "")


def _image_settings(bundle: Mapping[str, Any]) -> Mapping[str, Any]:
    """Of the image processor, in either layout that transformers writes; empty where there is no such file."""
    found = bundle.get("preprocessor_config.json") or bundle.get("processor_config.json", {}).get("image_processor")
    return {"rescale_factor": 1 / 255, **found} if found else {}  # transformers 5.23, the default of Qwen's processors


def _vocabulary(tokenizer: Mapping[str, Any]) -> dict[str, int]:
    """Token → id, added tokens included."""
    vocabulary = tokenizer.get("model", {}).get("vocab", {})
    if not isinstance(vocabulary, dict):  # a list of pieces with scores, as of a unigram model
        return {}
    return dict(vocabulary) | {one["content"]: one["id"] for one in tokenizer.get("added_tokens", ())}
