"""The sources of settings: defaults, a TOML file, the environment and the command line.

A later source overrides an earlier one, option by option:

    defaults  <  the file of --config or OWSLA_CONFIG  <  OWSLA_... in the environment  <  the command line

All sources use the same readers. No other module reads TOML, the environment or the command line of `twistd owsla`.
"""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
import tomllib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, Final, Literal, NamedTuple, TypeAlias

from owsla.config import readers
from owsla.config.checks import (
    Given,
    GivenAt,
    check_door_values,
    check_doors,
    check_files,
    check_readable,
    check_settings,
    check_values,
)
from owsla.config.doors import NAME, DoorDescription, door_text, read_door
from owsla.config.options import BY_NAME, BY_VARIABLE, OPTIONS, Option
from owsla.config.settings import Door, Settings
from owsla.errors import ConfigError, one_line
from owsla.runtime.files import Files

Certificates: TypeAlias = Literal["checked", "read", "left"]
"""Treatment by `load_settings` of the files of certificates, keys and lists."""

FLAGS: Final = ("help", "version")
"""Options without a value, which are not settings."""

CHECK: Final = "check"
"""The option that checks the settings. It is not a setting either."""

OFFLINE: Final = "offline"
"""Value of `--check` that leaves the broker out."""

_COMMA = re.compile("%2c", re.IGNORECASE)


def write_warning(message: str) -> None:
    """Write a warning to standard error, as one line."""
    sys.stderr.write(f"owsla: {one_line(message)}\n")


def load_settings(
    argv: Sequence[str] = (),
    environ: Mapping[str, str] = os.environ,
    warn: Callable[[str], None] = write_warning,
    files: Files | None = None,
    *,
    certificates: Certificates = "checked",
) -> Settings:
    """Read and check all sources. Raise `ConfigError`, with the name of the source, for the first fault.

    The files that the settings name are read with `files`, which has their contents then. The files of certificates, keys and
    lists may be only read, for a caller that uses them, and so checks them; or they may be left to the caller altogether.

    A variable `OWSLA_...` that belongs to no option is only a warning, because other programs may use that prefix.
    """
    files = files or Files()
    command_line = parse_command_line(argv)
    if command_line.rest:
        first = _quoted(command_line.rest[0])
        raise ConfigError(f"{first}: only options are allowed here, such as --port {BY_NAME['port'].default}")
    environment, unknown = _from_environment(environ)
    given = {**environment, **command_line.given}
    if "config" in given:
        of_file = _from_file(given["config"], files)
        if "broker" in of_file and given.get("broker", of_file["broker"]) is environment.get("broker"):
            # A left-over variable would send all lines to another broker than the one in the file.
            warn(f"{environment['broker'].origin}: used in place of the one in the file: {of_file['broker'].origin}")
        given = {**of_file, **given}
    settings = _read_and_check(given, files, certificates=certificates != "left")
    if certificates == "checked":
        check_files(settings, files.read)
    for variable in unknown:
        warn(f"{variable}: no option has this name, ignored{_closest(variable, BY_VARIABLE)}")
    return settings


class CommandLine(NamedTuple):
    """A parsed command line."""

    given: dict[str, Given]
    flags: frozenset[str]
    check: str | None
    """Value of `--check`: empty, or `OFFLINE`. `None` without that option."""
    rest: list[str]
    """Arguments that are not options."""


def parse_command_line(argv: Sequence[str]) -> CommandLine:
    """Parse the arguments of `twistd owsla`. Raise `ConfigError` if an option is unknown, or its value is missing."""
    # No abbreviations: a new option could change their meaning. Errors are raised, to become one line on standard error.
    parser = argparse.ArgumentParser(
        allow_abbrev=False, add_help=False, exit_on_error=False, argument_default=argparse.SUPPRESS
    )
    for name in FLAGS:
        parser.add_argument(f"--{name}", action="store_true")
    parser.add_argument(f"--{CHECK}", nargs="?", const="")
    for option in OPTIONS:
        parser.add_argument(f"--{option.name}", action="append", dest=option.name)
    try:
        namespace, extra = parser.parse_known_args(_with_joined_values(argv))
    except argparse.ArgumentError as error:
        flag = str(error.argument_name)
        fault = "takes no value" if flag.removeprefix("--") in FLAGS else "a value is missing"
        raise ConfigError(f"{flag}: {fault}") from None
    given: dict[str, Given] = {}
    flags = set()
    check: str | None = None
    for name, value in vars(namespace).items():
        if name in FLAGS:
            flags.add(name)
        elif name == CHECK:
            check = value
        else:
            given[name] = Given(tuple(value if BY_NAME[name].repeatable else value[-1:]), f"--{name}")
    if check not in (None, "", OFFLINE):
        raise ConfigError(f"--{CHECK}: {_quoted(check)} is not {OFFLINE}; without a value the broker is checked, too")
    return CommandLine(given, frozenset(flags), check, _without_unknown_options(extra))


def _with_joined_values(argv: Sequence[str]) -> list[str]:
    """Join `--option VALUE` to `--option=VALUE`, because argparse would mistake a separate value `-1` for an option."""
    joined: list[str] = []
    arguments = iter(argv)
    for argument in arguments:
        if argument == "--":
            return [*joined, argument, *arguments]
        if argument.removeprefix("--") in BY_NAME and argument.startswith("--"):
            value = next(arguments, None)
            if value is not None:
                argument = f"{argument}={value}"
        joined.append(argument)
    return joined


def _without_unknown_options(arguments: Sequence[str]) -> list[str]:
    """Return the arguments that argparse left over. Raise `ConfigError` if one of them has the form of an option."""
    rest: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        if argument == "--":
            rest += remaining
        elif not argument.startswith("-") or argument == "-":
            rest.append(argument)
        elif not argument.startswith("--"):
            raise ConfigError(f"{argument[:2]}: no such option")  # the rest may be a password
        else:
            flag = argument.partition("=")[0]
            # A URL without its option may begin with dashes, too; its password must not reach the log.
            shown = flag if _quoted(flag) == repr(flag) else "a URL"
            raise ConfigError(f"{shown}: {_unknown(flag.removeprefix('--'), (*BY_NAME, *FLAGS, CHECK))}")
    return rest


def _unknown(name: str, names: Sequence[str]) -> str:
    """Return an error message for an unknown option, with a hint if it abbreviates or resembles one of `names`."""
    hint = _closest(name, names, "--")
    longer = [known for known in names if name and known.startswith(name)]
    if not hint and longer:
        if len(longer) > 1:
            return "more than one option begins like this"
        hint = f"; did you mean --{longer[0]}?"
    return f"no such option{hint}"


def _closest(name: str, names: Iterable[str], prefix: str = "") -> str:
    """Return a hint at the most similar of `names` for an error message, or an empty text."""
    matches = difflib.get_close_matches(name, list(names), 1)
    return f"; did you mean {prefix}{matches[0]}?" if matches else ""


def _quoted(text: str) -> str:
    """Return `text` in quotes for a message, or "a URL" if it may contain a password."""
    return "a URL" if "@" in text or "://" in text else repr(text)


def _from_environment(environ: Mapping[str, str]) -> tuple[dict[str, Given], list[str]]:
    """Return the options from the environment, and the variables with the prefix `OWSLA_` that belong to no option."""
    given = {}
    unknown = []
    for variable in sorted(environ):
        if not variable.startswith("OWSLA_"):
            continue
        option = BY_VARIABLE.get(variable)
        text = environ[variable]
        if option is None:
            unknown.append(variable)
        elif text:  # in compose files and unit files an empty variable means "not set"
            given[option.name] = Given(_items(text, option) if option.repeatable else (text,), variable)
    return given, unknown


def _items(text: str, option: Option) -> tuple[str, ...]:
    """Split the value of a variable at commas. In an item, `%2c` is a comma."""
    items = tuple(item.strip() for item in text.split(","))
    if option.name == "broker":
        return items  # its reader decodes all percent-encoding
    return tuple(_COMMA.sub(",", item) for item in items)


def _from_file(config: Given, files: Files) -> dict[str, Given]:
    """Return the options from the TOML file that `config` names."""
    try:
        path = readers.path(config.texts[0])
        content = files.read(path)
    except ConfigError as error:
        raise ConfigError(f"{config.origin}: {error}") from None
    try:
        document = tomllib.loads(content.decode())
    except UnicodeDecodeError:
        raise ConfigError(f"{path}: not UTF-8") from None
    except ValueError as error:  # TOMLDecodeError, or an integer of more than 4,300 digits (sys.set_int_max_str_digits)
        raise ConfigError(f"{path}: {error}") from None
    given = {}
    for key, value in document.items():
        option = BY_NAME.get(key)
        if option is None or key == "config":
            names = [name for name in BY_NAME if name != "config"]
            raise ConfigError(f"{path}: {key}: no such option{_closest(key, names)}")
        origin = f"{path}: {key}"
        given[key] = Given(_toml_texts(value, option, origin), origin)
    return given


def _toml_texts(value: object, option: Option, origin: str) -> tuple[str, ...]:
    """Return a TOML value, or the items of an array, as texts: the readers of options take text, whatever the source."""
    values = value if isinstance(value, list) and option.repeatable else [value]
    if not values:
        raise ConfigError(f"{origin}: the array is empty")
    return tuple(_toml_text(item, option, origin) for item in values)


def _toml_text(value: object, option: Option, origin: str) -> str:
    if isinstance(value, dict) and option.name == "listen":
        return _door_text(value, origin)
    if isinstance(value, str):
        return value
    if isinstance(value, bool) and option.flag:
        return "yes" if value else "no"
    if isinstance(value, int | float) and not isinstance(value, bool):
        return str(value)
    kind = {dict: "a table", list: "an array", bool: "a boolean"}.get(type(value), "a date or time")
    raise ConfigError(f"{origin}: {kind} cannot be the value of this option")


def _door_text(table: Mapping[str, object], origin: str) -> str:
    """Return the description of the door in a table `[[listen]]`."""
    items: list[tuple[str, str]] = []
    for key, value in table.items():
        if key == NAME:
            if not isinstance(value, str):
                raise ConfigError(f"{origin}: name: the name of a door is text")
            items.append((key, value))
        else:
            option = _door_option(key, origin)
            items += [(key, text) for text in _toml_texts(value, option, f"{origin}: {key}")]
    if not items:
        raise ConfigError(f"{origin}: the table is empty; a door needs a port, or a name")
    return door_text(items)


def _door_option(key: str, origin: str) -> Option:
    """Return the option of a door with this name."""
    option = BY_NAME.get(key)
    if option is None:
        names = [each.name for each in OPTIONS if each.door]
        raise ConfigError(f"{origin}: {key}: no such option{_closest(key, (NAME, *names))}")
    if not option.door:
        raise ConfigError(f"{origin}: {key}: is for all doors, and is not set for one")
    return option


def _read_and_check(given: Mapping[str, Given], files: Files, *, certificates: bool) -> Settings:
    """Return the settings. Read each value on its own first, and then check the values together."""
    values: dict[str, Any] = {"listen": ()}
    for option in OPTIONS:
        if option.name not in ("config", "listen"):
            default = Given(() if option.default is None else (option.default,), f"--{option.name}")
            values[option.field] = _read_option(option, given.get(option.name, default), files)
    if certificates:
        check_readable(values, given, files.read)
    check_values(values, given, files.read)
    top = Settings(**values)
    doors = [_door(top, description, origin, files, certificates) for description, origin in _descriptions(given)]
    settings = replace(top, listen=tuple(door for door, _ in doors))
    check_settings(settings, given)
    for door, own in doors:
        check_settings(door.settings, own)
    check_doors(settings, given)
    return settings


def _read_option(option: Option, source: Given, files: Files) -> object:
    """Return the value of an option, or the tuple of the values of a repeatable one."""
    try:
        read = [_value(option, text, files) for text in source.texts]
    except ConfigError as error:
        raise ConfigError(f"{source.origin}: {error}") from None
    return tuple(read) if option.repeatable else (read[-1] if read else None)


def _descriptions(given: Mapping[str, Given]) -> Iterator[tuple[DoorDescription, str]]:
    """Yield the descriptions of the doors besides the first, each with its origin for messages."""
    source = given.get("listen", Given((), ""))
    for text in source.texts:
        try:
            description = read_door(text)
        except ConfigError as error:
            raise ConfigError(f"{source.origin}: {error}") from None
        yield description, f"{source.origin} {description.name}"


def _door(
    top: Settings, description: DoorDescription, origin: str, files: Files, certificates: bool
) -> tuple[Door, GivenAt]:
    """Return a door with its own values, and those of the top level for the rest; and the texts of its own values."""
    given = GivenAt(origin)
    for name, texts in description.texts.items():
        option = _door_option(name, origin)
        given[name] = Given(texts if option.repeatable else texts[-1:], f"{origin}: {name}")
    values: dict[str, Any] = {BY_NAME[name].field: _read_option(BY_NAME[name], source, files) for name, source in given.items()}
    values.setdefault("port", None)
    if certificates:
        check_readable(values, given, files.read)
    check_door_values(values, given)
    return Door(description.name, replace(top, **values)), given


def _value(option: Option, text: str, files: Files) -> object:
    """Return the value of an option. Its reader takes only text, except where it reads a file that it will follow later."""
    if option.name != "login-checker":
        return option.read(text)
    with files.read_elsewhere(Path(text.partition(":")[2])):
        return readers.login_checker(text, files.folder)
