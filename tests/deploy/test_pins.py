"""What the image installs: every library with the digests of its wheels, in step with pyproject.toml and the constraints."""

from __future__ import annotations

import re
import tomllib
from importlib.metadata import PackageNotFoundError, requires

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from deploy import pins
from tests.deploy.dockerfile import instructions
from tests.deploy.tools import DEPLOY, REPOSITORY

ENVIRONMENT = {
    "python_version": pins.PYTHON,
    "python_full_version": f"{pins.PYTHON}.9",
    "sys_platform": "linux",
    "extra": "",
}
_PIN = re.compile(r"([a-z0-9.-]+)==(\S+)((?: \\\n    --hash=sha256:[0-9a-f]{64})+)\n")
AGAIN = "run make lock"


def pinned(name: str) -> dict[str, Version]:
    """Library → version of a file; each has a digest, and there is nothing else in the file."""
    head, _, text = (DEPLOY / name).read_text().partition("\n")
    assert head.startswith("#")
    found = list(_PIN.finditer(text))
    assert "".join(one[0] for one in found) == text
    assert len({one[1] for one in found}) == len(found)
    return {one[1]: Version(one[2]) for one in found}


def wanted() -> list[Requirement]:
    project = tomllib.loads((REPOSITORY / "pyproject.toml").read_text())["project"]
    return [Requirement(text) for text in (*project["dependencies"], *project["optional-dependencies"]["serve"])]


def test_every_library_of_the_service_is_pinned_within_its_bounds() -> None:
    versions = pinned("requirements.txt")
    for requirement in wanted():
        if requirement.name in pins.OF_ANOTHER_INDEX:
            assert requirement.name not in versions
        elif requirement.marker is None or requirement.marker.evaluate(ENVIRONMENT):
            assert versions[canonicalize_name(requirement.name)] in requirement.specifier, AGAIN


def test_the_versions_are_those_that_were_tested() -> None:
    lines = (DEPLOY / "constraints.txt").read_text().splitlines()
    tested = {one.name: one.specifier for one in map(Requirement, (line for line in lines if line[:1].isalpha()))}
    both = pinned("requirements.txt").keys() & tested.keys()
    assert len(both) > 10
    assert [name for name in both if pinned("requirements.txt")[name] not in tested[name]] == [], AGAIN
    assert tested.keys() >= set(pins.OF_ANOTHER_INDEX)


def test_what_they_need_is_pinned_too() -> None:
    """By what the libraries here say; nothing is resolved when the image is built."""
    versions = pinned("requirements.txt")
    missing = []
    for name in (*versions, *pins.OF_ANOTHER_INDEX):
        try:
            needed = [Requirement(text) for text in requires(name) or ()]
        except PackageNotFoundError:
            continue  # the environment here need not have what the newest resolution has
        for one in needed:
            if one.marker is None or one.marker.evaluate(ENVIRONMENT):
                known = canonicalize_name(one.name)
                if known not in versions and known not in pins.OF_ANOTHER_INDEX and not pins._FOR_CUDA.fullmatch(known):
                    missing.append(f"{name} needs {one}")
    assert missing == [], AGAIN


def test_the_image_installs_by_digest_and_resolves_nothing() -> None:
    build = [text for word, text in instructions("Dockerfile") if word == "RUN"]
    installs = [part for text in build for part in text.split("&&") if "pip install" in part]
    assert len(installs) == 4
    assert all("--no-deps" in part for part in installs)
    by_version = [part for part in installs if "--require-hashes" not in part]
    assert [part.split("constraints.txt")[-1].split("<")[0].split() for part in by_version[:1]] == [
        [*pins.OF_ANOTHER_INDEX]
    ]
    assert "--no-build-isolation ." in by_version[1]


def test_the_installer_is_that_which_made_the_list() -> None:
    [(name, version)] = pinned("installer.txt").items()
    assert f"{name}=={version}" == pins.INSTALLER
    assert pins.INSTALLER in (DEPLOY / "supply-tools.txt").read_text().split()


def test_the_last_stage_adds_one_folder_two_packages_and_one_user() -> None:
    final = instructions("Dockerfile")
    final = final[max(place for place, (word, _) in enumerate(final) if word == "FROM") :]
    assert [text for word, text in final if word == "COPY"] == ["--from=build /opt/preprocessor /opt/preprocessor"]
    assert not any(word in ("ADD", "VOLUME", "ONBUILD") for word, _ in final)
    run = " ".join(text for word, text in final if word == "RUN")
    packages = re.search(r"apt-get install -y --no-install-recommends ([^&]+)", run)
    assert packages is not None and packages[1].split() == ["libseccomp2", "tini"]
    assert run.count("useradd") == 1 and "--shell /usr/sbin/nologin" in run
    assert [text for word, text in final if word == "USER"] == ["1000:1000"]


@pytest.mark.parametrize(
    ("file_name", "is_usable"),
    [
        ("a-1-py3-none-any.whl", True),
        ("a-1-py2.py3-none-any.whl", True),
        ("a-1-cp311-cp311-manylinux_2_28_x86_64.whl", True),
        ("a-1-cp39-abi3-manylinux2014_x86_64.whl", True),
        ("a-1-cp312-abi3-manylinux2014_x86_64.whl", False),
        ("a-1-cp312-cp312-manylinux_2_28_x86_64.whl", False),
        ("a-1-cp311-cp311-musllinux_1_2_x86_64.whl", False),
        ("a-1-cp311-cp311-macosx_11_0_arm64.whl", False),
        ("a-1-py3-none-manylinux_2_17_x86_64.manylinux2014_x86_64.whl", True),
    ],
)
def test_wheels_are_listed_that_the_image_can_use(file_name: str, is_usable: bool) -> None:
    package = {"name": "A", "version": "1", "wheels": [{"url": f"/files/{file_name}", "hashes": {"sha256": "0" * 64}}]}
    if is_usable:
        assert "".join(pins.pins([package])) == "a==1 \\\n    --hash=sha256:" + "0" * 64 + "\n"
    else:
        with pytest.raises(ValueError, match="a 1 has no wheel"):
            "".join(pins.pins([package]))
