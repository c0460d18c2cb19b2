"""The Dockerfiles: hadolint, and checks beyond it."""

from __future__ import annotations

import argparse
import ast
import re
import shlex
import shutil
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

from preprocessor.cli.sources import load_settings
from tests.deploy.dockerfile import instructions
from tests.deploy.tools import DEPLOY, REPOSITORY, tool
from tests.engine.tensorrt_llm_model import surface
from tests.waiting import PATIENCE_SECONDS

IMAGES = ("Dockerfile", "triton/Dockerfile", "triton/tensorrt_llm.Dockerfile")
images = pytest.mark.parametrize("path", IMAGES)


@images
def test_hadolint_reports_nothing(path: str) -> None:
    done = subprocess.run([tool("hadolint"), DEPLOY / path], capture_output=True, text=True, timeout=PATIENCE_SECONDS)
    assert done.returncode == 0, done.stdout


@images
def test_containers_run_as_the_user_that_pods_name(path: str) -> None:
    users = [text for keyword, text in instructions(path) if keyword == "USER"]
    assert users[-1] == "1000:1000"  # numbers: Kubernetes cannot tell of a name that it is not root's


@images
def test_copied_files_exist_and_are_in_the_build_context(path: str) -> None:
    rules = (REPOSITORY / ".dockerignore").read_text().splitlines()
    let_in = [rule[1:] for rule in rules if rule.startswith("!")]
    for keyword, text in instructions(path):
        if keyword == "COPY" and not text.startswith("--from"):
            for source in shlex.split(text)[:-1]:
                assert (REPOSITORY / source).exists(), source
                folders = (Path(source), *Path(source).parents)
                assert any(fnmatch(str(folder), rule) for folder in folders for rule in let_in), source


def test_models_find_in_the_image_what_they_import() -> None:
    """In the folder that Triton puts on a Python model's path: `deploy.triton.local_server` has it there too."""
    copied = dict(text.split() for word, text in instructions("triton/Dockerfile") if word == "COPY")
    assert copied == {
        "engine_client": "/opt/tritonserver/backends/python/engine_client",
        "deploy/triton/models": "/models",
    }
    models = list((REPOSITORY / "deploy/triton/models").rglob("*"))
    assert not any(path.is_symlink() for path in models)
    imported = {
        str(node.module)
        for path in models
        if path.suffix == ".py"
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("engine_client")
    }
    assert imported
    assert all(name.startswith(("engine_client.contract.", "engine_client.triton.backend.")) for name in imported)


def test_the_image_of_tensorrt_llm_has_a_release_that_its_model_knows() -> None:
    read = dict(
        text.split("=", 1)
        for word, text in instructions("triton/tensorrt_llm.Dockerfile")
        if word == "ARG" and "=" in text
    )
    assert read["TENSORRT_LLM"] in surface.KNOWN_VERSIONS


def test_the_image_of_tensorrt_llm_declares_the_prompt_of_its_transformers(tmp_path: Path) -> None:
    """With what is copied into it, at the places where it is copied to."""
    copied = dict(text.split() for word, text in instructions("triton/tensorrt_llm.Dockerfile") if word == "COPY")
    for source, target in copied.items():
        shutil.copytree(REPOSITORY / source, tmp_path / target.lstrip("/"))
    (command,) = [text for word, text in instructions("triton/tensorrt_llm.Dockerfile") if "video_markers" in text]
    setting, program, *arguments = (part.replace("/opt", f"{tmp_path}/opt") for part in shlex.split(command))
    arguments[-1] = f"{tmp_path}{arguments[-1]}"
    assert program == "python3"
    environment = dict([setting.split("=", 1)])
    done = subprocess.run([sys.executable, *arguments], env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert done.stdout == "fingerprint.video_markers keep\n", done.stderr
    declared = Path(arguments[-1]).read_text()
    assert 'key: "fingerprint.video_markers"       value: { string_value: "keep" }' in declared


@pytest.mark.parametrize("secret", [".git", ".env", ".venv", ".triton", "deploy/kustomize", "tests"])
def test_other_files_are_not_in_the_build_context(secret: str) -> None:
    rules = (REPOSITORY / ".dockerignore").read_text().splitlines()
    assert "*" in rules
    assert not any(fnmatch(secret, rule[1:]) for rule in rules if rule.startswith("!"))


def test_the_last_stage_compiles_nothing_and_installs_what_was_tested() -> None:
    stages: list[list[tuple[str, str]]] = []
    for instruction in instructions("Dockerfile"):
        if instruction[0] == "FROM":
            stages.append([])
        if stages:
            stages[-1].append(instruction)
    assert len(stages) == 3  # wheels, which is empty here, and these
    build, final = (" ".join(f"{keyword} {text}" for keyword, text in stage) for stage in stages[1:])
    assert "--constraint constraints.txt" in build
    assert "--only-binary :all:" in build
    assert "pip" not in final
    assert not any(word in final for word in ("gcc", "build-essential", "-dev ", "g++"))
    assert "no native kernel" in build  # what the compiler of that stage is for


def test_malloc_is_set_as_was_measured() -> None:
    text = (DEPLOY / "triton/README.md").read_text().replace("\n", " ")
    image = " ".join(text for keyword, text in instructions("Dockerfile") if keyword == "ENV")
    for name in ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_TOP_PAD_"):
        value = image.split(f"{name}=")[1].split()[0]
        assert f"{name}={value}" in text


def test_the_image_starts_without_a_setting_and_can_be_reached() -> None:
    image = " ".join(text for keyword, text in instructions("Dockerfile") if keyword == "ENV")
    settings = load_settings(
        argparse.Namespace(config=""), dict(re.findall(r"(PREPROCESSOR_\w+)=(\S+)", image))
    ).settings
    assert settings.address.startswith("0.0.0.0:")


def test_a_certificate_given_to_the_image_is_used() -> None:
    image = " ".join(text for keyword, text in instructions("Dockerfile") if keyword == "ENV")
    given = dict(re.findall(r"(PREPROCESSOR_\w+)=(\S+)", image))
    given |= {"PREPROCESSOR_TLS_CERTIFICATE": "tls.crt", "PREPROCESSOR_TLS_KEY": "tls.key"}
    assert load_settings(argparse.Namespace(config=""), given).settings.access.tls_certificate == "tls.crt"


def test_the_documented_lines_build_and_run_the_image() -> None:
    text = (DEPLOY / "README.md").read_text()
    assert "docker build -f deploy/Dockerfile -t preprocessor .\n" in text
    assert "docker run --rm -p 127.0.0.1:50051:50051 preprocessor\n" in text
