"""Files that the settings name, and the model."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from preprocessor.cli.doctor.finding import Finding, failed, ok
from preprocessor.config import ServeSettings, SettingError
from preprocessor.config.credentials import read_key
from preprocessor.config.declare import groups_of, options_of
from preprocessor.errors import PreprocessorError
from preprocessor.models.loaded import LoadedModel, ModelPath
from preprocessor.models.names import builtin_names
from preprocessor.models.registry import load_model


def check_files(settings: ServeSettings) -> Finding:
    """Whether every file that a setting names can be read, and each key belongs to its certificate."""
    paths = {
        option.flag: str(value)
        for option in options_of(type(settings))
        if option.metavar == "FILE" and (value := option.value_in(settings))
    }
    troubles = [f"{flag} {path}: {trouble}" for flag, path in paths.items() if (trouble := _unreadable(path))]
    troubles = troubles or list(_unfitting_keys(settings))
    if troubles:
        fix = "mount the files and let the service's user read them; PEM, a key that is not encrypted and fits its certificate"
        return failed("files", "; ".join(troubles), fix)
    return ok("files", f"readable: {', '.join(paths)}" if paths else "no setting names one")


def check_model(
    name: str, video_markers: str = "auto", preparation: str = "auto"
) -> tuple[Finding, LoadedModel | None]:
    """Whether the model loads; and the model, for those who compare it.

    Args:
        video_markers, preparation: As `load_model`'s.
    """
    try:
        model = load_model(name, video_markers, preparation)
    except PreprocessorError as error:
        fix = f"--model with a built-in ({', '.join(builtin_names())}), a local directory, or a hub id that can be fetched"
        if missing := error.metadata.get("missing_libraries"):
            fix = f"preprocessor constraints > tested.txt; pip install --constraint tested.txt {missing}"
        if extra := error.metadata.get("missing_extra"):
            fix = f"pip install 'vlm-preprocessor[{extra}]'"
        return failed("model", str(error), fix), None
    description = model.describe()
    path = f"{description.path.value} path, family {description.family}"
    if description.path is ModelPath.GENERIC:
        path += f", takes {' and '.join(modality.name.lower() for modality in sorted(model.modalities))}"
    markers = "" if description.video_markers is None else f"; video markers: {description.video_markers}"
    return ok("model", f"{name}: {path}; fingerprint {model.fingerprint[:16]}{markers}"), model


def _unreadable(path: str) -> str:
    try:
        with Path(path).open("rb") as file:
            file.read(1)
    except OSError as error:
        return f"{error.strerror}"
    return ""


def _unfitting_keys(settings: ServeSettings) -> Iterator[str]:
    """Troubles of each certificate and key that one group of settings has."""
    for group in groups_of(type(settings)):
        holder = getattr(settings, group.name)
        certificate, key = getattr(holder, "tls_certificate", ""), getattr(holder, "tls_key", "")
        if certificate and key:
            try:
                read_key("", key, certificate)
            except SettingError as error:
                yield f"{key}: needs {error.accepted}"
