"""`preprocessor inspect` and the file of `prepare --output`, in this process."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.numpy import save_file

from preprocessor.__main__ import main
from preprocessor.cli import saved
from preprocessor.client.answers import PrepareResult
from preprocessor.config import SettingError
from preprocessor.prompt_page.build import build_page
from preprocessor.prompt_page.facts import Facts, PreparedPrompt
from tests.unit.inspect.prompts import clip_and_photo, subject, write_media


@pytest.fixture(scope="module")
def prompt(folder: Path) -> Path:
    path = folder / "prompt.safetensors"
    saved.save(clip_and_photo(folder).prepared, path)
    return path


def test_the_page_is_written_and_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    clip, _ = write_media(folder)
    page = folder / "page.html"
    assert main(["inspect", "--video", str(clip), "--fps", "1", "--output", str(page)]) == 0
    assert page.read_text().startswith("<!DOCTYPE html>")
    assert capsys.readouterr().out.startswith(f"{page}: ")


def test_a_saved_prompt_s_frames_are_saved_as_pictures(
    prompt: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    frames, page = folder / "some" / "frames", folder / "saved.html"
    assert main(["inspect", str(prompt), "--output", str(page), "--save-frames", str(frames), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["page"], told["saved_frame_count"], told["page_bytes"]) == (str(page), 7, page.stat().st_size)
    names = sorted(path.name for path in frames.iterdir())
    assert names == [
        *(f"00-clip.mp4-{place:04}-frame{number:06}.png" for place, number in enumerate((0, 30, 60, 89, 119))),
        "00-clip.mp4-0005-padding.png",
        "01-photo.png.png",
    ]
    shown = build_page(clip_and_photo(folder), most_frames=64)
    for item, stem in zip(shown.items, ("00", "01"), strict=True):
        files = [Image.open(frames / name) for name in names if name.startswith(stem)]
        for file, frame in zip(files, item.frames, strict=True):
            np.testing.assert_array_equal(np.asarray(file), frame.pixels)


def test_names_of_media_cannot_leave_the_folder(folder: Path) -> None:
    prepared = clip_and_photo(folder).prepared
    header = type(prepared.result.header)()
    header.CopyFrom(prepared.result.header)
    header.items[1].key = "../../\x00/" + "x" * 300
    path, frames = folder / "named.safetensors", folder / "named"
    result = PrepareResult(header, prepared.result.report, prepared.result.tensors)
    saved.save(PreparedPrompt(result, prepared.spec, prepared.model, None), path)
    assert main(["inspect", str(path), "--output", str(folder / "named.html"), "--save-frames", str(frames)]) == 0
    assert [one.name for one in frames.iterdir() if one.name.startswith("01")] == ["01-.._..___" + "x" * 56 + ".png"]


def test_the_file_holds_no_file_url_or_salt(folder: Path) -> None:
    prepared = clip_and_photo(folder).prepared
    spec = type(prepared.spec)()
    spec.CopyFrom(prepared.spec)
    spec.cache_salt = "secret-salt"
    spec.media[0].url = "https://host/clip?signature=secret-url"
    spec.media[1].inline_data = b"secret-data" * 10
    path = folder / "secret.safetensors"
    saved.save(PreparedPrompt(prepared.result, spec, prepared.model, prepared.facts), path)
    assert b"secret" not in path.read_bytes() and b"c2VjcmV0" not in path.read_bytes()
    again = saved.load(path)
    assert [medium.key for medium in again.spec.media] == ["clip.mp4", "photo.png"]
    assert again.facts == prepared.facts and again.model == prepared.model
    assert again.result.report == prepared.result.report


@pytest.mark.parametrize(
    ("metadata", "told"),
    [
        (None, "its metadata lack 'preprocessor.header'"),
        ({"preprocessor.header": "{"}, "that `preprocessor prepare --output` wrote"),
        (
            {"preprocessor.header": "{}", "preprocessor.report": '{"stages": 3}'},
            "`preprocessor prepare --output` wrote",
        ),
    ],
    ids=["none", "broken", "of another kind"],
)
def test_another_safetensors_file_is_refused(tmp_path: Path, metadata: dict[str, str] | None, told: str) -> None:
    path = tmp_path / "other.safetensors"
    save_file({"weight": np.zeros(3, np.float32)}, path, metadata)
    with pytest.raises(SettingError, match=told):
        saved.load(path)


def test_what_is_no_safetensors_file_is_refused(
    folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    clip, _ = write_media(folder)
    page = ("--output", str(tmp_path / "page.html"))
    assert main(["inspect", str(clip), *page]) == 2
    assert "FILE: " in capsys.readouterr().err
    assert main(["inspect", str(tmp_path / "nowhere.safetensors"), *page]) == 1
    assert "nowhere.safetensors: No such file" in capsys.readouterr().err
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize(
    "text",
    [
        "[]",
        "{}",
        '{"decoded_frame_count": -1, "runs": [], "planning_seconds": 1, "pixel_seconds": 1, "request_seconds": 1}',
    ]
    + [
        f'{{"decoded_frame_count": 1, "runs": {runs}, "planning_seconds": 1, "pixel_seconds": 1, "request_seconds": {seconds}}}'
        for runs, seconds in (
            ("[[1]]", "1"),
            ("[[[1, true]]]", "1"),
            ("[[[1, 2, 3]]]", "1"),
            ("[null]", '"1"'),
            ("3", "1"),
        )
    ],
)
def test_facts_of_another_form_are_refused(text: str) -> None:
    with pytest.raises((ValueError, TypeError)):
        Facts.from_json(text)


def test_a_saved_prompt_excludes_media_of_the_command_line(prompt: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(prompt), "--text", "Hi", "--output", str(prompt.with_suffix(".html"))]) == 2
    assert "not both" in capsys.readouterr().err


def test_frames_that_are_not_known_cannot_be_saved(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], folder: Path
) -> None:
    _, picture = write_media(folder)
    prepared = subject("--image", picture).prepared
    tensors = {name: one for name, one in prepared.result.tensors.items() if name != "pixel_patches"}
    path = tmp_path / "bare.safetensors"
    result = PrepareResult(prepared.result.header, prepared.result.report, tensors)
    saved.save(PreparedPrompt(result, prepared.spec, prepared.model, None), path)
    asked = ["inspect", str(path), "--output", str(tmp_path / "page.html")]
    assert main([*asked, "--save-frames", str(tmp_path / "frames")]) == 2
    assert "a prompt whose frames are known (the result has no pixels" in capsys.readouterr().err
    assert main(asked) == 0
    assert "Only a run in this process tells what was decoded" in (tmp_path / "page.html").read_text()


def test_a_file_s_model_name_loads_nothing_but_a_built_in(folder: Path, prompt: Path, tmp_path: Path) -> None:
    prepared = saved.load(prompt)
    prepared.result.header.model = str(tmp_path)
    path = tmp_path / "other.safetensors"
    saved.save(prepared, path)
    unnamed = subject(path)
    assert unnamed.texts is None and any("--tokenizer" in note for note in unnamed.notes)
    assert [token.text for token in build_page(unnamed, 1).tokens][:2] == ["151644", "872"]
    named = subject(path, "--tokenizer", "qwen3-vl")
    assert named.texts is not None and not any("fingerprint" in note for note in named.notes)
    other = subject(path, "--tokenizer", "qwen2-vl")
    assert any("whose fingerprint is not that of the prompt's model" in note for note in other.notes)
