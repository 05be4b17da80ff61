"""Twisted plugins for the dialects that come with Owsla."""

from owsla.dialects import DialectPlugin

login = DialectPlugin("login", "owsla.dialects.login:Login", "a device identifies itself in its first line")
turnstile = DialectPlugin("turnstile", "owsla.dialects.turnstile:Turnstile", "example: a coin-operated turnstile")
