"""Ports on the loopback address: the remembered one when it is free, else a new one."""

from __future__ import annotations

import socket
from collections.abc import Mapping, Sequence

from services.kernel.errors import InvalidInput

HOST = "127.0.0.1"  # the embedded servers are never reachable from another machine


def choose(names: Sequence[str], fixed: Mapping[str, int], remembered: Mapping[str, int]) -> dict[str, int]:
    """A free port for each name.

    A fixed port is the user's word: it is used or refused. A remembered one is kept when it is free, so that programs
    which were told an address find it again after a restart; else a new one is taken.

    >>> sorted(choose(["client", "controller"], fixed={}, remembered={}))
    ['client', 'controller']
    """
    chosen: dict[str, int] = {}
    for name in names:
        if name in fixed:
            if not is_free(fixed[name]):
                raise InvalidInput(
                    f"port {fixed[name]} on {HOST} is taken by another program; end it or name another port",
                    field=f"port {name}",
                    code="port_taken",
                )
            chosen[name] = fixed[name]
        elif remembered.get(name) and is_free(remembered[name]):
            chosen[name] = remembered[name]
        else:
            chosen[name] = _unused(set(chosen.values()) | set(fixed.values()) | set(remembered.values()))
    return chosen


def is_free(port: int) -> bool:
    """Whether a server could listen on the port now."""
    with socket.socket() as probe:
        # As servers do: connections of an earlier server that linger in TIME_WAIT do not make a port taken.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
    return True


def is_open(port: int) -> bool:
    """Whether something accepts connections on the port."""
    with socket.socket() as probe:
        probe.settimeout(0.5)
        return probe.connect_ex((HOST, port)) == 0


def _unused(avoid: set[int]) -> int:
    while True:
        with socket.socket() as probe:
            probe.bind((HOST, 0))
            port = int(probe.getsockname()[1])
        if port not in avoid:
            return port
