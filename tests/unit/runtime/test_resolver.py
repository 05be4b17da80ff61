"""Host name lookups cannot delay the end of the process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from queue import Queue
from typing import Any

from twisted.internet.address import IPv4Address, IPv6Address
from twisted.internet.interfaces import IHostnameResolver, IHostResolution
from twisted.trial.unittest import SynchronousTestCase
from zope.interface.verify import verifyObject

from owsla.runtime.resolver import Resolver


class Receiver:
    """A receiver that records its calls, and their thread."""

    def __init__(self) -> None:
        self.began: list[Any] = []
        self.addresses: list[IPv4Address | IPv6Address] = []
        self.completed: list[threading.Thread] = []

    def resolutionBegan(self, resolution: Any) -> None:
        self.began.append(resolution)

    def addressResolved(self, address: IPv4Address | IPv6Address) -> None:
        self.addresses.append(address)

    def resolutionComplete(self) -> None:
        self.completed.append(threading.current_thread())


class ResolverTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.calls: Queue[tuple[Callable[..., None], tuple[Any, ...]]] = Queue()
        self.resolver = Resolver(self)
        self.receiver = Receiver()

    def callFromThread(self, call: Callable[..., None], *args: Any) -> None:
        """Run a call that a thread has passed to the reactor."""
        self.assertTrue(threading.current_thread().daemon)
        self.calls.put((call, args))

    def resolved(self, name: str, *args: Any) -> list[tuple[type, str, str, int]]:
        """Look a name up, and return its addresses."""
        resolution = self.resolver.resolveHostName(self.receiver, name, *args)
        self.assertEqual(self.receiver.began, [resolution])
        self.assertEqual(resolution.name, name)
        verifyObject(IHostResolution, resolution)
        call, arguments = self.calls.get(timeout=30)
        call(*arguments)
        self.assertEqual(self.receiver.completed, [threading.current_thread()])
        return [(type(address), address.type, address.host, address.port) for address in self.receiver.addresses]

    def test_interface(self) -> None:
        """The resolver provides Twisted's interface."""
        verifyObject(IHostnameResolver, self.resolver)

    def test_addresses(self) -> None:
        """An address comes with the requested port, in the reactor's thread."""
        self.assertEqual(self.resolved("127.0.0.1", 5672), [(IPv4Address, "TCP", "127.0.0.1", 5672)])

    def test_ipv6(self) -> None:
        """IPv6 addresses are resolved, too."""
        self.assertEqual(self.resolved("::1", 1, [IPv6Address], "UDP"), [(IPv6Address, "UDP", "::1", 1)])

    def test_other_family(self) -> None:
        """Addresses of a family that was not requested are left out."""
        self.assertEqual(self.resolved("::1", 1, [IPv4Address]), [])

    def test_no_such_name(self) -> None:
        """A lookup of an unknown or impossible name completes without an address."""
        self.assertEqual(self.resolved("no-such-name.invalid"), [])

    def test_no_name(self) -> None:
        """A lookup of a name with a label of more than 63 bytes completes without an address."""
        self.assertEqual(self.resolved("x" * 70 + ".example"), [])
