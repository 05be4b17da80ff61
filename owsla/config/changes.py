"""Changes of settings in a running process: which ones it follows, and which ones take a restart. Pure."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

from owsla.config.addresses import BrokerAddress
from owsla.config.options import OPTIONS, Option
from owsla.config.settings import Settings


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


def compare_settings(present: Settings, new: Settings) -> SettingsChanges:
    """Return what changes when a process with the settings `present` reads the settings `new`.

    A change that depends on another one (`Option.needs`) waits for a restart together with it.
    """
    changed = [option for option in OPTIONS if option.name != "config" and _differ(option, present, new)]
    waiting = {option.name: option for option in changed if _takes_restart(option, present, new)}
    kept: dict[str, Any] = {}
    kept_by_parent: dict[str, Any] = {}
    applied: list[str] = []
    rolling: list[str] = []
    restart: list[str] = []
    for option in changed:
        decisive = waiting.get(option.name) or waiting.get(option.needs)
        if decisive is None:
            applied.append(option.name)
            continue
        kept[option.field] = getattr(present, option.field)
        if _rolling(decisive, present, new):
            rolling.append(option.name)
        else:
            restart.append(option.name)
            kept_by_parent[option.field] = kept[option.field]
    settings, renewed = replace(new, **kept), replace(new, **kept_by_parent)
    return SettingsChanges(settings, renewed, tuple(applied), tuple(rolling), tuple(restart))


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
    together. And the embedded broker cannot come or go.
    """
    return option.restart or (option.name == "broker" and not _places(present.brokers) & _places(new.brokers))


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
