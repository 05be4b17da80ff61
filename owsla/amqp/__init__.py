"""AMQP 0-9-1 as bytes: frames, field tables, properties and methods.

Nothing here does I/O or knows Twisted. Both sides of the wire are built on it: `owsla.broker`, which talks to RabbitMQ, and
`owsla.embedded`, which stands in for one.
"""
