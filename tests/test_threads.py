"""How many threads a step may use: set_num_threads, OMP_NUM_THREADS, the cores that the process may use."""

import os
import subprocess
import sys

import numpy as np
import pytest

import rmsfast
from rmsfast import threads


@pytest.fixture(autouse=True)
def keep_num_threads():
    old = rmsfast.get_num_threads()
    yield
    rmsfast.set_num_threads(old)


def test_set_and_get():
    rmsfast.set_num_threads(3)
    assert rmsfast.get_num_threads() == 3
    assert rmsfast.config()["num_threads"] == 3
    rmsfast.set_num_threads(np.int64(2))
    assert rmsfast.get_num_threads() == 2


@pytest.mark.parametrize(
    ("value", "error"),
    [(0, ValueError), (-1, ValueError), (1025, ValueError), (2**70, ValueError)]
    + [(value, TypeError) for value in (1.0, "2", True, None, [2])],
)
def test_refused(value, error):
    before = rmsfast.get_num_threads()
    with pytest.raises(error, match=r"num_threads: .*, expected an integer from 1 to 1024"):
        rmsfast.set_num_threads(value)
    assert rmsfast.get_num_threads() == before
    if value is not None:
        w, v = np.ones(3), np.ones(3)
        with pytest.raises(error, match="num_threads: "):
            rmsfast.RMSProp(w, num_threads=value)
        with pytest.raises(error, match="num_threads: "):
            rmsfast.rmsprop_update(w, v, np.ones(3), num_threads=value)
        assert v.tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("variable", "expected"),
    [("1", 1), ("3", 3), (" 5 ", 5), ("4,2", 4), ("", None), ("0", None), ("-2", None), ("many", None), ("²", None)],
)
def test_omp_num_threads(monkeypatch, variable, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", variable)
    assert threads.default_num_threads(1024) == (expected or threads.usable_cores())


def test_omp_num_threads_is_bounded(monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "99999999999999999999")
    assert threads.default_num_threads(1024) == 1024


def test_the_default_is_found_at_the_first_question():
    program = "import rmsfast; print(rmsfast.get_num_threads())"
    result = subprocess.run(
        [sys.executable, "-P", "-c", program],
        env={**os.environ, "OMP_NUM_THREADS": "7"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout == "7\n"


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="this system has no CPU affinity")
def test_affinity():
    program = "import os, rmsfast; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))}); print(rmsfast.config())"
    environment = {name: value for name, value in os.environ.items() if name != "OMP_NUM_THREADS"}
    result = subprocess.run(
        [sys.executable, "-P", "-c", program], env=environment, capture_output=True, text=True, check=True
    )
    assert "'num_threads': 1," in result.stdout


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "200000 100000\n"}, [2]),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "150000 100000\n"}, [2]),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "max 100000\n"}, []),
        ({"proc/self/cgroup": "0::/a/b\n", "sys/fs/cgroup/a/cpu.max": "300000 100000\n"}, [3]),
        (
            {
                "proc/self/cgroup": "0::/a/b\n",
                "sys/fs/cgroup/a/b/cpu.max": "50000 100000\n",
                "sys/fs/cgroup/a/cpu.max": "max 100000\n",
                "sys/fs/cgroup/cpu.max": "400000 100000\n",
            },
            [1, 4],
        ),
        (
            {
                "proc/self/cgroup": "4:cpu,cpuacct:/box\n3:memory:/box\n",
                "sys/fs/cgroup/cpu/box/cpu.cfs_quota_us": "250000\n",
                "sys/fs/cgroup/cpu/box/cpu.cfs_period_us": "100000\n",
                "sys/fs/cgroup/cpu/cpu.cfs_quota_us": "-1\n",
                "sys/fs/cgroup/cpu/cpu.cfs_period_us": "100000\n",
            },
            [3],
        ),
        ({"proc/self/cgroup": "0::/\n", "sys/fs/cgroup/cpu.max": "nonsense\n"}, []),
        ({"proc/self/cgroup": "0::/\n"}, []),
        ({}, []),
    ],
)
def test_cgroup_quotas(tmp_path, files, expected):
    for name, text in files.items():
        file = tmp_path / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    assert threads._cgroup_quotas(tmp_path) == expected


def test_a_quota_bounds_the_cores(monkeypatch):
    monkeypatch.setattr(threads, "_cgroup_quotas", lambda: [1])
    assert threads.usable_cores() == 1
