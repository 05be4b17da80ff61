"""Tools of the integration tests: real brokers, real `twistd` processes, TLS devices, a pika back end.

Every wait names a condition and has a deadline; none is a fixed sleep. Everything that is started can be stopped, also after a
failure.
"""
