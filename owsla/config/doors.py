"""Descriptions of doors: the values of `--listen`, and the tables `[[listen]]` of a TOML file.

The syntax is that of Twisted's endpoint descriptions (`twisted.internet.endpoints.serverFromString`): parts are separated by
colons, the first two are the kind and the place, and the others have the form `key=value`. A backslash takes the special
meaning from the character after it.

    tls:8883    tcp:9000:interface=127.0.0.1:framing=length\\:2    unix:/run/owsla.sock:tls=yes    systemd:meters:tls=no
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from owsla.errors import ConfigError

NAME: Final = "name"
"""Key of the door's name, beside those that are names of options."""

_KINDS: Final[Mapping[str, Mapping[str, str]]] = {
    "tls": {"tls": "yes"},
    "tcp": {"tls": "no"},
    "unix": {"tls": "no"},
    "systemd": {},
}
"""Kinds of doors, and what each implies unless the description says otherwise."""

_PLACES: Final = {"tls": "a port", "tcp": "a port", "unix": "a path", "systemd": "a name"}

_VALID_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}", re.ASCII)
_PART = re.compile(r"((?:[^:\\]|\\.)*)(:|\Z)", re.DOTALL)


@dataclass(frozen=True, slots=True)
class DoorDescription:
    """Name of a door, and the texts of its own options."""

    name: str
    texts: Mapping[str, tuple[str, ...]]
    """Texts by name of the option. That there is such an option is not checked yet."""


def read_door(text: str) -> DoorDescription:
    """Read the description of a door, as for `--listen`."""
    kind, *parts = _parts(text)
    if "=" in kind:  # all parts have keys
        return describe_door(map(_key_and_value, (kind, *parts)))
    if kind not in _KINDS:
        kinds = ", ".join(f"{each}:" for each in _KINDS)
        raise ConfigError(f"{text!r} begins with none of {kinds}, as in tls:8883")
    if not parts or not parts[0]:
        raise ConfigError(f"{text!r}: {_PLACES[kind]} is missing after {kind}:")
    place = parts[0]
    items = [_key_and_value(part) for part in parts[1:]]
    keys = {key for key, _ in items}
    if kind == "systemd":
        items.append((NAME, place))
    elif "port" in keys:
        raise ConfigError(f"{text!r}: the port is given twice")
    else:
        items.append(("port", f"unix:{place}" if kind == "unix" else place))
    items += [(key, value) for key, value in _KINDS[kind].items() if key not in keys]
    return describe_door(items)


def describe_door(items: Iterable[tuple[str, str]]) -> DoorDescription:
    """Return the description of a door with these keys and texts. Its name is by default its port, or the name of its file."""
    texts: dict[str, tuple[str, ...]] = {}
    for key, text in items:
        texts[key] = (*texts.get(key, ()), text)
    names = texts.pop(NAME, ())
    name = names[-1] if names else _default_name(texts.get("port", ("",))[-1])
    if not names and not _VALID_NAME.fullmatch(name):
        raise ConfigError(f"the door at {texts['port'][-1]!r} needs a name, as in name=meters")
    if not _VALID_NAME.fullmatch(name):
        raise ConfigError(f"{name!r} is not a name of a door: 1 to 63 letters, digits and . _ -, as in name=meters")
    return DoorDescription(name, texts)


def door_text(items: Iterable[tuple[str, str]]) -> str:
    """Return the description of a door with these keys and texts, at least one, as `read_door` reads it."""
    return ":".join(f"{key}={_escaped(text)}" for key, text in items)


def _key_and_value(part: str) -> tuple[str, str]:
    key, equals, value = part.partition("=")
    if not equals:
        raise ConfigError(f"{part!r} is not key=value; a colon in a value is written \\:")
    return key, value


def _default_name(port: str) -> str:
    if port in ("", "0"):
        raise ConfigError("a door without a port number needs a name, as in name=meters")
    return port.removeprefix("unix:").rpartition("/")[2]


def _parts(text: str) -> Iterator[str]:
    """Yield the parts between colons, without the backslashes that escape."""
    position = 0
    while True:
        match = _PART.match(text, position)
        if match is None:
            raise ConfigError(f"{text!r} ends with a backslash")
        yield re.sub(r"\\(.)", r"\1", match[1], flags=re.DOTALL)
        if not match[2]:
            return
        position = match.end()


def _escaped(text: str) -> str:
    return text.replace("\\", "\\\\").replace(":", "\\:")
