"""How many threads a step may use unless told otherwise: OMP_NUM_THREADS, else the cores this process may use."""

import os
from pathlib import Path


def default_num_threads(most: int) -> int:
    """Return the default number of threads, from 1 to `most`."""
    first_level = os.environ.get("OMP_NUM_THREADS", "").split(",")[0]
    try:
        count = int(first_level)
    except ValueError:  # not set, or nonsense
        count = 0
    return min(count if count > 0 else usable_cores(), most)


def usable_cores() -> int:
    """Return how many cores this process may use, by its CPU affinity and its cgroup's quota; 1 at least."""
    if hasattr(os, "sched_getaffinity"):
        cores = len(os.sched_getaffinity(0))
    else:
        cores = os.cpu_count() or 1
    return max(1, min([cores, *_cgroup_quotas()]))


def _cgroup_quotas(root: Path = Path("/")) -> list[int]:
    """Return the CPU quotas, in cores rounded up, of this process's cgroup and all that it lies in."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return []
    quotas = []
    for line in lines:
        _, controllers, path = [*line.split(":", 2), "", ""][:3]
        if not controllers:
            mount = root / "sys/fs/cgroup"
        elif "cpu" in controllers.split(","):
            mount = root / "sys/fs/cgroup/cpu"
        else:
            continue
        group = mount / path.lstrip("/")
        # Inside a container the path may be the host's, of which only the mount itself is visible.
        for folder in [group, *group.parents]:
            if folder == mount or mount in folder.parents:
                quotas += _quota(folder)
    return quotas


def _quota(folder: Path) -> list[int]:
    """Return the quota that one cgroup sets, if it sets one: version 2 in one file, version 1 in two."""
    try:
        if (folder / "cpu.max").exists():
            quota, period = (folder / "cpu.max").read_text().split()
        else:
            quota = (folder / "cpu.cfs_quota_us").read_text().strip()
            period = (folder / "cpu.cfs_period_us").read_text().strip()
        return [-(-int(quota) // int(period))] if int(quota) > 0 else []
    except (OSError, ValueError, ZeroDivisionError):  # no such file, or "max"
        return []
