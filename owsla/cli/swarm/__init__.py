"""`owsla swarm`: simulated devices that measure a gateway and its back end.

| module                                   | content                                                          |
|------------------------------------------|------------------------------------------------------------------|
| `arguments`                              | options, checked and made into a plan                            |
| `_plan`                                  | the plan, and the share of each process in it                    |
| `_run`                                   | the parent: starts processes, shows progress, adds up            |
| `_process`, `_parent_input`              | one process, and the words of its parent                         |
| `_devices`, `_device`, `_loop`           | the devices of a process, and its epoll loop                     |
| `_dialer`, `_sources`, `_tls`            | connections, source addresses, certificates and verification     |
| `_conversation`                          | lines sent and received, without sockets                         |
| `_mqtt_conversation`, `_mqtt`            | the same with MQTT, and its packets                              |
| `_lines`, `_schedule`, `_answers`        | the text of lines, when they are due, and answers matched to them |
| `_measurements`, `_histogram`            | counts, and durations in bounded memory                          |
| `_report`, `_svg`                        | the result, and its image                                        |

Twisted is not used: a measurement should not share the properties of what it measures, and a loop of its own needs less CPU.
"""
