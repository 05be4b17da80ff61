"""AMQP methods by name and by number, read from the specification file beside this module.

The payload of a method frame is `class(2) method(2) arguments`. Consecutive bits share bytes, the lowest bit first.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from typing import Any, Final

from txamqp import spec as txspec

from . import wire
from .wire import WireError


def load_spec() -> txspec.Spec:
    """Load the protocol specification `amqp0-9-1.xml` as the object model of txAMQP."""
    return txspec.load_string(resources.files(__package__).joinpath("amqp0-9-1.xml").read_text("utf-8"), "amqp0-9-1.xml")


@dataclass(frozen=True, slots=True)
class Method:
    """Definition of an AMQP method."""

    name: str
    """Name in the specification: `queue.declare`, `basic.get-ok`."""
    class_id: int
    method_id: int
    fields: tuple[tuple[str, str], ...]
    """Fields as (name with `_` for `-`, type): `("consumer_tag", "shortstr")`."""
    has_content: bool

    @property
    def prefix(self) -> bytes:
        """First four bytes of a payload of this method."""
        return wire.NUMBERS["short"].pack(self.class_id) + wire.NUMBERS["short"].pack(self.method_id)


SPEC: Final = load_spec()

METHODS: Final[Mapping[tuple[int, int], Method]] = {
    (klass.id, method.id): Method(
        f"{klass.name}.{method.name}",
        klass.id,
        method.id,
        tuple((field.name.replace("-", "_"), field.type) for field in method.fields),
        bool(method.content),
    )
    for klass in SPEC.classes
    for method in klass.methods
}

BY_NAME: Final[Mapping[str, Method]] = {method.name: method for method in METHODS.values()}

_ZERO: Final[Mapping[str, Any]] = {"bit": False, "shortstr": b"", "longstr": b"", "table": {}}


def encode_method(name: str, **fields: Any) -> bytes:
    """Encode the payload of a method frame.

    Omitted fields are zero, false or empty. A value that does not fit its field raises `WireError`.
    """
    method = BY_NAME[name]
    unknown = fields.keys() - {field for field, _ in method.fields}
    if unknown:
        raise TypeError(f"{name} has no field {', '.join(sorted(unknown))}")
    return method.prefix + encode_arguments(method, [fields.get(field, _ZERO.get(kind, 0)) for field, kind in method.fields])


def encode_arguments(method: Method, values: list[Any] | tuple[Any, ...]) -> bytes:
    """Encode the arguments that follow the prefix of a method: one value per field, in the order of the specification."""
    parts: list[bytes] = []
    bits = count = 0
    for (_, kind), value in zip(method.fields, values, strict=True):
        if kind == "bit":
            bits |= bool(value) << count
            count += 1
            continue
        if count:
            parts.append(bits.to_bytes((count + 7) // 8, "little"))
            bits = count = 0
        parts.append(wire.encode_field(kind, value))
    if count:
        parts.append(bits.to_bytes((count + 7) // 8, "little"))
    return b"".join(parts)


def decode_method(payload: bytes) -> tuple[Method, dict[str, Any]]:
    """Decode the payload of a method frame into the method and its fields by name.

    Short strings are `str` (bytes that are not UTF-8 as surrogate escapes), long strings `bytes`, bits `bool`, tables `dict`.
    A method that is not in the specification, truncated arguments, or bytes after the last argument raise `WireError`.
    """
    if len(payload) < 4:
        raise WireError("a method frame is truncated")
    class_id, method_id = int.from_bytes(payload[:2]), int.from_bytes(payload[2:4])
    method = METHODS.get((class_id, method_id))
    if method is None:
        raise WireError(f"unknown method {class_id}.{method_id}")
    fields: dict[str, Any] = {}
    offset = 4
    count = 0
    for name, kind in method.fields:
        if kind == "bit":
            byte = offset + count // 8
            if byte >= len(payload):
                raise WireError(f"{method.name} is truncated")
            fields[name] = bool(payload[byte] >> count % 8 & 1)
            count += 1
            continue
        if count:
            offset += (count + 7) // 8
            count = 0
        if kind == "shortstr":
            raw, offset = wire.read_short_string(payload, offset)
            fields[name] = raw.decode("utf-8", "surrogateescape")
        elif kind == "longstr":
            fields[name], offset = wire.read_long_string(payload, offset)
        elif kind == "table":
            fields[name], offset = wire.decode_table(payload, offset)
        else:
            form = wire.NUMBERS[kind]
            if offset + form.size > len(payload):
                raise WireError(f"{method.name} is truncated")
            fields[name] = form.unpack_from(payload, offset)[0]
            offset += form.size
    if count:
        offset += (count + 7) // 8
    if offset != len(payload):
        raise WireError(f"unexpected bytes after the arguments of {method.name}")
    return method, fields
