"""The check of `twistd owsla --check`: what would keep a gateway from working, without starting one and without any change.

    findings.py       what a check says: a line with ok, warn, skip or FAIL
    certificates.py   certificates, keys, chains and dates
    files.py          all files that the settings name
    connecting.py     a connection to each broker, which is closed again
    probes.py         requests that a broker must refuse, and whose refusals show permissions and arguments
    verdicts.py       what the answers to the probes mean for this gateway
    command.py        the whole check, in the order in which an operator would mend what it finds
"""
