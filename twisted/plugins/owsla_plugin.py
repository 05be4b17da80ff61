"""Makes ``twistd owsla`` known to Twisted."""

from twisted.application.service import ServiceMaker

from owsla.runtime.process import ignore_early_signals


class OwslaMaker(ServiceMaker):
    """Service maker that ignores SIGHUP and SIGUSR2 while the gateway starts."""

    @property
    def options(self):  # type: ignore[no-untyped-def]  # as in Twisted
        """Load the options. twistd asks for them when `owsla` is the chosen command, and the import takes most of the start."""
        ignore_early_signals()
        return super().options


owsla = OwslaMaker(
    "Owsla",
    "owsla.tap",
    "A gateway between devices that speak lines over TLS and a RabbitMQ.",
    "owsla",
)
