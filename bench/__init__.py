"""Reproducible measurements of the cost and the throughput of Owsla. See README.md."""
