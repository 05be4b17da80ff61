"""The process and its machine: signals, clocks, sockets, open files and memory."""
