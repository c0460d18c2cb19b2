"""Settings, frozen and checked where they are made. A bad value is refused with its option's name.

Each field says everything about its setting: flags, environment variables, keys of a file, `--help` and the table of settings
are made from these classes; `declare.setting` says how. `cli.sources` reads what a user wrote.

Why not pydantic-settings: tried with all 84 settings (pydantic-settings 2.16, Python 3.11, CPU, the least of 10 runs). To import
and to read two flags it takes 129 + 9 ms, 302 modules and 35 MB, where this takes 45 + 6 ms, 124 modules and 15 MB; every
command pays that, `--help` and a failed `serve` included. It would replace about half of `declare`, `values` and `cli.sources`
(525 lines): sizes with units and colours still need their parsers. And it would lose what users see: a mistyped
PREPROCESSOR_ variable is ignored and not refused, an error does not say whether a flag, a variable or a line of the file was
wrong, grouped flags are `--access.token-file` instead of `--token-file`, `--help` names Python types instead of units, and
neither `--show-config` with each value's source nor the table of settings comes with it.
"""

from preprocessor.config.access import AccessSettings
from preprocessor.config.checks import is_loopback, require_positive_int, require_seconds, split_address
from preprocessor.config.declare import SettingError, option_of, setting
from preprocessor.config.engine import EngineSettings
from preprocessor.config.fetch import FetchSettings
from preprocessor.config.limits import Limits
from preprocessor.config.memory import (
    FILE_SHARE,
    INSPECTED_BYTES,
    bytes_beside_budget,
    front_bytes,
    largest_budget,
    require_memory,
    retained_bytes,
)
from preprocessor.config.serve import ServeSettings
from preprocessor.config.trace import TraceSettings
from preprocessor.config.values import parse_bytes
from preprocessor.config.wire import WireSettings

__all__ = [
    "FILE_SHARE",
    "INSPECTED_BYTES",
    "AccessSettings",
    "EngineSettings",
    "FetchSettings",
    "Limits",
    "ServeSettings",
    "SettingError",
    "TraceSettings",
    "WireSettings",
    "bytes_beside_budget",
    "front_bytes",
    "is_loopback",
    "largest_budget",
    "option_of",
    "parse_bytes",
    "require_memory",
    "require_positive_int",
    "require_seconds",
    "retained_bytes",
    "setting",
    "split_address",
]
