"""How many threads a step may use: set_num_threads, OMP_NUM_THREADS, the cores that the process may use."""

import os
import subprocess
import sys

import numpy as np
import pytest

import rmsfast
from rmsfast import _kernel, threads


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
    + [(value, TypeError) for value in (1.0, "2", True, None, [2], np.array([2]), np.array(2.0), np.array(True), int)],
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
    [
        ("1", 1),
        ("3", 3),
        (" 5 ", 5),
        ("4,2", 4),
        ("", None),
        ("0", None),
        ("-2", None),
        ("many", None),
        ("²", None),
        ("9" * 5000, None),
    ],
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


# ---- How many of them a step uses ----


@pytest.fixture
def tune():
    """Change the measured constants for one test."""
    old = _kernel._tune(seconds_a_byte_alone=1e-9)
    yield _kernel._tune
    _kernel._tune(**old)


needs_openmp = pytest.mark.skipif(not _kernel.OPENMP, reason="built without OpenMP")


@needs_openmp
def test_a_thread_must_be_worth_its_start(tune):
    tune(bytes_per_thread=1000)
    sizes = [0, 999, 1999, 2000, 2999, 3000, 4000, 10**12]
    assert [_kernel._team_size(n, 4) for n in sizes] == [1, 1, 1, 2, 2, 3, 4, 4]
    rmsfast.set_num_threads(3)
    assert _kernel._team_size(10**12, None) == 3


@needs_openmp
def test_after_a_slow_team_steps_stay_alone_for_a_while(tune):
    """As beside a BLAS whose idle threads keep the other cores busy: no team for a while, then another try."""
    w, g = np.ones(100_000, np.float32), np.ones(100_000, np.float32)
    opt = rmsfast.RMSProp(w, num_threads=2)
    tune(slack_seconds=1e9)
    for _ in range(3):
        opt.step(g)
    assert _kernel._team_size(w.nbytes, 2) == 2
    every_team_is_slow = dict(slack_seconds=-1, slack_factor=0, patience=1e6, longest_pause=1e6)
    tune(**every_team_is_slow)
    opt.step(g)
    assert _kernel._team_size(w.nbytes, 2) == 1
    tune(**{**every_team_is_slow, "patience": 0})
    opt.step(g)
    assert _kernel._team_size(w.nbytes, 2) == 2
    tune(**{**every_team_is_slow, "longest_pause": 0})
    opt.step(g)
    assert _kernel._team_size(w.nbytes, 2) == 2


@needs_openmp
def test_unusual_steps_are_not_judged(tune):
    """The first, which may touch new memory, and those that gather a gradient from afar."""
    w, g = np.ones((300, 300), np.float32), np.ones((300, 300), np.float32)
    tune(slack_seconds=-1, slack_factor=0, patience=1e6, longest_pause=1e6)
    opt = rmsfast.RMSProp(w, num_threads=2)
    for gradient in g, g.T, g[::-1]:
        opt.step(gradient)
        assert _kernel._team_size(w.nbytes, 2) == 2
    rmsfast.rmsprop_update(w, np.ones_like(w), g.T, num_threads=2)
    assert _kernel._team_size(w.nbytes, 2) == 2
    opt.step(g)
    assert _kernel._team_size(w.nbytes, 2) == 1


@needs_openmp
def test_the_first_ordinary_step_finds_out_what_one_thread_takes(tune):
    w, g = np.ones(100_000, np.float32), np.ones(100_000, np.float32)
    tune(seconds_a_byte_alone=0)
    opt = rmsfast.RMSProp(w, num_threads=2)
    opt.step(g)
    assert tune()["seconds_a_byte_alone"] == 0
    assert _kernel._team_size(w.nbytes, 2) == 1
    opt.step(g)
    assert 0 < tune()["seconds_a_byte_alone"] <= 2e-9
    assert _kernel._team_size(w.nbytes, 2) == 2


def test_without_openmp_every_step_is_alone(tune):
    assert rmsfast.config()["openmp"] == (_kernel._team_size(10**12, 2) == 2)
