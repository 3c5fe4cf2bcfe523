"""`python -m rmsfast` prints what is installed and where it runs, as a bug report wants it."""

import os
import platform
import sys
from pathlib import Path

import rmsfast
from rmsfast.threads import usable_cores


def main() -> None:
    """Print `rmsfast.config()`, then the same about Python, the machine and the environment."""
    facts = rmsfast.config() | {
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
