"""An AMQP 0-9-1 broker in memory: so that Owsla runs, and its back ends can be tried, on a machine without a RabbitMQ.

It answers as RabbitMQ does, codes and reply texts included, as far as it goes. Streams are refused (540). Queue arguments that
are not named in `policy.QueuePolicy` or `policy.NOT_FOR` are accepted and have no effect, as unknown ones in RabbitMQ. Users
read in docs/guarantees.md what there is and what is missing.
"""

from .service import EmbeddedBroker

__all__ = ["EmbeddedBroker"]
