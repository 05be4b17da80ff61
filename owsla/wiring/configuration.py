"""Configuration of a process: its settings, and the TLS material that is built from the files that they name.

Everything that can fail happens while a configuration is loaded. So a process that loads another one while it runs, for a
reload, keeps the present one if that fails.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from twisted.logger import Logger

from ..config.changes import SettingsChanges, compare_settings
from ..config.checks import device_tls_files
from ..config.deny_list import DenyList, read_deny_list
from ..config.options import OPTIONS, Option
from ..config.passwords import read_token
from ..config.settings import Door, Settings
from ..config.sources import load_settings, write_warning
from ..dialects import Factory
from ..errors import ConfigError
from ..http import Tokens
from ..interfaces import FIRST_DOOR
from ..runtime.files import Files
from ..tls.broker import BrokerTLSMaterial, load_broker_tls
from ..tls.development import development_certificates
from ..tls.device import DeviceTLSMaterial, PreviousMaterial, load_device_tls
from ..tls.expiry import ServedCertificate
from ..tls.inventory import InventoryEntry

_log = Logger(namespace="owsla")


@dataclass(frozen=True, slots=True)
class Configuration:
    """Settings of a process, and the TLS material and the deny list that are built from the files that they name."""

    argv: Sequence[str]
    """Arguments of the command line that the settings were read from."""
    settings: Settings
    files: Files
    device_tls: Mapping[str, DeviceTLSMaterial]
    """TLS material of the doors with TLS, by name. Doors with the same files share it."""
    broker_tls: BrokerTLSMaterial
    deny_list: DenyList
    tokens: Tokens = field(default_factory=Tokens)
    dialects: Mapping[str, Factory] = field(default_factory=dict)
    """Factories of the dialects of connections that come after a reload, by door, where it changes something about them."""
    changes: SettingsChanges | None = None
    """Differences from the settings that were in force before; `None` at the start. `settings` has what applies of them."""

    @property
    def broker_password_file(self) -> Path | None:
        """Path of the file with the broker's password, which does not depend on the working folder of the process."""
        path = self.settings.broker_password_file
        return None if path is None else self.files.folder / path

    @property
    def development_authority(self) -> Path | None:
        """Certificate of the authority that devices must trust where the server certificate is a development certificate."""
        developing = any(door.settings.tls and not door.settings.cert for door in self.settings.doors)
        return self.files.folder / self.settings.certs_dir / "ca.pem" if developing else None


class CurrentConfiguration:
    """Configuration in force. A reload replaces it, so parts that need what it holds later ask for it each time."""

    def __init__(self, configuration: Configuration) -> None:
        self._configuration = configuration

    @property
    def configuration(self) -> Configuration:
        return self._configuration

    @property
    def settings(self) -> Settings:
        return self._configuration.settings

    @property
    def files(self) -> Files:
        return self._configuration.files

    @property
    def tokens(self) -> Tokens:
        """Tokens of clients of the API over TCP."""
        return self._configuration.tokens

    @property
    def device_tls(self) -> tuple[DeviceTLSMaterial, ...]:
        """TLS material of all doors, without repetitions."""
        return tuple(dict.fromkeys(self._configuration.device_tls.values()))

    def shown(self) -> ServedCertificate | None:
        """Return the certificate that devices are shown; of several the one that expires first. `None` without TLS."""
        certificates = [certificate for material in self.device_tls for certificate in material.certificates]
        return min(certificates, key=lambda certificate: certificate.not_after, default=None)

    def broker_certificates(self) -> tuple[ServedCertificate, ...]:
        """Return the certificate that brokers are shown (`--broker-cert`), if there is one."""
        path, certificate = self.settings.broker_cert, self._configuration.broker_tls.certificate
        if path is None or certificate is None:
            return ()
        return (ServedCertificate(str(path), certificate.not_valid_after_utc.timestamp()),)

    def inventory(self, now: float) -> Iterator[tuple[str | None, InventoryEntry]]:
        """Yield a door and an entry for each of its certificates and lists, then `None` and the entries for the broker."""
        for door, material in self._configuration.device_tls.items():
            for entry in material.inventory(now):
                yield door, entry
        for entry in self._configuration.broker_tls.inventory:
            yield None, entry

    def workers_replaced(self) -> None:
        """Note that all workers have started with the settings that were read last, in a rolling restart."""
        changes = self._configuration.changes
        if changes is not None:
            self._configuration = replace(self._configuration, settings=changes.renewed, changes=None)

    def replace(self, configuration: Configuration) -> None:
        """Put another configuration in force."""
        self._configuration = configuration


def load_configuration(
    argv: Sequence[str],
    environ: Mapping[str, str] = os.environ,
    warn: Callable[[str], None] = write_warning,
    *,
    files: Files | None = None,
    make_certificates: bool = True,
) -> Configuration:
    """Read the settings of all sources (`load_settings`) and the files that they name. Raise `ConfigError` for a fault.

    `files` may have the contents of files already, and has all of them in the end. Without `--cert`, `make_certificates` makes
    the development certificate if it is missing; a worker takes that of its parent.
    """
    files = files or Files()
    settings = load_settings(argv, environ, warn, files, certificates="read")
    return configure(argv, settings, files, make_certificates=make_certificates)


def reload_configuration(
    configuration: Configuration, files: Files, *, make_certificates: bool = True, serves_devices: bool = True
) -> Configuration:
    """Read the settings again from the sources of a configuration. What takes a restart keeps its value.

    Warnings were printed at the start. A parent of workers makes no dialects, because it serves no devices.
    """
    settings = load_settings(configuration.argv, warn=lambda text: None, files=files, certificates="read")
    changes = compare_settings(configuration.settings, settings)
    new = configure(
        configuration.argv,
        changes.settings,
        files,
        make_certificates=make_certificates,
        previous=configuration,
        keeps_broker="broker" in (*changes.rolling, *changes.restart),
    )
    dialects = _changed_dialects(configuration.settings, changes.settings) if serves_devices else {}
    return replace(new, changes=changes, dialects=dialects)


def make_dialect(door: Door) -> Factory | None:
    """Return what makes the dialect of a connection of a door; `None` without a dialect."""
    dialect = door.settings.dialect
    if dialect is None:
        return None
    try:
        return dialect.configured(door.settings)
    except ConfigError as error:
        raise ConfigError(f"{_of_door(door.name)}--dialect: {error}") from None


def _changed_dialects(present: Settings, new: Settings) -> dict[str, Factory]:
    """Return the factories of dialects of the doors where something about logins changes."""
    dialects = {}
    logins = {door.name: _logins(door.settings) for door in present.doors}
    for door in new.doors:
        if logins.get(door.name) != _logins(door.settings):
            dialect = make_dialect(door)
            if dialect is not None:
                dialects[door.name] = dialect
    return dialects


def _logins(settings: Settings) -> tuple[object, ...]:
    return settings.login_checker, settings.login_timeout


def _of_door(name: str) -> str:
    """Return the name of a door, to be put before an error message; empty for the door of the top-level options."""
    return "" if name == FIRST_DOOR else f"--listen {name}: "


def changed_files(old: Configuration, new: Configuration) -> tuple[str, ...]:
    """Return the names of the options whose files have another content in `new`."""
    names = []
    changed: set[Path] = set()
    for option in OPTIONS:
        paths = _paths(option, new.settings)
        if option.name == "certs-dir":
            paths = {path for path in new.files.paths if path.parent == new.settings.certs_dir}
        if differing := {path for path in paths if new.files.differs(old.files, path)}:
            names.append(option.name)
            changed |= differing
    for door in new.settings.listen:
        # A file that the top level names, too, is mentioned there.
        names += [
            f"{door.name}.{option.name}"
            for option in OPTIONS
            if option.door and any(new.files.differs(old.files, path) for path in _paths(option, door.settings) - changed)
        ]
    return tuple(names)


def _paths(option: Option, settings: Settings) -> set[Path]:
    """Return the files that an option names."""
    value = getattr(settings, option.field, None)
    paths = value if isinstance(value, tuple) else (value,)
    # The path of a unix socket is not that of a file.
    return {path for path in paths if isinstance(path, Path) and option.name not in ("port", "control")}


def configure(
    argv: Sequence[str],
    settings: Settings,
    files: Files,
    *,
    make_certificates: bool = True,
    previous: Configuration | None = None,
    keeps_broker: bool = False,
) -> Configuration:
    """Return the configuration of some settings (`load_configuration`). What `previous` has of the same files is used again.
    `keeps_broker` is true if another broker waits for a restart.
    """
    device_tls = _load_device_tls(settings, files, make_certificates, previous)
    if previous is not None and keeps_broker:
        broker_tls = previous.broker_tls  # its files may have gone, together with that broker
    else:
        broker_tls = load_broker_tls(settings.broker_ca, settings.broker_cert, settings.broker_key, files.read)
    return Configuration(
        argv, settings, files, device_tls, broker_tls, _deny_list(settings, files, previous), _tokens(settings, files)
    )


def _tokens(settings: Settings, files: Files) -> Tokens:
    """Return the tokens of clients of the API over TCP."""
    paths = settings.http_token_file, settings.http_read_token_file
    return Tokens(*(None if path is None else read_token(path, files.read) for path in paths))


def _deny_list(settings: Settings, files: Files, previous: Configuration | None) -> DenyList:
    """Return the list in the file of `--deny`: that of the previous configuration if the file is the same."""
    path = settings.deny
    if path is None:
        return DenyList()
    if previous is not None and previous.settings.deny == path:
        files.read(path)
        if not files.differs(previous.files, path):
            return previous.deny_list
    return read_deny_list(path, files.read)


def announce_development_certificate(configuration: Configuration) -> None:
    """Log which authority devices should trust, where a development certificate is in use."""
    authority = configuration.development_authority
    if authority is not None:
        _log.info("Development certificate in use; devices should trust {ca}", ca=str(authority.resolve()))


def _load_device_tls(
    settings: Settings, files: Files, make_certificates: bool, previous: Configuration | None
) -> dict[str, DeviceTLSMaterial]:
    """Return the TLS material of each door with TLS. What several doors, or `previous`, have of the same files is shared."""
    known: list[PreviousMaterial] = []
    if previous is not None:
        present = previous.files
        known = [
            PreviousMaterial(material, lambda path: not files.differs(present, path))
            for material in previous.device_tls.values()
        ]
    loaded = {}
    for door in settings.doors:
        if not door.settings.tls:
            continue
        device_files = device_tls_files(door.settings, _server_files(door.settings, files, make_certificates))
        try:
            for path in device_files.paths:
                files.read(path)
            loaded[door.name] = load_device_tls(device_files, files.read, previous=known)
        except ConfigError as error:
            raise ConfigError(f"{_of_door(door.name)}{error}") from None
        known.insert(0, PreviousMaterial(loaded[door.name], lambda path: True))
    return loaded


def _server_files(settings: Settings, files: Files, make: bool) -> list[tuple[Path, Path]]:
    """Return the files of the certificates for devices, and of their keys: those of a development certificate by default."""
    if settings.cert:
        return list(zip(settings.cert, settings.key, strict=True))
    folder = settings.certs_dir
    if make:
        with files.read_elsewhere(folder):
            development_certificates(files.folder / folder, socket.gethostname())
    return [(folder / "server.pem", folder / "server.key")]
