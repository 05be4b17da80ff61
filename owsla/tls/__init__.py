"""Certificates and TLS contexts, for devices and for the broker."""
