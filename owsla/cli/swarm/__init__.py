"""`owsla swarm`: simulated devices, to see what a gateway and its back end hold.

| module         | what it is                                                          |
|----------------|---------------------------------------------------------------------|
| `_arguments`   | what is typed, checked; gives a plan                                |
| `_plan`        | what to do, and each process's share of it                          |
| `_run`         | the parent: starts the processes, shows progress, sums up           |
| `_process`     | one process                                                         |
| `_devices`     | its connections, in an epoll loop of their own                      |
| `_books`       | what was said and what was answered, and when lines are due; pure   |
| `_lines`       | what a line looks like, and how an answer is known; pure            |
| `_histogram`   | how long things took, in bounded memory; pure                       |
| `_report`      | the sum of it, judged; `_svg` draws a part                          |
| `_tls`, `_sources` | certificates and verification; addresses to connect from        |

Twisted is not used: a measurement should not share the peculiarities of what it measures, and this is cheaper.
"""
