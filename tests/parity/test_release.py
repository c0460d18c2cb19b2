"""`make parity TRANSFORMERS=latest` compares all that `make parity` compares."""

import re
from pathlib import Path

from tests.parity.release import checks


def test_another_release_is_compared_in_every_family() -> None:
    makefile = (Path(__file__).parents[2] / "Makefile").read_text()
    recipe = makefile.split("\nparity:", 1)[1].split("\n\n", 1)[0]
    plain = {name for name in re.findall(r"-m (tests[.\w]+)", recipe) if not name.endswith("release")}
    assert "tests.parity.tiles" in plain
    assert plain <= {module for _, module, *_ in checks(1)}
