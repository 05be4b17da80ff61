"""Owsla: a device gateway for RabbitMQ."""

__version__ = "0.1.0"
