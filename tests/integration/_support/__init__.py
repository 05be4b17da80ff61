"""What the integration tests drive: real brokers, real `twistd` processes, TLS devices, a pika back end.

Nothing in here sleeps and hopes: every wait names a condition and has a deadline, and whatever is started has a way to be
stopped that also works after a failure.
"""
