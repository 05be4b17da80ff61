"""Makes ``twistd owsla`` known to Twisted."""

from twisted.application.service import ServiceMaker

owsla = ServiceMaker(
    "Owsla",
    "owsla.tap",
    "A gateway between devices that speak lines over TLS and a RabbitMQ.",
    "owsla",
)
