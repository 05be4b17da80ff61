"""AMQP 0-9-1 broker in memory, so that Owsla and its back ends can be tried on a machine without RabbitMQ.

The reference is RabbitMQ 3.10.8: codes, reply texts and behaviour follow it unless a comment names a difference, and
`tests/integration/test_embedded.py` runs the same cases against both. Streams are refused (540). Queue arguments that
`policy.QueuePolicy` and `policy.UNSUPPORTED_ARGUMENTS` do not name are accepted and have no effect, like unknown arguments in
RabbitMQ. `docs/guarantees.md` lists for users which features are missing.

How the modules fit together:

    service     port, clock, and start and stop of the broker
    protocol    one client connection: states, frames, memory alarm, close
    handshake   login and negotiation of limits        writer, heartbeat   output buffer, heartbeats of a connection
    channel     one channel: dispatches commands to    publisher, consumers, declarations   with a channel_output
    broker      queues, exchanges and dead letters     memory              accounting of message memory
    queues, exchanges, policy, messages, replies, transactions, dead_letters, publishing, errors

Commands either take effect or raise the `AMQPError` that RabbitMQ would answer with.
"""

from .service import EmbeddedBroker

__all__ = ["EmbeddedBroker"]
