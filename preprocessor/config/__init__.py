"""Settings, frozen and checked where they are made. A bad value is refused with its option's name.

Each field says everything about its setting: flags, environment variables, keys of a file, `--help` and README's table are
made from these classes; `setting` says how. Who reads what a user wrote is `cli.sources`.
"""

from preprocessor.config.access import AccessSettings
from preprocessor.config.checks import is_loopback, require_positive_int, require_seconds, split_address
from preprocessor.config.declare import SettingError, option_of, setting
from preprocessor.config.engine import EngineSettings
from preprocessor.config.fetch import FetchSettings
from preprocessor.config.limits import Limits
from preprocessor.config.serve import ServeSettings, bytes_beside_budget, largest_budget, require_memory, retained_bytes
from preprocessor.config.trace import TraceSettings
from preprocessor.config.values import parse_bytes
from preprocessor.config.wire import WireSettings

__all__ = [
    "AccessSettings",
    "EngineSettings",
    "FetchSettings",
    "Limits",
    "ServeSettings",
    "SettingError",
    "TraceSettings",
    "WireSettings",
    "bytes_beside_budget",
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
