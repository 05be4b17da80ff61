"""`owsla demo`: a gateway with all that belongs to it, for the first minute.

| module                    | content                                                                     |
|---------------------------|-----------------------------------------------------------------------------|
| `arguments`               | options, checked and made into a plan                                       |
| `_plan`                   | the plan, and the command line of each process                              |
| `_run`                    | the parent: starts the processes, says what to try, ends them               |
| `_ends`, `_part`          | what ends the demo, and one process of it                                   |
| `_watch`                  | the gateway, asked over its control socket                                  |
| `_guide`                  | the text for the person                                                     |
| `__main__`                | the processes: gateway, back end and devices                                |
| `_devices`, `_fleet`      | the simulated devices                                                       |
| `_queues`                 | the removal of the queues from a RabbitMQ of the user                       |

The parent is plain Python without a reactor. It waits in `poll` for signals, its children, and the end of its standard output.
The children are processes of their own kind: the `twistd` and the `owsla echo` that a user would start.
"""
