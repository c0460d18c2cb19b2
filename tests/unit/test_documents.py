"""What the documents name exists: links, anchors, files, tests, `make` targets, commands with their options, Python names."""

from __future__ import annotations

import argparse
import ast
import importlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from preprocessor.cli.options import build_parser
from preprocessor.cli.sources import CONFIG_VARIABLE, OPTIONS
from tests.markdown import ROOT, Document, documents, tracked

if not tracked():
    pytest.skip("not a checkout: which files belong to the project is not known", allow_module_level=True)

# The changelog also names what is gone.
CURRENT = [document for document in documents() if document.path.name != "CHANGELOG.md"]
TOP_FOLDERS = ("preprocessor", "engine_client", "deploy", "tests", "protos")
FOLDERS = "|".join(TOP_FOLDERS)
MAP = (ROOT / "preprocessor/README.md").read_text()
ROOMS = ("cli/", "protos/")  # which the map names beside other rooms
# Made by a run, by another language's compiler, or part of protobuf.
MADE = ("tests/bench/out", ".pb.go", "google/protobuf/")
# Folders of TensorRT-LLM's own tree, which its model's page cites.
CITED = ("_torch/", "llmapi/", "inputs/", "executor/", "triton_backend/")
# Options of other programs: Docker, Triton, Prometheus, gRPC's tools.
FOREIGN_OPTIONS = {"--shm-size", "--tmpfs", "--enable-feature"}
FOREIGN_PREFIXES = ("--grpc-", "--ipc", "--go", "--sb")

each_document = pytest.mark.parametrize("document", CURRENT, ids=lambda document: str(document.path.relative_to(ROOT)))


@pytest.mark.parametrize("document", documents(), ids=lambda document: str(document.path.relative_to(ROOT)))
def test_every_link_leads_to_a_file_and_a_heading(document: Document) -> None:
    broken = []
    for link in document.links:
        name, _, anchor = link.partition("#")
        target = (document.path.parent / name).resolve() if name else document.path
        is_there = target.is_relative_to(ROOT) and str(target.relative_to(ROOT)) in tracked()
        if not is_there or (anchor and anchor not in Document(target).anchors):
            broken.append(link)
    assert broken == []


@each_document
def test_every_named_file_exists(document: Document) -> None:
    assert [name for name in named_files(document) if not exists(name, document)] == []


@each_document
def test_every_named_test_exists(document: Document) -> None:
    spans = [span.split("::") for span in document.spans if re.fullmatch(r"([\w./]+\.py::)?test_\w+", span)]
    assert {span[-1] for span in spans} <= names_of_tests()
    for path, name in (span for span in spans if len(span) == 2):
        assert name in functions(ROOT / path)


@each_document
def test_every_make_target_exists(document: Document) -> None:
    targets = set(re.findall(r"^([a-z-]+):.* ## ", (ROOT / "Makefile").read_text(), re.MULTILINE))
    named = {match[1] for command in document.commands if (match := re.match(r"make ([a-z][a-z-]*)\b", command))}
    assert named - targets == set()


@each_document
def test_every_command_and_its_options_exist(document: Document) -> None:
    for command in document.commands:
        match = re.search(r"(?:^|[ /]|python -m )preprocessor ([a-z]+)\b(.*)", command)
        if match is None or "docker build" in command:
            continue
        assert match[1] in commands(), command
        options = [word.partition("=")[0] for word in match[2].split() if word.startswith("--")]
        assert set(options) <= commands()[match[1]], command


@each_document
def test_every_option_in_backticks_is_one_of_this_project(document: Document) -> None:
    named = {match[0] for span in document.spans if (match := re.match(r"--[a-z][a-z-]+", span))}
    named = {name for name in named if not name.startswith(FOREIGN_PREFIXES)}
    assert named - FOREIGN_OPTIONS - known_options() == set()


@each_document
def test_every_variable_is_one_of_a_setting(document: Document) -> None:
    known = {option.variable for option in OPTIONS} | {CONFIG_VARIABLE}
    assert set(re.findall(r"\bPREPROCESSOR_[A-Z_]+\b(?<!_)", document.text)) - known == set()


@each_document
def test_every_python_block_uses_what_exists(document: Document) -> None:
    for block in document.python_blocks:
        for node in ast.walk(ast.parse(block)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in TOP_FOLDERS:
                module = importlib.import_module(node.module or "")
                assert [alias.name for alias in node.names if not has(module, alias.name)] == []


def test_the_readme_is_one_page() -> None:
    assert len((ROOT / "README.md").read_text().splitlines()) <= 150


def test_the_glossary_is_short_and_sorted_and_names_classes_that_exist() -> None:
    section = MAP.split("\n## Glossary\n", 1)[1].split("\n## ", 1)[0]
    words = [line.split("|")[1].strip() for line in section.splitlines() if line.startswith("|")][2:]
    assert 20 < len(words) <= 40
    assert words == sorted(set(words))
    sources = "\n".join(path.read_text() for folder in TOP_FOLDERS[:2] for path in (ROOT / folder).rglob("*.py"))
    classes = set(re.findall(r"`([A-Z][a-z]\w+)`", section))
    assert classes - set(re.findall(r"^class (\w+)", sources, re.MULTILINE)) == set()


def test_the_map_names_modules_that_exist() -> None:
    missing = []
    for row in (line for line in MAP.split("\n## ", 1)[0].splitlines() if line.startswith("| `")):
        _, room, holds, _ = row.split("|")
        folders = re.findall(r"`([\w/]+/)`", room)
        names = re.findall(r"`([a-z_]+/?)`", holds) if folders else []
        missing += [name for name in names if name not in ROOMS and not any(lies_below(name, one) for one in folders)]
    assert missing == []


def lies_below(name: str, folder: str) -> bool:
    place = ROOT / "preprocessor" / folder
    return (place / f"{name}.py").is_file() or (place / name).is_dir()


def named_files(document: Document) -> Iterator[str]:
    """Paths in backticks; of commands, the modules that they run and the words that begin with a folder of this project."""
    for span in document.spans:
        if re.fullmatch(r"[\w.-]+(/[\w.-]+)*(/|\.(py|md|sh|toml|proto|pbtxt|yaml|svg|jinja))(::\w+)?", span):
            yield span.partition("::")[0]
    for command in document.commands:
        yield from re.findall(rf"(?<![\w./-])(?:{FOLDERS})/[\w./-]+", command)
        for module in re.findall(rf"python -m ((?:{FOLDERS})\b[\w.]*)", command):
            yield module.replace(".", "/")


def exists(name: str, document: Document) -> bool:
    """Whether it is a path below the root, below the document's folder, or below any folder of either."""
    if any(part in name for part in MADE) or name.startswith(CITED) or re.search(r"\b[A-Z]+\b(?!\.md)", name):
        return True  # a placeholder such as NAME.py is no file
    wanted, below = name.rstrip("/."), f"{document.path.parent.relative_to(ROOT)}/".removeprefix("./")
    if {wanted, f"{wanted}.py", below + wanted} & tracked():
        return True
    return any(one.endswith(f"/{wanted}") and one.startswith((below, "preprocessor/", "tests/")) for one in tracked())


def has(module: object, name: str) -> bool:
    if hasattr(module, name):
        return True
    try:
        importlib.import_module(f"{getattr(module, '__name__', '')}.{name}")
    except ImportError:
        return False
    return True


@cache
def functions(path: Path) -> set[str]:
    nodes = ast.walk(ast.parse(path.read_text()))
    return {node.name for node in nodes if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)}


@cache
def names_of_tests() -> set[str]:
    return {name for path in (ROOT / "tests").rglob("test_*.py") for name in functions(path)}


@cache
def commands() -> dict[str, set[str]]:
    """Command → its options, as the parser has them."""
    (action,) = [one for one in build_parser()._actions if isinstance(one, argparse._SubParsersAction)]
    return {
        name: {option for one in parser._actions for option in one.option_strings}
        for name, parser in action.choices.items()
    }


@cache
def known_options() -> set[str]:
    """Options of the command line, and those that tools of this project add."""
    texts = [
        (ROOT / name).read_text()
        for name in tracked()
        if name.endswith(".py") and name.startswith(("tests/", "deploy/"))
    ]
    of_tools = {option for text in texts for option in re.findall(r"\"(--[a-z][a-z-]+)\"", text)}
    return of_tools | {option for options in commands().values() for option in options}
