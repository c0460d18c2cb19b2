"""Tensor mappings as TOML files, read strictly: an unknown key is refused by name, and so is a value that cannot be used.

pixel_form = "fp16"             # uint8, bf16, fp16 or fp32: the type in which pixels are to be made; default uint8
other_inputs = "drop"           # "send" (default) or "drop": tensors of a prompt that this file does not name
drop = ["item_hash"]            # contract tensors that are not sent

[inputs.grid_thw]               # by contract name; each key may be left out
name = "image_grid_thw"         # what the engine calls it
datatype = "INT64"              # to convert to: integers to integers, floats to floats
shape = [1, -1, 3]              # ones are put in front; the rest must be so already, -1 is any length

[constants.attention_mask]      # an input that is the same for every prompt, by the engine's name
datatype = "INT64"
value = 1                       # a value, or nested lists of them
like = "input_ids"              # the tensor whose shape, as sent, one value is spread over; else `shape`

[outputs.token_ids]
name = "output_ids"
datatype = "INT32"              # or INT64

[outputs.finish_reason]
name = "reason"                 # or `is_told = false` for an engine that gives none
"""

from __future__ import annotations

import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from engine_client.capabilities import PixelType
from engine_client.contract.tensors import CONTRACT_INPUTS, FEATURE_TENSORS, FINISH_REASON, PIXELS, TOKEN_IDS
from engine_client.triton.kserve import dtype_of
from engine_client.triton.outputs import Outputs
from engine_client.triton.tensor_mapping import Constant, InputRule, Shape, TensorMapping, kind_of

_BUILTIN = resources.files("engine_client.triton") / "builtin_mappings"
_KNOWN = {**CONTRACT_INPUTS, **FEATURE_TENSORS}
_TOKEN_ID_DATATYPES = ("INT32", "INT64")


class MappingError(ValueError):
    """A file cannot be read as a tensor mapping; the text names the file, the key, the value and what is accepted."""


def builtin_mapping_names() -> list[str]:
    """Mappings that come with this package."""
    return sorted(entry.name.removesuffix(".toml") for entry in _BUILTIN.iterdir() if entry.name.endswith(".toml"))


def load_mapping(name_or_path: str | Path) -> TensorMapping:
    """Read a mapping.

    Args:
        name_or_path: The name of one that comes with this package, or a TOML file.
    Raises:
        MappingError: there is no such mapping, or its file says what it must not.
    """
    if str(name_or_path) in builtin_mapping_names():
        return parse_mapping((_BUILTIN / f"{name_or_path}.toml").read_text("utf-8"), str(name_or_path))
    try:
        return parse_mapping(Path(name_or_path).read_text("utf-8"), str(name_or_path))
    except (OSError, UnicodeDecodeError) as error:
        known = ", ".join(builtin_mapping_names())
        raise MappingError(
            f"tensor mapping {name_or_path} is no file that can be read ({error}), nor one of {known}"
        ) from error


def parse_mapping(text: str, name: str) -> TensorMapping:
    """Read a mapping from its text.

    Args:
        text: TOML, as the head of this module shows it.
        name: For messages.
    Raises:
        MappingError: the text says what it must not.
    """
    try:
        return _Reader(name).mapping(tomllib.loads(text))
    except tomllib.TOMLDecodeError as error:
        raise MappingError(f"tensor mapping {name} is not TOML: {error}") from error


class _Reader:
    """Reads the tables of one file, and knows its name for messages."""

    def __init__(self, name: str) -> None:
        self._name = name

    def mapping(self, table: Mapping[str, Any]) -> TensorMapping:
        keys = ("pixel_form", "other_inputs", "drop", "inputs", "constants", "outputs")
        self._require_known(table, "", keys)
        inputs = {key: self._input(key, entry) for key, entry in self._tables(table, "inputs")}
        constants = {key: self._constant(key, entry) for key, entry in self._tables(table, "constants")}
        mapping = TensorMapping(
            name=self._name,
            pixel_type=PixelType(self._choice(table, "pixel_form", "uint8", tuple(PixelType))),
            inputs=inputs,
            dropped=frozenset(self._dropped(table, inputs)),
            drops_others=self._choice(table, "other_inputs", "send", ("send", "drop")) == "drop",
            constants=constants,
            outputs=self._outputs(dict(self._tables(table, "outputs"))),
        )
        self._check_together(mapping)
        return mapping

    def _input(self, source: str, table: Mapping[str, Any]) -> InputRule:
        where = f"inputs.{source}"
        self._require_known(table, where, ("name", "datatype", "shape"))
        datatype = table.get("datatype")
        if datatype is not None:
            wanted, known = self._dtype(f"{where}.datatype", datatype), _KNOWN.get(source)
            if source == PIXELS:
                raise self._error(f"{where}.datatype", datatype, "nothing: pixel_form says how pixels are made")
            given = None if known is None else known.dtype
            if given is not None and kind_of(given) != kind_of(wanted):
                raise self._error(f"{where}.datatype", datatype, f"another {kind_of(given)} type, as {given} is one")
        return InputRule(self._text(table, where, "name", source), datatype, self._shape(table, where))

    def _constant(self, name: str, table: Mapping[str, Any]) -> Constant:
        where = f"constants.{name}"
        self._require_known(table, where, ("datatype", "value", "shape", "like"))
        if "value" not in table:
            raise self._error(f"{where}.value", None, "a value, or nested lists of them")
        datatype = self._text(table, where, "datatype", "")
        dtype, value = self._dtype(f"{where}.datatype", datatype), table["value"]
        try:
            given = np.array(value)
            values = given.astype(dtype)
        except (ValueError, TypeError, OverflowError) as error:
            raise self._error(f"{where}.value", value, f"what {datatype} can hold ({error})") from error
        if given.dtype.kind not in "iufb" or (kind_of(dtype) != "float" and not np.array_equal(values, given)):
            raise self._error(f"{where}.value", value, f"what {datatype} can hold")
        like, shape = table.get("like"), self._shape(table, where)
        if like is not None and (values.ndim or shape is not None):
            raise self._error(f"{where}.like", like, "like with one value and no shape")
        try:
            return Constant(datatype, values if shape is None else values.reshape(shape), like)
        except ValueError as error:
            raise self._error(f"{where}.shape", list(shape or ()), f"a shape of {values.size} values") from error

    def _outputs(self, tables: Mapping[str, Mapping[str, Any]]) -> Outputs:
        self._require_known(tables, "outputs", (TOKEN_IDS, FINISH_REASON))
        ids, reason = tables.get(TOKEN_IDS, {}), tables.get(FINISH_REASON, {})
        self._require_known(ids, f"outputs.{TOKEN_IDS}", ("name", "datatype"))
        self._require_known(reason, f"outputs.{FINISH_REASON}", ("name", "is_told"))
        is_told = reason.get("is_told", True)
        if not isinstance(is_told, bool) or (not is_told and "name" in reason):
            raise self._error(f"outputs.{FINISH_REASON}.is_told", is_told, "true, or false without a name")
        return Outputs(
            token_ids=self._text(ids, f"outputs.{TOKEN_IDS}", "name", TOKEN_IDS),
            token_ids_datatype=self._choice(ids, "datatype", "INT32", _TOKEN_ID_DATATYPES, f"outputs.{TOKEN_IDS}."),
            finish_reason=self._text(reason, f"outputs.{FINISH_REASON}", "name", FINISH_REASON) if is_told else None,
        )

    def _dropped(self, table: Mapping[str, Any], inputs: Mapping[str, InputRule]) -> list[str]:
        dropped = table.get("drop", [])
        if not isinstance(dropped, list) or not all(isinstance(name, str) for name in dropped):
            raise self._error("drop", dropped, "a list of names")
        both = sorted(inputs.keys() & set(dropped))
        if both:
            raise self._error("drop", both, "names without an entry in inputs")
        return dropped

    def _check_together(self, mapping: TensorMapping) -> None:
        sources = dict.fromkeys((*_KNOWN, *mapping.inputs))
        names = [name for source in sources if (name := mapping.wire_name(source)) is not None]
        counts = Counter((*names, *mapping.constants))
        twice = sorted(name for name, count in counts.items() if count > 1)
        if twice:
            raise self._error("inputs and constants", twice, "one tensor for each of the engine's names")
        for name, constant in mapping.constants.items():
            if constant.like is not None and mapping.wire_name(constant.like) not in names:
                raise self._error(f"constants.{name}.like", constant.like, "a tensor that is sent")

    def _tables(self, table: Mapping[str, Any], key: str) -> list[tuple[str, Mapping[str, Any]]]:
        tables = table.get(key, {})
        if not isinstance(tables, dict) or not all(isinstance(entry, dict) for entry in tables.values()):
            raise self._error(key, tables, f"tables [{key}.NAME]")
        return list(tables.items())

    def _shape(self, table: Mapping[str, Any], where: str) -> Shape | None:
        shape = table.get("shape")
        if shape is None:
            return None
        if not isinstance(shape, list) or not shape or not all(type(n) is int and (n == -1 or n > 0) for n in shape):
            raise self._error(f"{where}.shape", shape, "a list of lengths, each above 0 or -1")
        return tuple(shape)

    def _dtype(self, key: str, datatype: object) -> np.dtype[Any]:
        dtype = dtype_of(datatype) if isinstance(datatype, str) else None
        if dtype is None:
            raise self._error(key, datatype, "a KServe v2 type such as INT64 or FP16, and not BYTES")
        return dtype

    def _text(self, table: Mapping[str, Any], where: str, key: str, default: str) -> str:
        value = table.get(key, default)
        if not isinstance(value, str) or not value:
            raise self._error(f"{where}.{key}", value or None, "a text")
        return value

    def _choice(
        self, table: Mapping[str, Any], key: str, default: str, accepted: Sequence[str], where: str = ""
    ) -> str:
        value = table.get(key, default)
        if value not in accepted:
            raise self._error(where + key, value, " or ".join(accepted))
        return str(value)

    def _require_known(self, table: Mapping[str, Any], where: str, accepted: Sequence[str]) -> None:
        for key in table:
            if key not in accepted:
                raise self._error(f"{where}.{key}".lstrip("."), table[key], f"{' or '.join(accepted)} there")

    def _error(self, key: str, value: object, accepted: str) -> MappingError:
        return MappingError(f"tensor mapping {self._name}: {key} is {value!r}; accepted: {accepted}")
