"""AMQP methods by name and by number, made from the project's own specification file.

A method frame's payload is `class(2) method(2) arguments`; consecutive bits share bytes, the lowest bit first.
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
    """The protocol's specification as txAMQP's object model, from `amqp0-9-1.xml` beside this module."""
    return txspec.load_string(resources.files(__package__).joinpath("amqp0-9-1.xml").read_text("utf-8"), "amqp0-9-1.xml")


@dataclass(frozen=True, slots=True)
class Method:
    """One method of the protocol."""

    name: str
    """As in the specification: `queue.declare`, `basic.get-ok`."""
    class_id: int
    method_id: int
    fields: tuple[tuple[str, str], ...]
    """(name with `_` for `-`, type): `("consumer_tag", "shortstr")`."""
    has_content: bool

    @property
    def prefix(self) -> bytes:
        """The four bytes that a payload of this method begins with."""
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
    """The payload of a method frame. Fields left out are zero, false or empty; `WireError` for one that does not fit."""
    method = BY_NAME[name]
    unknown = fields.keys() - {field for field, _ in method.fields}
    if unknown:
        raise TypeError(f"{name} has no field {', '.join(sorted(unknown))}")
    return method.prefix + encode_arguments(
        method, [fields.get(field, _ZERO.get(kind, 0)) for field, kind in method.fields]
    )


def encode_arguments(method: Method, values: list[Any] | tuple[Any, ...]) -> bytes:
    """The bytes that follow a method's prefix: one value a field, in the specification's order."""
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
    """Read a method frame's payload: which method, and its fields by name.

    Short strings are `str` (odd bytes as surrogate escapes), long strings `bytes`, bits `bool`, tables `dict`. A method that
    is not in the specification, arguments cut off, or bytes after the last one raise `WireError`.
    """
    if len(payload) < 4:
        raise WireError("a method frame is cut off")
    class_id, method_id = int.from_bytes(payload[:2]), int.from_bytes(payload[2:4])
    method = METHODS.get((class_id, method_id))
    if method is None:
        raise WireError(f"there is no method {class_id}.{method_id}")
    fields: dict[str, Any] = {}
    offset = 4
    count = 0
    for name, kind in method.fields:
        if kind == "bit":
            byte = offset + count // 8
            if byte >= len(payload):
                raise WireError(f"{method.name} is cut off")
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
                raise WireError(f"{method.name} is cut off")
            fields[name] = form.unpack_from(payload, offset)[0]
            offset += form.size
    if count:
        offset += (count + 7) // 8
    if offset != len(payload):
        raise WireError(f"something follows the arguments of {method.name}")
    return method, fields
