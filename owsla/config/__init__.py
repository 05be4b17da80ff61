"""Settings: addresses, readers of values, the table of options, their sources and checks, and twistd's `Options`."""
