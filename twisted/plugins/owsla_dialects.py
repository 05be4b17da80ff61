"""Makes Owsla's own dialects known by their names."""

from owsla.dialects import DialectPlugin

login = DialectPlugin("login", "owsla.dialects.login:Login", "a device says who it is before anything else")
turnstile = DialectPlugin("turnstile", "owsla.dialects.turnstile:Turnstile", "a coin-operated turnstile, as an example")
