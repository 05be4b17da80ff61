"""Choice of the server certificates for a server name (SNI, RFC 6066). Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Generic, Protocol, TypeVar

_WILDCARD = "*."


class NamedCertificate(Protocol):
    """A server certificate, as the choice sees it."""

    @property
    def names(self) -> frozenset[str]:
        """DNS names in lower case; `*.example.com` covers one label."""

    @property
    def key_type(self) -> str:
        """`RSA` or `ECDSA`. OpenSSL chooses among certificates of several types by what a client supports."""


C = TypeVar("C", bound=NamedCertificate)
T = TypeVar("T")


def covering(name: str) -> tuple[str, ...]:
    """Return the names of certificates that fit a server name, the better one first: itself, and the wildcard."""
    label, _, parent = name.partition(".")
    return (name, _WILDCARD + parent) if label and parent and label != "*" else (name,)


def same_use(certificates: Sequence[C]) -> tuple[C, C] | None:
    """Return the first two certificates with the same names and the same key type, of which one would never be used."""
    seen: dict[tuple[frozenset[str], str], C] = {}
    for certificate in certificates:
        first = seen.setdefault((certificate.names, certificate.key_type), certificate)
        if first is not certificate:
            return first, certificate
    return None


class ServerNames(Generic[T]):
    """Values by server name, with a default for clients that send no name, or one that fits none."""

    __slots__ = ("_by_name", "default")

    def __init__(self, default: T, by_name: Mapping[str, T]) -> None:
        self.default = default
        # With one certificate, or one for each key type, no name has to be looked up.
        self._by_name = {} if all(value is default for value in by_name.values()) else dict(by_name)

    @classmethod
    def of(cls, certificates: Sequence[C], make: Callable[[tuple[C, ...]], T]) -> ServerNames[T]:
        """Group certificates by server name, one for each key type, and call `make` once for each different group.

        For a server name a certificate with this name precedes one with a wildcard, and an earlier one a later one. Clients
        without a fitting name get the first certificate, and those of other key types that have the same names.
        """
        made: dict[tuple[C, ...], T] = {}

        def group(*ranks: Sequence[C]) -> T:
            chosen: dict[str, C] = {}
            for rank in ranks:
                for certificate in rank:
                    chosen.setdefault(certificate.key_type, certificate)
            key = tuple(certificate for certificate in certificates if certificate in chosen.values())
            if key not in made:
                made[key] = make(key)
            return made[key]

        first = certificates[0]
        default = group([each for each in certificates if each.names == first.names])
        names = sorted({name for certificate in certificates for name in certificate.names})
        return cls(
            default,
            {name: group(*([one for one in certificates if fit in one.names] for fit in covering(name))) for name in names},
        )

    @property
    def only(self) -> T | None:
        """The value, if it is the same for all names; otherwise `None`."""
        return None if self._by_name else self.default

    def find(self, name: bytes | None) -> T:
        """Return what belongs to the server name that a client sent, if any."""
        if name is None or not self._by_name:
            return self.default
        for fit in covering(name.decode("ascii", "replace").lower().rstrip(".")):
            if fit in self._by_name:
                return self._by_name[fit]
        return self.default

    def values(self) -> list[T]:
        """Return everything that `find` may return, the default first."""
        return list(dict.fromkeys([self.default, *self._by_name.values()]))
