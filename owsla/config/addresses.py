"""Addresses of brokers, as amqp:// and amqps:// URLs, and of their management API, as http:// and https:// URLs."""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass, field, replace
from urllib.parse import quote, unquote_to_bytes

import idna

from owsla.errors import ConfigError

_HOST_NAME = re.compile(r"[^\s:/?#\[\]@%,\x00-\x20\x7f]+")
_BAD_ESCAPE = re.compile(r"%(?![0-9A-Fa-f]{2})")


@dataclass(frozen=True, slots=True)
class BrokerAddress:
    """A broker's host, port and login. Neither `str()` nor `repr()` shows the password."""

    host: str
    port: int = 5672
    username: str = "guest"
    """Name of the user. Empty: the broker takes it from the client certificate (SASL mechanism EXTERNAL)."""
    password: str = field(default="guest", repr=False)
    vhost: str = "/"
    tls: bool = False
    names_user: bool = field(default=True, repr=False, compare=False)
    """True if the URL has a user name; the default user of RabbitMQ is guest."""

    @classmethod
    def parse(cls, url: str) -> BrokerAddress:
        """Read `amqp://user:password@host:port/vhost` or `amqps://...`; raise `ConfigError` if that is not possible.

        The syntax is that of RabbitMQ's URI specification: user, password and vhost are percent-encoded, and missing parts take
        the defaults. One deviation: `amqp://host/` means the vhost `/`, as `amqp://host` does. In the specification it is the
        vhost with an empty name, which RabbitMQ cannot have. No message quotes the URL, because it may contain a password.
        """
        scheme, separator, rest = url.partition("://")
        if not separator:
            raise ConfigError("the URL of a broker has the form amqp://user:password@host:port/vhost")
        if scheme.lower() not in ("amqp", "amqps"):
            raise ConfigError("the URL of a broker begins with amqp:// or amqps://")
        tls = scheme.lower() == "amqps"
        for character, escape in (("?", "%3f"), ("#", "%23")):
            if character in rest:
                raise ConfigError(
                    f"the URL of a broker takes no query parameters or fragment ({character} in a name or password is {escape})"
                )
        authority, _, path = rest.partition("/")
        if "@" in path:
            raise ConfigError("a / in the user name or password is written %2f, an @ in the vhost %40")
        login, location = _login_and_location(authority)
        address = cls(*_host_and_port(location, 5671 if tls else 5672), tls=tls, names_user=login is not None)
        if login is not None:
            username, password = login
            if not username:
                raise ConfigError("there is no user name before the @")
            address = replace(address, username=username)
            if password is not None:
                address = replace(address, password=password)
        if "/" in path:
            raise ConfigError("a / in the vhost is written %2f")
        if path:
            address = replace(address, vhost=_decoded(path, "vhost"))
        if len(address.vhost.encode()) > 255:  # an AMQP short string
            raise ConfigError("the vhost is longer than 255 bytes")
        return address

    @property
    def external(self) -> bool:
        """True if the login is with the client certificate (SASL mechanism EXTERNAL), without a name and a password."""
        return not self.username

    def with_certificate(self) -> BrokerAddress:
        """Return the address with a login by client certificate, unless its URL names a user or is not `amqps://`."""
        return self if self.names_user or not self.tls else replace(self, username="", password="")

    def same_login(self, other: BrokerAddress) -> bool:
        """Return whether both are the same user at the same broker and vhost, perhaps with different passwords."""
        return replace(self, password=other.password) == other

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        scheme = "amqps" if self.tls else "amqp"
        user = "" if self.external else f"{quote(self.username, safe='')}@"
        return f"{scheme}://{user}{host}:{self.port}/{quote(self.vhost, safe='')}"


@dataclass(frozen=True, slots=True)
class ManagementAddress:
    """Address of the management API of a broker. Neither `str()` nor `repr()` shows the password."""

    host: str
    port: int = 15672
    path: str = ""
    """Prefix of all paths (`management.path_prefix`), without a slash at its end."""
    username: str = ""
    """Name of the user. Empty: the user of the broker, with its password."""
    password: str = field(default="", repr=False)
    tls: bool = False

    @classmethod
    def parse(cls, url: str) -> ManagementAddress:
        """Read `http://user:password@host:port` or `https://...`; raise `ConfigError` if that is not possible.

        Without a port it is RabbitMQ's own, 15672 or 15671. No message quotes the URL, because it may contain a password.
        """
        scheme, separator, rest = url.partition("://")
        if not separator or scheme.lower() not in ("http", "https"):
            raise ConfigError("the URL of the management API has the form http://host:port or https://host:port")
        tls = scheme.lower() == "https"
        if "?" in rest or "#" in rest:
            raise ConfigError("the URL takes no query or fragment (? in a name or password is %3f, and # is %23)")
        authority, _, path = rest.partition("/")
        if "@" in path:
            raise ConfigError("a / in the user name or password is written %2f")
        login, location = _login_and_location(authority)
        if any(not "!" <= character <= "~" for character in path):
            raise ConfigError("the path in the URL has characters that are written with %")
        path = path.rstrip("/").removesuffix("api").rstrip("/")
        address = cls(*_host_and_port(location, 15671 if tls else 15672), path=f"/{path}" if path else "", tls=tls)
        if login is None:
            return address
        username, password = login
        if not username or password is None:
            raise ConfigError("give a user and a password, or neither: then they are those of the broker")
        return replace(address, username=username, password=password)

    @property
    def authority(self) -> str:
        """Host and port, as in a URL."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"

    def __str__(self) -> str:
        user = f"{quote(self.username, safe='')}@" if self.username else ""
        return f"{'https' if self.tls else 'http'}://{user}{self.authority}{self.path}"


def _login_and_location(authority: str) -> tuple[tuple[str, str | None] | None, str]:
    """Split the part of a URL between `//` and `/` into the user name and password, if they are there, and host and port."""
    userinfo, at, location = authority.rpartition("@")
    if "@" in userinfo:
        raise ConfigError("an @ in the user name or password is written %40")
    if not at:
        return None, location
    username, colon, password = userinfo.partition(":")
    return (_decoded(username, "user name"), _decoded(password, "password") if colon else None), location


def _decoded(text: str, what: str) -> str:
    if _BAD_ESCAPE.search(text):
        raise ConfigError(f"a % in the {what} is written %25")
    try:
        # A surrogate can only come from an argument that is not UTF-8.
        return unquote_to_bytes(text.encode()).decode()
    except UnicodeError:
        raise ConfigError(f"the {what} is not UTF-8") from None


def _host_and_port(location: str, port: int) -> tuple[str, int]:
    if location.startswith("["):
        host, bracket, after = location[1:].partition("]")
        try:
            ipaddress.IPv6Address(host)
        except ValueError:
            bracket = ""
        if not bracket or (after and not after.startswith(":")):
            raise ConfigError("the text in brackets must be an IPv6 address, as in amqp://[::1]:5672")
        port_text = after
    else:
        host, colon, digits = location.partition(":")
        if ":" in digits:
            raise ConfigError("an IPv6 address is written in brackets, as in amqp://[::1]:5672")
        port_text = colon + digits
        if not host:
            raise ConfigError("the URL of the broker has no host name")
        if not _HOST_NAME.fullmatch(host):
            raise ConfigError("the host name in the URL of the broker contains characters that are not allowed in host names")
        try:
            idna.encode(host)  # as Twisted does before it resolves a name
        except UnicodeError:
            if "_" in host:
                raise ConfigError(
                    "the host name in the URL of the broker contains an underscore, which DNS does not allow: "
                    "give its IP address, or an alias without one"
                ) from None
            raise ConfigError(
                "the host name in the URL of the broker is not allowed in DNS; a valid name is rabbit.example.com"
            ) from None
    if port_text in ("", ":"):
        return host, port
    digits = port_text[1:]
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 5 and 1 <= int(digits) <= 65535):
        raise ConfigError("the port in the URL of the broker is not a number from 1 to 65535")
    return host, int(digits)
