"""Several hosts on one machine, as network namespaces with links of a given rate, for `bench.mpi`. Linux, as root.

Each host has an interface of its own on a bridge, and `tc` limits how fast it sends, by a token bucket (tbf). MPICH's
mpiexec starts a process in a host through a script in the place of ssh. The processes speak TCP, because shared memory
would pass by the links.
"""

import contextlib
import os
import shutil
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path

BRIDGE, NETWORK = "rmsfast0", "10.77.0"
OUTSIDE = f"{NETWORK}.254"
LAUNCHER = """#!/bin/sh
# mpiexec calls this as it would call ssh: options, the address of a host, a command.
while [ "${1#-}" != "$1" ]; do shift; done
host=rmsfast${1##*.}
shift
exec ip netns exec "$host" sh -c "$*"
"""
# UCX, MPICH's network layer, takes TCP alone, also between processes that could share memory.
ENVIRONMENT = {"MPIR_CVAR_NOLOCAL": "1", "UCX_TLS": "tcp,self", "UCX_NET_DEVICES": "all"}


def why_not() -> str:
    """Return why there can be no such hosts here, or nothing."""
    if os.name != "posix" or os.geteuid() != 0:
        return "network namespaces need root"
    if shutil.which("ip") is None or shutil.which("tc") is None:
        return "there is no ip and tc (Debian, Ubuntu: apt install iproute2)"
    return ""


def run(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True, text=True)


@contextlib.contextmanager
def hosts(count: int, rate: str) -> Iterator[list[str]]:
    """Set up hosts whose links send at a rate, such as "1gbit", and take them down at the end.

    Yields the arguments of mpiexec that start one process in each.
    """
    with contextlib.ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        script = folder / "launch"
        script.write_text(LAUNCHER)
        script.chmod(0o755)
        run("ip", "link", "add", BRIDGE, "type", "bridge")
        stack.callback(run, "ip", "link", "del", BRIDGE)
        run("ip", "addr", "add", f"{OUTSIDE}/24", "dev", BRIDGE)
        run("ip", "link", "set", BRIDGE, "up")
        for i in range(1, count + 1):
            host, inside, outside = f"rmsfast{i}", f"rmsin{i}", f"rmsout{i}"
            run("ip", "netns", "add", host)
            stack.callback(run, "ip", "netns", "del", host)
            run("ip", "link", "add", outside, "type", "veth", "peer", "name", inside)
            stack.callback(run, "ip", "link", "del", outside)  # a namespace that is gone gives its links up later
            run("ip", "link", "set", inside, "netns", host)
            run("ip", "link", "set", outside, "master", BRIDGE, "up")
            within = "ip", "netns", "exec", host
            run(*within, "ip", "addr", "add", f"{NETWORK}.{i}/24", "dev", inside)
            run(*within, "ip", "link", "set", inside, "up")
            run(*within, "ip", "link", "set", "lo", "up")
            shaped = "root", "tbf", "rate", rate, "burst", "128kb", "latency", "50ms"
            run(*within, "tc", "qdisc", "add", "dev", inside, *shaped)
        addresses = ",".join(f"{NETWORK}.{i}" for i in range(1, count + 1))
        where = ["-launcher", "ssh", "-launcher-exec", str(script), "-localhost", OUTSIDE, "-iface", BRIDGE]
        yield [*where, "-hosts", addresses]
