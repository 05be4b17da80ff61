"""Construction of a node and of a parent: functions that make the parts in the order in which they need each other.

    node.py             make_node: a whole node, from the functions below
    sockets.py          sockets and certificates, claimed before anything else is made
    base.py             what nearly every part is given: reactor, settings, names, events
    publishing.py       roles towards RabbitMQ that publish
    devices.py          the device port, and what the connections of devices share
    opening.py          what happens when the device port opens, or the node takes another name
    consuming.py        roles towards RabbitMQ that consume, and the connections of all roles
    claims.py           which devices this node has, said to the other nodes
    observation.py      event handlers and HTTP
    service_manager.py  reports to systemd
    tree.py             the supervision tree
    shutdown.py         the node as a service, and its orderly shutdown
    parent.py           make_parent: the parent of `--workers`

    configuration.py    settings, and what is made of the files that they name
    reload.py           loads of another configuration while the process runs
    worker_reload.py    the part of a worker in a reload, which its parent leads
    applying.py         what another configuration changes in the parts of a node

Each function returns its parts in a frozen dataclass. Nothing is used before it exists.
"""
