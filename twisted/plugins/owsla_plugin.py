"""Twisted plugin for the command `twistd owsla`."""

import os

from twisted.application.service import ServiceMaker

from owsla.runtime.early_signals import guard_start
from owsla.runtime.imports import without_collection
from owsla.runtime.openssl import load_openssl
from owsla.runtime.process import name_passed_sockets


class OwslaMaker(ServiceMaker):
    """Service maker that handles the signals of a gateway that starts."""

    @property
    def options(self):  # type: ignore[no-untyped-def]  # as in Twisted
        """Options of the command. twistd reads them only if the command is `owsla`; their import takes most of the start."""
        guard_start()
        name_passed_sockets(os.environ)
        with without_collection():
            load_openssl()
            return super().options


owsla = OwslaMaker(
    "Owsla",
    "owsla.tap",
    "Gateway between RabbitMQ and devices that speak lines over TLS.",
    "owsla",
)
