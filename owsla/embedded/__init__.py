"""An AMQP 0-9-1 broker in memory: so that Owsla runs, and its back ends can be tried, on a machine without a RabbitMQ.

It answers as RabbitMQ does, codes and reply texts included, as far as it goes. It refuses what it does not have and what would
otherwise do something else unnoticed: transactions, direct reply-to, streams, `x-delivery-limit`, `reject-publish-dlx` (540),
`headers` exchanges (503). Quorum queues are accepted and behave as classic ones. Queue arguments not named in
`queues.QueuePolicy` or `queues.NOT_FOR` are accepted and have no effect, as unknown ones in RabbitMQ. Users read of this in
docs/guarantees.md.
"""

from .service import EmbeddedBroker

__all__ = ["EmbeddedBroker"]
