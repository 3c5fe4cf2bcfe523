"""`python -m rmsfast` prints what is installed and where it runs, as a bug report wants it."""

import os
import platform
import re
import sys
from pathlib import Path

import rmsfast
from rmsfast.threads import usable_cores


def main() -> None:
    """Print `rmsfast.config()`, then the same about Python, the machine and the environment."""
    facts = rmsfast.config() | {
        "openmp runtimes": ", ".join(_runtimes()) or "none found",
        "installed in": rmsfast.__path__[0],
        "python": f"{platform.python_implementation()} {platform.python_version()} at {sys.executable}",
        "platform": platform.platform(),
        "cpu": f"{_cpu()}, {os.cpu_count()} cores, {usable_cores()} of them for this process",
        "environment": {
            name: value for name, value in os.environ.items() if name.startswith(("RMSFAST_", "OMP_", "GOMP_", "KMP_"))
        },
    }
    for name, value in facts.items():
        print(f"{name}: {value}")


def _runtimes() -> list[str]:
    """Return the files of the OpenMP runtimes in this process, where Linux tells."""
    try:
        maps = Path("/proc/self/maps").read_text()
    except OSError:
        return []
    return sorted(set(re.findall(r"/\S*/lib[gi]?omp\S*", maps)))


def _cpu() -> str:
    """Return the processor's name, which `platform` does not know on Linux."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(": ")[2] for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


if __name__ == "__main__":
    main()
