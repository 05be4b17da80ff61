"""Encoding and decoding of AMQP 0-9-1: frames, field tables, properties and methods.

Nothing here does I/O or imports Twisted. Both ends of the protocol use it: `owsla.broker`, the client of RabbitMQ, and
`owsla.embedded`, a server in its place.
"""
