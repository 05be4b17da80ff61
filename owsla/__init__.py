"""Owsla: a device gateway for RabbitMQ."""

__version__ = "0.2.0.dev0"
