"""Measurements of Owsla: what it costs, as figures that anybody can reproduce. See README.md."""
