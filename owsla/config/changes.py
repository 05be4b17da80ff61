"""Changes of settings in a running process: which ones it follows, and which ones take a restart. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Final

from owsla.config.addresses import BrokerAddress
from owsla.config.options import BY_NAME, OPTIONS, Option
from owsla.config.settings import Door, Settings


@dataclass(frozen=True, slots=True)
class SettingsChanges:
    """Differences between the settings of a running process and those that were read now. Names only, no values: some are
    secret.
    """

    settings: Settings
    """Settings of the process from now on: the new values of what can change, and the present values of the rest."""
    renewed: Settings
    """Settings of a worker that starts now, or of the parent after a rolling restart."""
    applied: tuple[str, ...]
    """Names of the options whose new values the process uses from now on."""
    rolling: tuple[str, ...]
    """Names of the options that new workers use (a rolling restart), or, without workers, the process after a restart."""
    restart: tuple[str, ...]
    """Names of the options that take a restart of the whole process."""

    def __bool__(self) -> bool:
        """Return whether anything differs."""
        return bool(self.applied or self.rolling or self.restart)


_OF_DOORS: Final = [option for option in OPTIONS if option.door]


def compare_settings(present: Settings, new: Settings) -> SettingsChanges:
    """Return what changes when a process with the settings `present` reads the settings `new`.

    A change that depends on another one (`Option.needs`) waits for a restart together with it. A door that comes or goes takes
    a restart, too: until then the present doors stay, and follow their descriptions. Their order means nothing. An
    option of a door is named `DOOR.OPTION`, unless it has the values that the option has at the top level.
    """
    top = _compare(present, new, [option for option in OPTIONS if option.name not in ("config", "listen")])
    applied, rolling, restart = top.applied, top.rolling, top.restart
    described = {door.name: door for door in new.listen}
    if described.keys() != {door.name for door in present.listen}:
        restart.append("listen")
    doors, renewed = [], []
    for before in present.listen:
        after = described.get(before.name, before)
        own = _compare(before.settings, after.settings, _OF_DOORS)
        doors.append(_door(after, replace(new, **top.kept), own.kept))
        renewed.append(_door(after, replace(new, **top.kept_by_parent), own.kept_by_parent))
        for names, changed in ((applied, own.applied), (rolling, own.rolling), (restart, own.restart)):
            names += [
                f"{after.name}.{name}"
                for name in changed
                if _values(name, before.settings, after.settings) != _values(name, present, new)
            ]
    top.kept["listen"], top.kept_by_parent["listen"] = tuple(doors), tuple(renewed)
    return SettingsChanges(
        replace(new, **top.kept), replace(new, **top.kept_by_parent), tuple(applied), tuple(rolling), tuple(restart)
    )


def _door(door: Door, top: Settings, kept: Mapping[str, Any]) -> Door:
    """Return a door with its own values, but for those that are kept, and the values of the top level for the other options."""
    own = {option.field: getattr(door.settings, option.field) for option in _OF_DOORS}
    return Door(door.name, replace(top, **own | dict(kept)))


@dataclass(frozen=True, slots=True)
class _Comparison:
    """Differences of two settings: present values, by field, that stay for now, and in any case; and names of options."""

    kept: dict[str, Any]
    kept_by_parent: dict[str, Any]
    applied: list[str]
    rolling: list[str]
    restart: list[str]


def _compare(present: Settings, new: Settings, options: Iterable[Option]) -> _Comparison:
    """Compare the values of some options."""
    changed = [option for option in options if _differ(option, present, new)]
    waiting = {option.name: option for option in changed if _takes_restart(option, present, new)}
    result = _Comparison({}, {}, [], [], [])
    for option in changed:
        decisive = next((waiting[name] for name in (option.name, *option.needs) if name in waiting), None)
        if decisive is None:
            result.applied.append(option.name)
            continue
        result.kept[option.field] = getattr(present, option.field)
        if _rolling(decisive, present, new):
            result.rolling.append(option.name)
        else:
            result.restart.append(option.name)
            result.kept_by_parent[option.field] = result.kept[option.field]
    return result


def _values(name: str, before: Settings, after: Settings) -> tuple[Any, Any]:
    field = BY_NAME[name].field
    return getattr(before, field), getattr(after, field)


def _differ(option: Option, present: Settings, new: Settings) -> bool:
    before, after = getattr(present, option.field), getattr(new, option.field)
    if option.name == "broker-password-file" and before == after is not None:
        return _passwords(present.brokers) != _passwords(new.brokers)
    if option.name == "broker" and new.broker_password_file is not None:
        return _without_passwords(before) != _without_passwords(after)
    return bool(before != after)


def _takes_restart(option: Option, present: Settings, new: Settings) -> bool:
    """Return whether a process cannot follow another value of an option.

    Brokers that have no host and vhost in common with the present ones are another cluster: connections would not move to it
    together. And the embedded broker cannot come or go. Connections that wait to be accepted were made for a door with a PROXY
    protocol header, or for one without.
    """
    return (
        option.restart
        or (option.name == "broker" and not _places(present.brokers) & _places(new.brokers))
        or (option.name == "proxy-protocol" and bool(present.proxy_protocol) != bool(new.proxy_protocol))
    )


def _rolling(option: Option, present: Settings, new: Settings) -> bool:
    """Return whether new workers use another value of an option. The embedded broker belongs to their parent."""
    if option.name == "broker":
        return bool(present.brokers and new.brokers)
    return option.reload == "rolling restart"


def _places(addresses: Iterable[BrokerAddress]) -> set[tuple[str, int, str]]:
    return {(address.host, address.port, address.vhost) for address in addresses}


def _passwords(addresses: Iterable[BrokerAddress]) -> set[str]:
    return {address.password for address in addresses}


def _without_passwords(addresses: Iterable[BrokerAddress]) -> list[BrokerAddress]:
    return [replace(address, password="") for address in addresses]
