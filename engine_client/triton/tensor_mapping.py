"""A model that takes the same prompt in another layout: tensors renamed, dropped, converted, added.

A mapping is data (`engine_client.triton.mapping_files` reads it from TOML). It is compared with what the model declares
before the first prompt is sent, so that a wrong name is an error at the start and not one a request.

    contract tensors ──TensorMapping.wire_tensors──▶ the model's inputs      the model's outputs ──Outputs──▶ steps

Pixels are never converted here: their float types are normalized, which a change of type is not. The mapping says in
which type (`pixel_type`) whoever prepares the prompt is to make them.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from engine_client.capabilities import PixelType
from engine_client.contract.tensors import CONTRACT_INPUTS, FEATURE_OUTPUTS, FEATURE_TENSORS, PIXELS, Array
from engine_client.triton.kserve import datatype_of, dtype_of
from engine_client.triton.outputs import CONTRACT_OUTPUTS, Outputs
from engine_client.types import EngineInfo, TensorInfo

Shape = tuple[int, ...]
_KNOWN = {**CONTRACT_INPUTS, **FEATURE_TENSORS}


@dataclass(frozen=True, slots=True)
class InputRule:
    """How one tensor of a prompt is sent."""

    name: str
    """What the engine calls it."""
    datatype: str | None = None
    """KServe v2 name to convert to, integers to integers and floats to floats; None leaves it."""
    shape: Shape | None = None
    """How many dimensions it gets: ones are put in front. The others must be as said here, -1 is any."""

    def apply(self, source: str, array: Array) -> Array:
        """The array as it is sent; the same memory where the type stays.

        Raises:
            ValueError: a value or the shape does not fit.
        """
        return _reshaped(source, _converted(source, array, self.datatype), self.shape)


@dataclass(frozen=True, slots=True, eq=False)
class Constant:
    """An input that is the same for every prompt."""

    datatype: str
    """KServe v2 name of the type of `values`."""
    values: Array
    like: str | None = None
    """A tensor of the prompt whose shape, as sent, the one value is spread over; without that tensor it is not sent."""


@dataclass(frozen=True, slots=True, eq=False)
class TensorMapping:
    """How one model takes prompts. The default is the engine contract, unchanged."""

    name: str = "contract"
    pixel_type: PixelType = PixelType.UINT8
    inputs: Mapping[str, InputRule] = field(default_factory=dict)
    """By contract name; a tensor without a rule goes as it is."""
    dropped: frozenset[str] = frozenset()
    """Contract names that are not sent."""
    drops_others: bool = False
    """Whether tensors without a rule are not sent either."""
    constants: Mapping[str, Constant] = field(default_factory=dict)
    """By the engine's name."""
    outputs: Outputs = CONTRACT_OUTPUTS

    def wire_name(self, name: str) -> str | None:
        """What the engine calls a tensor of the prompt; None where it is not sent."""
        if name in self.inputs:
            return self.inputs[name].name
        return None if self.drops_others or name in self.dropped else name

    def wire_tensors(self, tensors: Mapping[str, Array]) -> dict[str, Array]:
        """The tensors to send for a prompt, by the engine's names.

        Args:
            tensors: By contract name, sampling included. Pixels are passed on as views, whatever their size.
        Raises:
            ValueError: a tensor does not fit what the mapping says of it.
        """
        pixels = tensors.get(PIXELS)
        if pixels is not None and pixels.dtype != self.pixel_type.dtype:
            raise ValueError(f"{PIXELS} is {pixels.dtype}; mapping {self.name} takes pixels as {self.pixel_type}")
        wire: dict[str, Array] = {}
        for name, array in tensors.items():
            wire_name = self.wire_name(name)
            if wire_name is not None:
                wire[wire_name] = self.inputs[name].apply(name, array) if name in self.inputs else array
        for name, constant in self.constants.items():
            if constant.like is None:
                wire[name] = constant.values
            elif constant.like in tensors:
                shape = wire[self.wire_name(constant.like) or ""].shape
                wire[name] = np.broadcast_to(constant.values, shape)
        return wire

    def mismatches(self, info: EngineInfo) -> list[str]:
        """Everything in which this mapping and the model, as its engine declares it, differ; empty where they agree.

        An input that only some prompts have is compared too: the engine would refuse those prompts.
        """
        return [*_input_mismatches(tuple(self._sent()), info.inputs), *_output_mismatches(self.outputs, info.outputs)]

    def features(self, inputs: Mapping[str, str], outputs: Mapping[str, str]) -> frozenset[str]:
        """Which parameters of `FEATURE_TENSORS` a model has that declares these inputs and outputs: name → datatype.

        The outputs of features have the contract's names, whatever the mapping.
        """

        def has(name: str) -> bool:
            is_taken = inputs.get(self.wire_name(name) or "") == self._datatype(name)
            told = FEATURE_OUTPUTS.get(name, {}).values()
            return is_taken and all(outputs.get(one.name) == datatype_of(one.name, one.dtype) for one in told)

        # Without finish reasons the end of one of several answers could not be told.
        unknown = {"answer_count"} if self.outputs.finish_reason is None else set()
        return frozenset(name for name in FEATURE_TENSORS if name not in unknown and has(name))

    def _sent(self) -> Iterator[_Sent]:
        for source in dict.fromkeys((*CONTRACT_INPUTS, *self.inputs)):
            name = self.wire_name(source)
            if name is not None:
                yield _Sent(f"{source} is sent as {name}", name, self._datatype(source), self._shape(source))
        for name, constant in self.constants.items():
            shape = constant.values.shape if constant.like is None else self._shape(constant.like)
            yield _Sent(f"the constant {name} is sent", name, constant.datatype, shape)

    def _datatype(self, source: str) -> str | None:
        if source == PIXELS:
            return datatype_of(PIXELS, self.pixel_type.dtype)
        rule, known = self.inputs.get(source), _KNOWN.get(source)
        return (rule.datatype if rule else None) or (datatype_of(source, known.dtype) if known else None)

    def _shape(self, source: str) -> Shape | None:
        rule, known = self.inputs.get(source), _KNOWN.get(source)
        return (rule.shape if rule else None) or (known.shape if known else None)


@dataclass(frozen=True, slots=True)
class _Sent:
    """A tensor that may be sent; a type or shape of None is known only when a prompt is there."""

    what: str
    name: str
    datatype: str | None
    shape: Shape | None


def _input_mismatches(sent: Iterable[_Sent], declared: Iterable[TensorInfo]) -> Iterator[str]:
    taken = {tensor.name: tensor for tensor in declared}
    for ours in sent:
        theirs = taken.get(ours.name)
        if theirs is None:
            yield f"input {ours.what}, and the model takes only {_names(taken)}"
            continue
        if ours.datatype not in (None, theirs.datatype):
            yield f"input {ours.what} of type {ours.datatype}, and the model takes {theirs.datatype}"
        if ours.shape is not None and not _may_agree(ours.shape, theirs.shape):
            yield f"input {ours.what} with shape {list(ours.shape)}, and the model takes {list(theirs.shape)}"
    names = {ours.name for ours in sent}
    for theirs in taken.values():
        if theirs.is_optional is False and theirs.name not in names:
            yield f"input {theirs.name} is required by the model, and nothing is sent under that name"


def _output_mismatches(outputs: Outputs, declared: Iterable[TensorInfo]) -> Iterator[str]:
    given = {tensor.name: tensor for tensor in declared}
    for name, datatype in outputs.wanted():
        theirs = given.get(name)
        if theirs is None:
            yield f"output {name} is read, and the model gives only {_names(given)}"
        elif theirs.datatype != datatype:
            yield f"output {name} is read as {datatype}, and the model gives {theirs.datatype}"


def _may_agree(ours: Shape, theirs: Shape) -> bool:
    """Whether a tensor can have both shapes; -1 is any length."""
    return len(ours) == len(theirs) and all(-1 in pair or pair[0] == pair[1] for pair in zip(ours, theirs, strict=True))


def _converted(source: str, array: Array, datatype: str | None) -> Array:
    wanted = None if datatype is None else dtype_of(datatype)
    if wanted is None or array.dtype == wanted:
        return array
    if kind_of(array.dtype) != kind_of(wanted):
        raise ValueError(f"{source} is {array.dtype}; it cannot become {datatype}, only another {kind_of(array.dtype)}")
    if wanted.kind in "iu" and array.size:
        low, high, limits = array.min(), array.max(), np.iinfo(wanted)
        if low < limits.min or high > limits.max:
            raise ValueError(f"{source} has values from {low} to {high}; {datatype} holds {limits.min} to {limits.max}")
    return array.astype(wanted)


def kind_of(dtype: np.dtype[Any]) -> str:
    """What a type can be converted within: "integer", "float" or "boolean"."""
    # bfloat16 is no kind of numpy's own: it says "V".
    return {"i": "integer", "u": "integer", "b": "boolean"}.get(dtype.kind, "float")


def _reshaped(source: str, array: Array, shape: Shape | None) -> Array:
    if shape is None:
        return array
    full = (1,) * (len(shape) - array.ndim) + array.shape
    if not _may_agree(shape, full):
        raise ValueError(f"{source} has shape {list(array.shape)}; it is to be sent as {list(shape)}")
    return array.reshape(full)


def _names(tensors: Mapping[str, TensorInfo]) -> str:
    return ", ".join(sorted(tensors)) or "none"
