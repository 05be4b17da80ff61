"""Defaults of the OpenSSL that comes with cryptography.

pyOpenSSL has no call for the number of session tickets, and no session is resumed (`owsla.tls.contexts`). In TLS 1.3 OpenSSL
sends two tickets all the same. Only its configuration file can change that. OpenSSL reads it when cryptography is imported: the
file that the environment variable OPENSSL_CONF names, or else `openssl.cnf` in a folder that is compiled in. The OpenSSL in the
wheels of cryptography has no such file, because the folder is that of the machine that built it.

A configuration of the operator stays in force: a file that OPENSSL_CONF names, or that of the system, which an OpenSSL of the
system reads. It may choose providers, such as those of FIPS 140.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
import mmap
import os
import re
import sys
from pathlib import Path
from typing import Final

VARIABLE: Final = "OPENSSL_CONF"

DEFAULTS: Final = Path(__file__).with_name("openssl.cnf")
"""Configuration file with the defaults of Owsla."""

_EXTENSION: Final = "cryptography.hazmat.bindings._rust"
"""Module that contains OpenSSL, or is linked to it."""

_FOLDER: Final = re.compile(rb'OPENSSLDIR: "([^"\0]+)"')
"""Text of OpenSSL_version(3) about the folder of the configuration file. It is in the module if OpenSSL is."""


def load_openssl() -> bool:
    """Import the OpenSSL of cryptography with Owsla's defaults. Return whether it has them.

    It does not if there is a configuration of the operator, or if the module was imported before. Call this when a process
    starts: the environment is changed for a moment.
    """
    if VARIABLE in os.environ or _EXTENSION in sys.modules or not DEFAULTS.is_file() or not _lacks_configuration():
        return False
    # The OpenSSL of Python itself is another one. It reads its configuration when this module is imported, which is done.
    assert hashlib
    os.environ[VARIABLE] = str(DEFAULTS)
    try:
        importlib.import_module(_EXTENSION)
    finally:
        del os.environ[VARIABLE]
    return True


def _lacks_configuration() -> bool:
    """Return whether the module contains OpenSSL, and the configuration file of this OpenSSL does not exist."""
    found = importlib.util.find_spec(_EXTENSION)
    if found is None or found.origin is None:
        return False
    try:
        with open(found.origin, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
            folder = _FOLDER.search(content)
            return folder is not None and not Path(os.fsdecode(folder[1]), "openssl.cnf").exists()
    except (OSError, ValueError):
        return False
