"""Checks of the files that the settings name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path
from typing import Final

from cryptography import x509

from ..config.checks import device_tls_files
from ..config.settings import Settings
from ..errors import ConfigError
from ..runtime.files import Files
from ..runtime.sockets import is_loopback
from ..tls.certificates import read_certificates
from ..tls.device import load_device_tls
from .certificates import (
    FindRoot,
    check_authorities,
    check_client_certificate,
    check_responses,
    check_revocation_lists,
    check_server_certificate,
    check_together,
    is_issuer,
)
from .deny_list import check_deny_list
from .findings import Finding, Level, fail, ok, warn

BROKER_FILES: Final = frozenset({"broker-ca", "broker-cert", "broker-key"})
"""Subjects of findings without which there are no connections to brokers."""


def check_files(settings: Settings, files: Files, now: datetime, find_root: FindRoot) -> Iterator[Finding]:
    """Check all files that the settings name, and that were not read with the settings."""
    # Doors mostly have files in common, of which there is one line.
    yield from dict.fromkeys(
        finding for door in settings.doors for finding in _check_door(door.settings, files, now, find_root)
    )
    if settings.deny is not None:
        yield from check_deny_list(settings, settings.deny, files.read, now)
    if settings.broker_ca is not None:
        yield from check_authorities("broker-ca", settings.broker_ca, files.read, now)
    if settings.broker_cert is not None and settings.broker_key is not None:
        yield from check_client_certificate(settings.broker_cert, settings.broker_key, files.read, now)


def check_doors(settings: Settings, files: Files) -> Iterator[Finding]:
    """Check how devices come in."""
    for door in settings.doors:
        own = door.settings
        if not own.tls and isinstance(own.port, int) and not is_loopback(own.interface):
            where = f"on {own.interface}" if own.interface else "on all interfaces"
            yield warn("door", f"{door.name}: plain TCP {where}: what devices send and get can be read and changed on the way")
        if own.on_long == "skip" and own.device_ack is not None:
            text = "a skipped line has no number, so a device that counts its lines mistakes what is acknowledged after it"
            yield warn("door", f"{door.name}: --on-long skip with --device-ack: {text}")
        if isinstance(own.port, Path):
            yield from _check_unix_path(door.name, own.port, files.folder)


def _check_unix_path(door: str, port: Path, folder: Path) -> Iterator[Finding]:
    path = folder / port
    if path.exists() and not path.is_socket():
        yield fail("door", f"{door}: {port} exists and is not a socket")
    elif not path.parent.is_dir():
        yield fail("door", f"{door}: {port}: there is no folder {path.parent}")
    elif not os.access(path.parent, os.W_OK | os.X_OK):
        yield fail("door", f"{door}: {port}: no socket can be made in {path.parent}, which is not writable")


def _check_door(settings: Settings, files: Files, now: datetime, find_root: FindRoot) -> Iterator[Finding]:
    """Check the files of a door."""
    if settings.tls:
        findings = list(_check_device_files(settings, files, now, find_root))
        yield from findings
        if settings.cert and not any(finding.level is Level.FAIL for finding in findings):
            yield from _load(settings, files)
    yield from _check_dialect(settings)


def _check_device_files(settings: Settings, files: Files, now: datetime, find_root: FindRoot) -> Iterator[Finding]:
    """Check the files for connections of devices, each on its own."""

    def find(chain: Sequence[x509.Certificate]) -> str:
        if any(is_issuer(root, chain[-1]) for root in _client_authorities(settings, files)):
            return "--client-ca"
        return find_root(chain)

    if settings.cert:
        pairs = list(zip(settings.cert, settings.key, strict=True))
        for cert, key in pairs:
            yield from check_server_certificate(cert, key, files.read, now, find)
        yield from check_together(pairs, files.read)
        yield from check_responses(settings.ocsp_response, settings.cert, files.read, now)
    else:
        yield from _check_development_certificate(settings.certs_dir, files, now)
    if settings.client_ca is not None:
        yield from check_authorities("client-ca", settings.client_ca, files.read, now)
        if settings.client_crl is not None:
            yield from check_revocation_lists(settings.client_crl, settings.client_ca, settings.crl_policy, files.read, now)


def _client_authorities(settings: Settings, files: Files) -> Sequence[x509.Certificate]:
    try:
        return read_certificates(settings.client_ca, files.read) if settings.client_ca is not None else ()
    except ConfigError:
        return ()  # which has a line of its own


def _load(settings: Settings, files: Files) -> Iterator[Finding]:
    """Load the files for connections of devices as a start does. What it refuses is a fault, also if no check knows it."""
    try:
        load_device_tls(device_tls_files(settings, list(zip(settings.cert, settings.key, strict=True))), files.read)
    except ConfigError as error:
        yield fail("certificate", str(error))


def _check_development_certificate(certs_dir: Path, files: Files, now: datetime) -> Iterator[Finding]:
    """Check what a start would do without `--cert`. It makes what is missing; a check does not."""
    folder = files.folder / certs_dir
    names = ("ca.pem", "ca.key", "server.pem", "server.key")
    missing = [name for name in names if not (folder / name).exists()]
    if missing:
        existing = next(parent for parent in (folder, *folder.parents) if parent.exists())
        if not existing.is_dir():
            yield fail("certificate", f"{certs_dir}: no development certificate can be made there: {existing} is not a folder")
        elif not os.access(existing, os.W_OK | os.X_OK):
            yield fail("certificate", f"{certs_dir}: no development certificate can be made there: {existing} is not writable")
        else:
            made = "a development certificate" if len(missing) == len(names) else ", ".join(missing)
            yield ok("certificate", f"{certs_dir}: the start will make {made} there (no --cert is given)")
        return
    cert, key = certs_dir / "server.pem", certs_dir / "server.key"
    for finding in check_server_certificate(cert, key, files.read, now, lambda chain: ""):
        if finding.subject in ("certificate", "key"):  # the start renews it, and devices trust ca.pem
            yield finding


def _check_dialect(settings: Settings) -> Iterator[Finding]:
    dialect = settings.dialect
    if dialect is None:
        return
    try:
        dialect.configured(settings)
    except ConfigError as error:
        yield fail("dialect", f"--dialect: {error}")
    else:
        yield ok("dialect", dialect.__name__)
