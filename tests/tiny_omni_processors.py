"""Further tiny processors, made as in `tests/tiny_processors.py`: newer families, and those that take sound beside pictures."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

import transformers
from PIL import ImageFont

from tests.tiny_processors import MAKERS, byte_tokenizer, chat_template, save

_BUDGET = {"shortest_edge": 56 * 56, "longest_edge": 112 * 112}


def save_qwen3_omni(directory: Path) -> None:
    """As Qwen2.5-Omni, with a video's sound spread over its frames by time."""
    names = ("image", "video", "audio")
    tokens = {f"{name}_token": f"<|{name}_pad|>" for name in names}
    tokens |= {f"{name}_{end}_token": f"<|{name}_{end}|>" for name in ("vision", "audio") for end in ("bos", "eos")}
    processor = transformers.Qwen3OmniMoeProcessor(
        image_processor=transformers.Qwen2VLImageProcessor(size=_BUDGET),
        video_processor=transformers.Qwen2VLVideoProcessor(size=_BUDGET),
        feature_extractor=transformers.WhisperFeatureExtractor(feature_size=8, chunk_length=1),
        tokenizer=byte_tokenizer(*tokens.values(), named=tokens),
        chat_template=chat_template(
            {
                "image": "<|vision_bos|><|image_pad|><|vision_eos|>",
                "video": "<|vision_bos|><|video_pad|><|vision_eos|>",
                "audio": "<|audio_bos|><|audio_pad|><|audio_eos|>",
            }
        ),
    )
    save(processor, directory, model_type="qwen3_omni_moe")


def save_gemma3n(directory: Path) -> None:
    """Images and sounds, each a fixed number of soft tokens."""
    tokens = {f"{name}_token": f"<{name}_soft_token>" for name in ("image", "audio")}
    tokens |= {f"{name}_token": f"<{name}>" for name in ("boi", "eoi", "boa", "eoa")}
    processor = transformers.Gemma3nProcessor(
        feature_extractor=transformers.Gemma3nAudioFeatureExtractor(feature_size=8),
        image_processor=transformers.SiglipImageProcessor(size={"height": 28, "width": 28}),
        tokenizer=byte_tokenizer(*tokens.values(), named=tokens),
        audio_seq_length=6,
        image_seq_length=4,
        chat_template=chat_template({"image": tokens["image_token"], "audio": tokens["audio_token"]}),
    )
    save(processor, directory, model_type="gemma3n")


def save_gemma4(directory: Path) -> None:
    """Images and videos within a number of soft tokens, sounds by their length; mm:ss before every frame."""
    tokens = {f"{name}_token": f"<|{name}|>" for name in ("image", "audio")}
    tokens |= {f"{name}_token": f"<{name}>" for name in ("boi", "eoi", "boa", "eoa")}
    processor = transformers.Gemma4Processor(
        feature_extractor=transformers.Gemma4AudioFeatureExtractor(feature_size=8),
        image_processor=transformers.Gemma4ImageProcessor(max_soft_tokens=70, patch_size=4),
        tokenizer=byte_tokenizer(*tokens.values(), "<|video|>", named=tokens),
        video_processor=transformers.Gemma4VideoProcessor(max_soft_tokens=70, patch_size=4),
        chat_template=chat_template({"image": "<|image|>", "video": "<|video|>", "audio": "<|audio|>"}),
    )
    save(processor, directory, model_type="gemma4", audio_config={"model_type": "gemma4_audio"})


def save_phi4_multimodal(directory: Path) -> None:
    """Images in tiles with a view of the whole, and sounds."""
    tokens = {"image_token": "<|image|>", "audio_token": "<|audio|>"}
    processor = transformers.Phi4MultimodalProcessor(
        image_processor=transformers.Phi4MultimodalImageProcessor(
            size={"height": 56, "width": 56}, patch_size=14, dynamic_hd=4
        ),
        audio_processor=transformers.Phi4MultimodalFeatureExtractor(),
        tokenizer=byte_tokenizer(*tokens.values(), named=tokens),
        chat_template=chat_template({"image": "<|image|>", "audio": "<|audio|>"}),
    )
    save(processor, directory, model_type="phi4_multimodal")


def save_video_llama_3(directory: Path) -> None:
    """Images and videos; tokens of a video that repeat the frame before are left out."""
    tokens = {"image_token": "<|image_pad|>", "video_token": "<|video_pad|>"}
    processor = transformers.VideoLlama3Processor(
        image_processor=transformers.VideoLlama3ImageProcessor(size=_BUDGET),
        tokenizer=byte_tokenizer(*tokens.values(), named=tokens),
        video_processor=transformers.VideoLlama3VideoProcessor(size=_BUDGET),
        chat_template=chat_template({"image": "<|image_pad|>", "video": "<|video_pad|>"}),
    )
    save(processor, directory, model_type="video_llama_3")


def save_kimi_k25(directory: Path) -> None:
    """Images and videos at their own size within a number of patches; a video in chunks of frames."""
    tokens = {"image_token": "<|media_pad|>", "video_token": "<|kimi_k25_video_placeholder|>"}
    marks = ["<|media_begin|>", "<|media_content|>", "<|media_end|>"]
    processor = transformers.Kimi_K25Processor(
        image_processor=transformers.Kimi_K25ImageProcessor(max_patches=64),
        tokenizer=byte_tokenizer(*tokens.values(), *marks, named=tokens),
        video_processor=transformers.Kimi_K25VideoProcessor(max_patches=64),
        chat_template=chat_template({"image": tokens["image_token"], "video": tokens["video_token"]}),
    )
    save(processor, directory, model_type="kimi_k25")


def save_minimax_m3_vl(directory: Path) -> None:
    """Images and videos in patches; seconds before every pair of frames."""
    tokens = ["]<]image[>[", "]<]video[>[", "]<]start of image[>[", "]<]end of image[>["]
    processor = transformers.MiniMaxM3VLProcessor(
        image_processor=transformers.MiniMaxM3VLImageProcessor(size=_BUDGET),
        tokenizer=byte_tokenizer(*tokens),
        video_processor=transformers.MiniMaxM3VLVideoProcessor(),
        chat_template=chat_template({"image": tokens[0], "video": tokens[1]}),
    )
    save(processor, directory, model_type="minimax_m3_vl")


def save_ernie4_5_vl(directory: Path) -> None:
    """Images and videos in patches; the time of each frame is drawn into it."""
    kinds = ("image", "video")
    tokens = {f"{kind}_token": f"<|{kind.upper()}_PLACEHOLDER|>" for kind in kinds}
    tokens |= {f"{kind}_{end}_token": f"<|{kind.upper()}_{end.upper()}|>" for kind in kinds for end in ("start", "end")}
    directory.mkdir(parents=True, exist_ok=True)
    font = directory / "Roboto-Regular.ttf"
    own = ImageFont.load_default(10)
    assert isinstance(own, ImageFont.FreeTypeFont)
    font.write_bytes(own.font_bytes)  # Pillow's, under the name of the published one
    processor = transformers.Ernie4_5_VLMoeProcessor(
        image_processor=transformers.Ernie4_5_VLMoeImageProcessor(size=_BUDGET),
        tokenizer=byte_tokenizer(*tokens.values(), named=tokens),
        video_processor=transformers.Ernie4_5_VLMoeVideoProcessor(size=_BUDGET, font=str(font)),
        chat_template=chat_template(
            {kind: f"<|{kind.upper()}_START|>{tokens[f'{kind}_token']}<|{kind.upper()}_END|>" for kind in kinds}
        ),
    )
    save(processor, directory, model_type="ernie4_5_vl_moe")


def save_step3p7(directory: Path) -> None:
    """Images only: windows by the shape of the image, and a view of the whole behind them."""
    tokens = ("<im_patch>", "<im_start>", "<im_end>", "<patch_start>", "<patch_end>", "<patch_newline>")
    processor = transformers.Step3p7Processor(
        image_processor=transformers.Step3p7ImageProcessor(
            size={"height": 112, "width": 112}, patch_size=56, max_image_size=224
        ),
        tokenizer=byte_tokenizer(*tokens),
        chat_template=chat_template({"image": "<im_patch>"}),
    )
    save(processor, directory, model_type="step3p7")


def save_nemotron_h_omni(directory: Path) -> None:
    """Images in patches within a budget, one video frame by frame behind its times, and sounds."""
    tokens = {"image_token": "<image>", "video_token": "<video>", "audio_token": "<so_embedding>"}
    processor = transformers.NemotronH_Omni_Reasoning_V3Processor(
        image_processor=transformers.NemotronH_Omni_Reasoning_V3ImageProcessor(min_num_patches=16, max_num_patches=64),
        video_processor=transformers.NemotronH_Omni_Reasoning_V3VideoProcessor(
            norm_mean=[0.5] * 3, norm_std=[0.25] * 3, video_target_num_patches=16
        ),
        tokenizer=byte_tokenizer(*tokens.values(), "<img>", "</img>", "<so_start>", "<so_end>", named=tokens),
        feature_extractor=transformers.ParakeetFeatureExtractor(feature_size=8),
        chat_template=chat_template({kind: tokens[f"{kind}_token"] for kind in ("image", "video", "audio")}),
    )
    save(processor, directory, model_type="nemotron_h_omni")


OMNI_MAKERS: Mapping[str, Callable[[Path], None]] = {
    "qwen3_omni": save_qwen3_omni,
    "gemma3n": save_gemma3n,
    "gemma4": save_gemma4,
    "phi4_multimodal": save_phi4_multimodal,
    "video_llama_3": save_video_llama_3,
    "kimi_k25": save_kimi_k25,
    "minimax_m3_vl": save_minimax_m3_vl,
    "ernie4_5_vl": save_ernie4_5_vl,
    "step3p7": save_step3p7,
    "nemotron_h_omni": save_nemotron_h_omni,
}

ALL_MAKERS: Mapping[str, Callable[[Path], None]] = {**MAKERS, **OMNI_MAKERS}
