"""Channel of a client connection: its commands, from channel.open to channel.close.

A channel has two sides, `publisher` and `consumers`, which share its output and its transaction. Frequent methods
(basic.publish with its content, basic.ack) are passed to them by the connection directly; all others arrive at `command`.
"""

from __future__ import annotations

from typing import Any

from .channel_output import ChannelOutput, ServerConnection
from .consumers import CONSUMING, ChannelConsumers
from .declarations import DECLARATIONS, Declarations
from .errors import AMQPError
from .publisher import ChannelPublisher
from .transactions import Transaction


class ServerChannel:
    """Server side of a channel."""

    __slots__ = ("_declarations", "_transaction", "consumers", "number", "output", "publisher")

    def __init__(self, number: int, connection: ServerConnection) -> None:
        self.number = number
        self.output = ChannelOutput(number, connection)
        self._transaction = Transaction()
        self._declarations = Declarations(connection.broker, connection, self.output)
        self.consumers = ChannelConsumers(self.output, self._declarations, self._transaction)
        self.publisher = ChannelPublisher(self.output, self.consumers, self._transaction)

    def end(self) -> None:
        """Close the channel: drop an incomplete message, roll back, and requeue unacknowledged deliveries."""
        self.output.close()
        self.publisher.drop_incoming()
        if self._transaction.selected:
            self._roll_back()
        self.consumers.end()

    def command(self, name: str, fields: dict[str, Any]) -> None:
        """Execute a method of a client on the open channel."""
        if name in CONSUMING:
            CONSUMING[name](self.consumers, fields)
        elif name in DECLARATIONS:
            DECLARATIONS[name](self._declarations, fields)
        elif name == "confirm.select":
            self.publisher.confirm_select(fields)
        elif name == "tx.select":
            self.publisher.tx_select(fields)
        elif name == "tx.commit":
            self._commit()
        elif name == "tx.rollback":
            self._roll_back()
            self.output.reply("tx.rollback-ok")
        elif name == "channel.flow":
            # RabbitMQ does not let a client stop its deliveries: basic.qos is for that.
            if not fields["active"]:
                raise AMQPError(540, "active=false")
            self.output.reply("channel.flow-ok", active=True)
        elif name != "channel.flow-ok":
            raise AMQPError(503, f"unimplemented method {name}")

    def _commit(self) -> None:
        publishes, settlements = self._transaction.take()
        complete = self.publisher.commit(publishes)
        self.consumers.commit(settlements)
        # RabbitMQ 3.10 answers so if a queue with reject-publish refused a message of the transaction.
        if not complete:
            raise AMQPError(406, "partial tx completion")
        self.output.reply("tx.commit-ok")

    def _roll_back(self) -> None:
        publishes, settlements = self._transaction.take()
        self.publisher.roll_back(publishes)
        self.consumers.roll_back(settlements)
