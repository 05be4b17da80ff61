"""An AMQP 0-9-1 broker in memory: so that Owsla runs, and its back ends can be tried, on a machine without a RabbitMQ.

It answers as RabbitMQ does, codes and reply texts included, as far as it goes. It does not offer transactions (540), `headers`
exchanges (503), stream queues, `reject-publish-dlx` (540) or direct reply-to; quorum queues are accepted and behave as classic
ones; priorities of messages, and queue arguments not named in `queues.QueuePolicy`, are accepted and have no effect.
"""

from .service import EmbeddedBroker

__all__ = ["EmbeddedBroker"]
