"""Flags, environment and file: who goes first, what is refused, and by which name."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest

from preprocessor.cli import reference
from preprocessor.cli.options import build_parser
from preprocessor.cli.sources import _SERVICE_LINK, OPTIONS, Loaded, Source, load_settings
from preprocessor.config import ServeSettings
from preprocessor.config.declare import Option, SettingError
from preprocessor.config.values import parse_bytes, write_text, write_toml

ENGINE = {"PREPROCESSOR_ENGINE": "triton:8001"}
# What is accepted of settings that do not take any text or number.
ACCEPTED: dict[str, Any] = {
    **dict.fromkeys(("--address", "--http-address", "--openai-address", "--engine"), "127.0.0.1:4321"),
    "--trace-endpoint": "http://127.0.0.1:4321",
    "--trace-sample-ratio": 0.5,
    "--background": "#ffffff",
    "--fetch-ports": "8080",
    "--fetch-networks": "10.0.0.0/8",
    "--fetch-roots": "/srv",
    "--fetch-stores": "s3://bucket/",
}
# Settings that are refused without another one.
BESIDE = {
    "--tls-certificate": {"PREPROCESSOR_TLS_KEY": "k"},
    "--tls-key": {"PREPROCESSOR_TLS_CERTIFICATE": "c"},
    "--tls-client-root": {"PREPROCESSOR_TLS_CERTIFICATE": "c", "PREPROCESSOR_TLS_KEY": "k"},
    "--engine-tls-certificate": {"PREPROCESSOR_ENGINE_TLS_KEY": "key"},
    "--engine-tls-key": {"PREPROCESSOR_ENGINE_TLS_CERTIFICATE": "certificate"},
    "--engine-tls-server-name": {"PREPROCESSOR_ENGINE_TLS_ROOT": "root"},
    "--trace-sample-ratio": {"PREPROCESSOR_TRACE_ENDPOINT": "http://127.0.0.1:4321"},
}


def load(
    *arguments: str, file: Path | None = None, environment: dict[str, str] | None = None, command: str = "serve"
) -> Loaded:
    named = ["--config", str(file)] if file else []
    return load_settings(build_parser().parse_args([command, *named, *arguments]), environment or {})


def refusal(*arguments: str, file: Path | None = None, environment: dict[str, str] | None = None) -> str:
    with pytest.raises(SettingError) as refused:
        load(*arguments, file=file, environment=environment)
    return str(refused.value)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "preprocessor.toml"


def other_value(option: Option) -> Any:
    """A value that is accepted and not the default."""
    if option.flag in ACCEPTED:
        return ACCEPTED[option.flag]
    if option.choices:
        return next(choice for choice in option.choices if choice != option.default)
    if option.kind is bool:
        return not option.default
    if option.kind is parse_bytes:
        return 96 << 20
    if option.kind is float and 0 < option.default < 1:  # a part of something
        return option.default / 2
    if option.kind in (int, float):
        return option.default + 1
    return ("other", "another") if option.is_list else "other"


def in_toml(option: Option, value: Any) -> str:
    name = option.key.rpartition(".")[2]
    table = f"[{option.group.name}]\n" if option.group else ""
    return f"{table}{name} = {write_toml(option, value)}\n"


@pytest.mark.parametrize("option", OPTIONS, ids=lambda option: option.key)
def test_every_setting_can_be_given_by_flag_by_variable_and_by_file(option: Option, file: Path) -> None:
    value = other_value(option)
    text = write_text(option, value) if not option.is_secret else str(value)
    needed = (ENGINE if option.key.startswith("engine.") else {}) | BESIDE.get(option.flag, {})
    needed.pop(option.variable, None)
    flag = [option.flag] if option.kind is bool else [option.flag, text]
    file.write_text(in_toml(option, value))
    by_flag = load(*flag, environment=needed)
    by_variable = load(environment=needed | {option.variable: text})
    by_file = load(environment=needed, file=file)
    for loaded, source in ((by_flag, Source.FLAG), (by_variable, Source.ENVIRONMENT), (by_file, Source.FILE)):
        assert option.value_in(loaded.settings) == value
        assert loaded.given.source_of(option) is source
    assert by_flag.settings == by_variable.settings == by_file.settings
    assert value != option.default


@pytest.mark.parametrize("attribute", ["flag", "variable", "key"])
def test_no_two_settings_share_a_name(attribute: str) -> None:
    names = [getattr(option, attribute) for option in OPTIONS]
    assert len(set(names)) == len(names)


def test_a_flag_goes_before_a_variable_before_the_file_before_the_default(file: Path) -> None:
    file.write_text("max_queued = 11\n")
    variable = {"PREPROCESSOR_MAX_QUEUED": "12"}

    def queued(**sources: Any) -> int:
        return load(*sources.pop("flags", ()), **sources).settings.max_queued_count

    assert queued() == 256
    assert queued(file=file) == 11
    assert queued(file=file, environment=variable) == 12
    assert queued(file=file, environment=variable, flags=("--max-queued", "13")) == 13


def test_several_engines_are_listed_in_each_source_as_is_usual_there(file: Path) -> None:
    file.write_text("[engine]\naddress = ['a:1', 'b:2']\n")
    for loaded in (
        load("--engine", "a:1", "--engine", "b:2"),
        load("--engine", "a:1,b:2"),
        load(environment={"PREPROCESSOR_ENGINE": "a:1,b:2"}),
        load(file=file),
    ):
        assert loaded.settings.engine.address == "a:1,b:2"


def test_a_flag_can_take_back_what_a_variable_turned_on() -> None:
    variable = {"PREPROCESSOR_IN_PROCESS": "yes"}
    assert load(environment=variable).settings.is_in_process
    assert not load("--no-in-process", environment=variable).settings.is_in_process


def test_the_file_may_be_named_by_a_variable_and_a_flag_goes_before_it(file: Path, tmp_path: Path) -> None:
    file.write_text("workers = 3\n")
    other = tmp_path / "other.toml"
    other.write_text("workers = 4\n")
    environment = {"PREPROCESSOR_CONFIG": str(file)}
    assert load(environment=environment).settings.worker_count == 3
    assert load(environment=environment, file=other).settings.worker_count == 4


def test_doctor_takes_what_serve_takes(file: Path) -> None:
    file.write_text("[limits]\nmax_media_count = 5\n")
    assert load("--workers", "2", file=file).settings == load("--workers", "2", file=file, command="doctor").settings


# -- what is refused, and by which name --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ("wokers = 3", "wokers in FILE: there is no such setting; give workers"),
        ("[engine]\nadress = 'a:1'", "engine.adress in FILE: there is no such setting; give engine.address"),
        (
            "[limits]\nmax-media-count = 3",
            "limits.max-media-count in FILE: there is no such setting; give limits.max_me",
        ),
        ("[engine.tls]\nroot = 'a'", "engine.tls in FILE: there is no such setting; give engine.tls_"),
        ("zzz = 1", "zzz in FILE: there is no such setting; give one that `preprocessor serve --show-config` lists"),
        ("engine = 'a:1'", "engine in FILE: 'a:1' is not accepted; give a table: [engine]"),
        ("workers = 'four'", "workers in FILE: 'four' is not accepted; give a whole number"),
        ("workers = 0", "workers in FILE: 0 is not accepted; give a whole number of at least 1"),
        ("drain_seconds = -1", "drain_seconds in FILE: -1.0 is not accepted; give a number of seconds above 0"),
        ("[limits]\nmax_media_bytes = '1 ton'", "limits.max_media_bytes in FILE: '1 ton' is not accepted; give a size"),
        (
            "[engine]\ntransport = 'pigeon'",
            "engine.transport in FILE: 'pigeon' is not accepted; give auto, grpc or sha",
        ),
    ],
)
def test_what_is_wrong_in_a_file_is_named_as_the_file_does(file: Path, content: str, expected: str) -> None:
    file.write_text(content)
    assert refusal(file=file).startswith(expected.replace("FILE", str(file)))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("PREPROCESSOR_WORKRES", "s3cret", "PREPROCESSOR_WORKRES: there is no such setting; give PREPROCESSOR_WORKERS"),
        ("PREPROCESSOR_WORKERS", "two", "PREPROCESSOR_WORKERS: 'two' is not accepted; give a whole number"),
        ("PREPROCESSOR_WORKERS", "", "PREPROCESSOR_WORKERS: '' is not accepted; give a whole number"),
        ("PREPROCESSOR_WORKERS", "0", "PREPROCESSOR_WORKERS: 0 is not accepted; give a whole number of at least 1"),
        ("PREPROCESSOR_ENGINE", "host", "PREPROCESSOR_ENGINE: 'host' is not accepted; give host:port"),
        ("PREPROCESSOR_LOG_LEVEL", "loud", "PREPROCESSOR_LOG_LEVEL: 'loud' is not accepted; give debug, info, warning"),
        ("PREPROCESSOR_CONFIG", "/nowhere", "PREPROCESSOR_CONFIG: '/nowhere' is not accepted; give a file that can be"),
    ],
)
def test_what_is_wrong_in_the_environment_is_named_by_its_variable(name: str, text: str, expected: str) -> None:
    message = refusal(environment={name: text})
    assert message.startswith(expected)
    assert "s3cret" not in message


def test_what_is_wrong_on_the_command_line_is_named_by_its_flag() -> None:
    assert refusal("--max-pixel-bytes", "1 ton").startswith("--max-pixel-bytes: '1 ton' is not accepted; give a size")


def test_a_wrong_value_is_refused_though_a_flag_goes_before_it(file: Path) -> None:
    file.write_text("workers = 'four'")
    assert refusal("--workers", "2", file=file).startswith(f"workers in {file}: 'four'")


def test_a_contradiction_is_told_in_the_words_of_whoever_gave_it(file: Path) -> None:
    file.write_text("[engine]\ntls_certificate = 'mine.pem'")
    assert refusal(file=file, environment=ENGINE) == (
        f"engine.tls_certificate in {file}: 'mine.pem' is not accepted; give engine.tls_key in {file} with it, or neither"
    )
    environment = ENGINE | {"PREPROCESSOR_ENGINE_TLS_KEY": "mine.key"}
    assert refusal(environment=environment) == (
        "PREPROCESSOR_ENGINE_TLS_KEY: 'mine.key' is not accepted; "
        "give PREPROCESSOR_ENGINE_TLS_CERTIFICATE with it, or neither"
    )
    assert refusal("--http-address", "127.0.0.1:80", environment={"PREPROCESSOR_ADDRESS": "127.0.0.1:80"}) == (
        "--http-address: '127.0.0.1:80' is not accepted; give another port than PREPROCESSOR_ADDRESS has"
    )


def test_a_setting_of_the_engine_without_an_engine_is_refused() -> None:
    assert refusal("--engine-transport", "shared-memory") == (
        "--engine-transport: 'shared-memory' is not accepted; give --engine with it: without that it does nothing"
    )
    assert load("--engine-transport", "auto").settings == load().settings  # the default says nothing


@pytest.mark.parametrize(
    ("content", "expected"), [(b"workers 3", "a TOML file (Exp"), (b"\xff", "a TOML file ('utf-8'")]
)
def test_a_file_that_is_no_toml_is_refused_by_the_flag_that_named_it(file: Path, content: bytes, expected: str) -> None:
    file.write_bytes(content)
    assert refusal(file=file).startswith(f"--config: {str(file)!r} is not accepted; give {expected}")


# As kubelet sets them for Services called preprocessor and preprocessor-metrics.
LINKS = {
    "PREPROCESSOR_SERVICE_HOST": "10.0.0.11",
    "PREPROCESSOR_SERVICE_PORT": "50051",
    "PREPROCESSOR_SERVICE_PORT_GRPC": "50051",
    "PREPROCESSOR_PORT": "tcp://10.0.0.11:50051",
    "PREPROCESSOR_PORT_50051_TCP": "tcp://10.0.0.11:50051",
    "PREPROCESSOR_PORT_50051_TCP_PROTO": "tcp",
    "PREPROCESSOR_PORT_50051_TCP_PORT": "50051",
    "PREPROCESSOR_PORT_50051_TCP_ADDR": "10.0.0.11",
    "PREPROCESSOR_METRICS_SERVICE_HOST": "10.0.0.12",
    "PREPROCESSOR_METRICS_PORT": "tcp://10.0.0.12:8080",
    "PREPROCESSOR_METRICS_PORT_8080_TCP": "tcp://10.0.0.12:8080",
}


def test_variables_that_kubernetes_adds_for_a_service_of_our_name_are_let_through() -> None:
    assert load(environment=LINKS).settings == ServeSettings()


def test_no_setting_has_the_name_of_a_variable_that_kubernetes_adds() -> None:
    assert not [option.variable for option in OPTIONS if _SERVICE_LINK.fullmatch(option.variable)]


def test_an_abbreviated_flag_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as left:
        load("--worker", "3")
    assert left.value.code == 2
    assert "--worker" in capsys.readouterr().err


# -- what is shown -----------------------------------------------------------------------------------------------------


def test_what_is_shown_says_where_each_setting_came_from(file: Path) -> None:
    file.write_text("drain_seconds = 5\n[engine]\naddress = 'triton:8001'\n")
    shown = reference.effective(load("--workers", "3", file=file, environment={"PREPROCESSOR_MODEL": "qwen2-vl"}))
    lines = [line.split("  # ") for line in shown.splitlines() if "#" in line]
    sources = {line.strip(): source for line, source in lines}
    assert sources["workers = 3"] == "--workers"
    assert sources['model = "qwen2-vl"'] == "PREPROCESSOR_MODEL"
    assert sources["drain_seconds = 5"] == sources['address = "triton:8001"'] == str(file)
    assert sources["max_queued = 256"] == sources['max_media_bytes = "512MiB"'] == "default"
    assert len(lines) == len(OPTIONS)


def test_what_is_shown_is_a_file_that_gives_the_same_settings(file: Path) -> None:
    loaded = load("--workers", "3", "--engine", "a:1,b:2", "--engine-model", 'a "b"', "--max-media-bytes", "3MB")
    file.write_text(reference.effective(loaded))
    assert load(file=file).settings == loaded.settings


def test_a_table_that_is_not_current_is_found_and_renewed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    page = tmp_path / "README.md"
    page.write_text(f"before\n{reference.replace_table(f'{reference._BEGIN}{reference._END}')}\nafter\n")

    def run(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["reference", *arguments, str(page)])
        return reference.main()

    assert run("--check") == 0
    current = page.read_text()
    assert all(f"| `{option.flag}` | `{option.key}` |" in current for option in OPTIONS)
    page.write_text(current.replace("`--workers`", "`--hands`"))
    assert run("--check") == 1
    assert "not current; run make reference" in capsys.readouterr().err
    assert run() == 0
    assert page.read_text() == current


def test_a_page_without_a_place_for_the_table_is_refused() -> None:
    with pytest.raises(ValueError, match="once each"):
        reference.replace_table("# no place\n")
