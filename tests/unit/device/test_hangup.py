"""Tests of peers that hang up while their connection is not read, on real sockets."""

from __future__ import annotations

import errno
import os
import socket
from typing import Any, cast

from twisted.trial.unittest import SynchronousTestCase

from owsla.device.hangup import PATIENCE, HangupWatch

from ._sockets import Loop, reset, tcp_pair


class Paused:
    """Connection that is not read."""

    def __init__(self) -> None:
        self.socket, self.peer = tcp_pair()
        self.discarding = False
        self.awaiting_turn = False
        self.hung_up = 0
        self.room = False
        """True if there is room for the data that the peer sent before it closed."""
        self.told = 0

    def fileno(self) -> int:
        return self.socket.fileno()

    def peerClosed(self) -> bool:
        self.told += 1
        return self.room

    def hungUp(self) -> None:
        self.hung_up += 1

    def close(self) -> None:
        self.socket.close()
        self.peer.close()


class FullSet:
    """Epoll set of a system that watches no more sockets."""

    def __init__(self, epoll: Any) -> None:
        self._epoll = epoll

    def register(self, fd: int, events: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def __getattr__(self, name: str) -> Any:
        return getattr(self._epoll, name)


class HangupTests(SynchronousTestCase):
    def setUp(self) -> None:
        self.descriptors = set(os.listdir("/proc/self/fd"))
        self.loop = cast(Any, Loop())
        self.watch = HangupWatch(self.loop)
        self.watch.start(self.fail)
        self.connections: list[Paused] = []

    def tearDown(self) -> None:
        self.watch.stop()
        for connection in self.connections:
            connection.close()
        self.assertEqual((self.loop.readers, self.loop.getDelayedCalls()), (set(), []))
        self.assertEqual(set(os.listdir("/proc/self/fd")) - self.descriptors, set())

    def paused(self, watched: bool = True) -> Paused:
        connection = Paused()
        self.connections.append(connection)
        if watched:
            self.watch.watch(connection)
        return connection

    def later(self, seconds: float) -> None:
        self.loop.settle()
        self.loop.advance(seconds)
        self.watch.tick()

    def test_reset(self) -> None:
        """A reset is noticed by its own connection only, at once if its data will not be published."""
        gone, there, unread = self.paused(), self.paused(), self.paused()
        gone.discarding = True
        self.loop.settle()
        self.assertEqual((gone.hung_up, there.hung_up), (0, 0))
        reset(gone.peer)
        reset(unread.peer)
        self.loop.until(lambda: gone.hung_up)
        self.assertEqual(unread.hung_up, 0)
        self.later(PATIENCE + 0.1)
        self.assertEqual((gone.hung_up, there.hung_up, unread.hung_up), (1, 0, 1))

    def test_in_line(self) -> None:
        """A connection that waits for a working broker is kept, however its peer closed. When the broker goes, it is asked
        again to read, and dropped if there is no room.
        """
        for end in (lambda peer: peer.shutdown(socket.SHUT_WR), reset):
            connection = self.paused()
            connection.awaiting_turn = True
            end(connection.peer)
            for _ in range(5):
                self.later(PATIENCE + 0.1)
            self.assertEqual(connection.hung_up, 0)
            connection.awaiting_turn = False
            told = connection.told
            self.later(PATIENCE + 0.1)
            self.assertEqual((connection.told, connection.hung_up), (told + 1, 1))

    def test_no_room_in_the_system(self) -> None:
        """A connection that the system cannot watch is kept and forgotten like any other. The others are watched."""
        watched = self.paused()
        self.watch._epoll = cast(Any, FullSet(self.watch._epoll))
        unwatched = self.paused()
        for connection in (watched, unwatched):
            connection.peer.shutdown(socket.SHUT_WR)
        self.later(PATIENCE + 0.1)
        self.assertEqual((watched.told > 0, unwatched.told), (True, 0))
        self.watch.unwatch(unwatched)
        self.assertEqual((watched.hung_up, unwatched.hung_up), (1, 0))

    def test_end_in_order(self) -> None:
        """After an orderly close the connection is kept for some time, in which its data may still be read."""
        connection = self.paused()
        connection.peer.shutdown(socket.SHUT_WR)
        self.later(PATIENCE - 0.1)
        self.assertEqual(connection.hung_up, 0)
        self.later(0.2)
        self.assertEqual(connection.hung_up, 1)
        self.later(10)
        self.assertEqual(connection.hung_up, 1)

    def test_closed_before_it_was_watched(self) -> None:
        """It makes no difference whether the peer hung up before or after the pause."""
        ended, gone = self.paused(watched=False), self.paused(watched=False)
        ended.peer.close()
        reset(gone.peer)
        self.watch.watch(ended)
        self.watch.watch(gone)
        self.later(PATIENCE + 0.1)
        self.assertEqual((ended.hung_up, gone.hung_up), (1, 1))

    def test_data_is_no_hangup(self) -> None:
        """Data of the peer makes no descriptor of the watch ready: the watch costs nothing during traffic."""
        connection = self.paused()
        connection.peer.send(b"x" * 1000)
        self.assertFalse(self.loop.turn(0.02))
        self.later(10)
        self.assertEqual(connection.hung_up, 0)

    def test_read_again_in_time(self) -> None:
        """A connection that is read again in time is not dropped. When it is paused again, the full time starts again."""
        connection = self.paused()
        connection.peer.shutdown(socket.SHUT_WR)
        self.later(PATIENCE - 1)
        self.watch.unwatch(connection)
        self.later(10)
        self.assertEqual(connection.hung_up, 0)
        self.watch.watch(connection)
        self.later(PATIENCE - 1)
        self.assertEqual(connection.hung_up, 0)
        self.later(2)
        self.assertEqual(connection.hung_up, 1)

    def test_several(self) -> None:
        """Each connection has its own time."""
        first, second = self.paused(), self.paused()
        first.peer.close()
        self.later(2)
        second.peer.close()
        self.later(PATIENCE - 2 + 0.1)
        self.assertEqual((first.hung_up, second.hung_up), (1, 0))
        self.later(2)
        self.assertEqual(second.hung_up, 1)

    def test_read_at_once(self) -> None:
        """Data sent before a close or reset is read at once if there is room for it."""
        for end in (lambda peer: peer.shutdown(socket.SHUT_WR), reset):
            connection = self.paused()
            connection.room = True
            end(connection.peer)
            self.loop.until(lambda connection=connection: connection.told)
            self.later(PATIENCE + 1)
            self.assertEqual((connection.told, connection.hung_up), (1, 0))
            self.watch.unwatch(connection)

    def test_kept(self) -> None:
        """While their slots are not needed, connections are kept until there is room, except those whose data will not be
        published.
        """
        self.watch.keep()
        for end in (lambda peer: peer.shutdown(socket.SHUT_WR), reset):
            connection, deaf = self.paused(), self.paused()
            deaf.discarding = True
            end(connection.peer)
            end(deaf.peer)
            self.later(PATIENCE + 1)
            self.assertEqual((connection.hung_up, deaf.hung_up), (0, 1))

    def test_idempotent(self) -> None:
        """Watching a connection twice has no effect, nor has releasing one that is not watched."""
        connection, never = self.paused(), self.paused(watched=False)
        self.watch.watch(connection)
        self.watch.unwatch(never)
        self.watch.unwatch(connection)
        self.watch.unwatch(connection)
        reset(connection.peer)
        self.loop.settle()
        self.assertEqual(connection.hung_up, 0)

    def test_descriptors_are_used_again(self) -> None:
        """A connection with a reused descriptor number is watched like any other."""
        old = self.paused()
        number = old.fileno()
        self.watch.unwatch(old)
        old.close()
        new = self.paused()
        self.assertEqual(new.fileno(), number)
        new.discarding = True
        reset(new.peer)
        self.loop.until(lambda: new.hung_up)
        self.assertEqual(old.hung_up, 0)

    def test_unwatched_inside_hung_up(self) -> None:
        """In its callback a connection may release itself, and others that ended with it."""
        one, other = self.paused(), self.paused()

        def both() -> None:
            self.watch.unwatch(one)
            self.watch.unwatch(other)

        self.patch(one, "hungUp", both)
        self.patch(other, "hungUp", both)
        reset(one.peer)
        reset(other.peer)
        self.loop.settle()
        self.later(10)
        one, other = self.paused(), self.paused()
        self.patch(one, "hungUp", both)
        self.patch(other, "hungUp", both)
        one.peer.close()
        other.peer.close()
        self.later(10)

    def test_many(self) -> None:
        """More hang-ups than epoll reports at once are all noticed."""
        connections = [self.paused() for _ in range(300)]
        for connection in connections:
            connection.discarding = True
            reset(connection.peer)
        self.loop.until(lambda: all(connection.hung_up for connection in connections))
        self.assertEqual({connection.hung_up for connection in connections}, {1})

    def test_stopped(self) -> None:
        """After its end the watch watches no connection, and a request to do so is no error."""
        connection = self.paused()
        self.watch.stop()
        self.assertEqual((self.watch.fileno(), self.loop.readers), (-1, set()))
        self.watch.unwatch(connection)
        self.watch.watch(connection)
        self.watch.unwatch(connection)
        self.watch.tick()
