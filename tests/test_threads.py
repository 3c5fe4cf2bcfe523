"""How many threads a step may use: set_num_threads, OMP_NUM_THREADS, the cores that the process may use."""

import ctypes
import os
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_same_bits

import rmsfast
from rmsfast import threads
from rmsfast._core import kernel
from rmsfast._core.threads import _team_size, _tune, usable_threads

pytestmark = pytest.mark.thread_unsafe(reason="set the process's number of threads, and start threads of their own")


@pytest.fixture(autouse=True)
def keep_num_threads():
    old = rmsfast.get_num_threads()
    yield
    rmsfast.set_num_threads(old)


def test_set_and_get():
    rmsfast.set_num_threads(3)
    assert rmsfast.get_num_threads() == 3
    rmsfast.set_num_threads(np.int64(2))
    assert rmsfast.get_num_threads() == 2


def test_the_cores_are_counted_anew_when_the_number_is_set(monkeypatch):
    """What steps may use is shown by `config`: no more than there are."""
    for cores, expected in (2, 2), (4, 3):
        monkeypatch.setattr(threads, "usable_cores", lambda cores=cores: cores)
        rmsfast.set_num_threads(3)
        assert rmsfast.get_num_threads() == 3
        assert rmsfast.config()["num_threads"] == expected
    monkeypatch.setattr(threads, "usable_cores", lambda: 1)
    assert rmsfast.config()["num_threads"] == 3


def test_a_new_count_that_is_asked_for_during_a_count_is_made(monkeypatch):
    def count():
        monkeypatch.setattr(threads, "usable_cores", lambda: 2)
        rmsfast.set_num_threads(3)  # as another thread may, where the affinity has changed
        return 1

    monkeypatch.setattr(threads, "usable_cores", count)
    rmsfast.set_num_threads(3)
    assert [usable_threads() for _ in range(3)] == [1, 2, 2]


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


def test_a_number_that_is_set_while_the_default_is_found_stays():
    program = """
import rmsfast
from rmsfast import threads
def find(most):
    rmsfast.set_num_threads(3)      # as another thread may
    return 7
threads.default_num_threads = find
print(rmsfast.get_num_threads(), rmsfast.get_num_threads())
"""
    result = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert result.stdout == "3 3\n", result.stderr


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
    """Change constants for one test. Until it changes them, each step gets as many threads as it may use."""
    old = _tune(forced=True, cores=8, seconds_to_inherit=0)
    yield _tune
    _tune(**old)


def openmp_runtime():
    """The file of the OpenMP runtime that the kernel uses, where that can be found. There may be others here."""
    if not sys.platform.startswith("linux") or not kernel.OPENMP:
        return None

    class Info(ctypes.Structure):
        _fields_ = (
            ("file", ctypes.c_char_p),
            ("base", ctypes.c_void_p),
            ("name", ctypes.c_char_p),
            ("address", ctypes.c_void_p),
        )

    info = Info()
    address = ctypes.cast(ctypes.CDLL(kernel.__file__).omp_get_max_threads, ctypes.c_void_p)
    return info.file.decode() if ctypes.CDLL(None).dladdr(address, ctypes.byref(info)) else None


RUNTIME = openmp_runtime()
needs_runtime = pytest.mark.skipif(RUNTIME is None, reason="no OpenMP runtime that was found")
needs_openmp = pytest.mark.skipif(not kernel.OPENMP, reason="built without OpenMP")


@needs_openmp
def test_one_python_thread_has_teams_at_a_time(tune):
    """The runtime keeps idle threads, which spin for a while, for each thread that has called it."""
    tune(seconds_to_inherit=1000)
    sizes = []

    def ask():
        sizes.append(_team_size(10**9, 2))

    ask()
    other = threading.Thread(target=ask)
    other.start()
    other.join()
    ask()
    tune(seconds_to_inherit=0)
    other = threading.Thread(target=ask)
    other.start()
    other.join()
    assert sizes == [2, 1, 2, 2]


@needs_openmp
def test_no_team_is_larger_than_the_cores(tune, monkeypatch):
    tune(cores=3)
    assert [_team_size(10**12, n) for n in (1, 2, 3, 4, 1024)] == [1, 2, 3, 3, 3]
    tune(cores=0)
    monkeypatch.setattr(threads, "usable_cores", lambda: 5)
    assert [_team_size(10**12, n) for n in (4, 6)] == [4, 5]
    assert tune()["cores"] == 5


STEP_FROM_MANY_THREADS = """
import os, sys, threading
import numpy as np
import rmsfast
from rmsfast._core.threads import _team_size, _tune
_tune(forced=True, cores=4, seconds_to_inherit=60)
before = len(os.listdir("/proc/self/task"))
together = threading.Barrier(8)
counts, results = set(), []
def train():
    w, g = np.ones(300_000, np.float32), np.linspace(-1, 1, 300_000, dtype=np.float32)
    opt = rmsfast.RMSProp(w, num_threads=4)
    together.wait()
    for _ in range(40):
        opt.step(g)
    results.append(w.tobytes())
    together.wait()
    counts.add(len(os.listdir("/proc/self/task")) - before)
    together.wait()
workers = [threading.Thread(target=train) for _ in range(8)]
for worker in workers: worker.start()
for worker in workers: worker.join()
print(*counts, len(set(results)))
"""


@needs_openmp
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="counts threads in /proc")
def test_many_python_threads_that_step_at_once_have_one_team(tune):
    """Eight of Python's threads, and the three that help the one whose steps have teams."""
    program = [sys.executable, "-P", "-c", STEP_FROM_MANY_THREADS]
    output = subprocess.run(program, capture_output=True, text=True, check=True, timeout=60).stdout
    assert output.split() == [str(8 + 3), "1"]


@needs_runtime
def test_steps_inside_of_someones_parallel_region_are_alone(tune):
    """Each thread of someone's team takes steps: they have the right bits, and no teams of their own."""
    g = np.full(200_000, 0.5, np.float32)
    expected = np.ones_like(g)
    rmsfast.rmsprop_update(expected, np.zeros_like(g), g)
    sizes, results = [], []

    @ctypes.CFUNCTYPE(None, ctypes.c_void_p)
    def region(_):
        w = np.ones_like(g)
        rmsfast.RMSProp(w, num_threads=2).step(g)
        sizes.append(_team_size(10**9, 2))
        results.append(w)

    ctypes.CDLL(RUNTIME).GOMP_parallel(region, None, 2, 0)
    assert sizes == [1, 1]
    for w in results:
        assert w.tobytes() == expected.tobytes()
    tune()  # forgets a slow team
    assert _team_size(10**9, 2) == 2


@needs_openmp
def test_a_lower_limit_that_someone_set_for_this_thread_holds(tune):
    """As threadpoolctl sets it, for the thread that asks."""
    threadpoolctl = pytest.importorskip("threadpoolctl")
    sizes = {}
    with threadpoolctl.threadpool_limits(limits=1, user_api="openmp"):
        sizes["limited"] = _team_size(10**12, 4), usable_threads()
        other = threading.Thread(target=lambda: sizes.update(other=_team_size(10**12, 4)))
        other.start()
        other.join()
    sizes["after"] = _team_size(10**12, 4)
    assert sizes == {"limited": (1, 1), "other": 4, "after": 4}


OTHER_LIMITS = """
import ctypes, os, sys
import numpy as np
import rmsfast
from rmsfast._core.threads import _team_size, _tune
_tune(forced=True, cores=8)
runtime = ctypes.CDLL(sys.argv[1])
sizes = [_team_size(10**12, 6)]
for limit in 2, 1, 3, 64, int(sys.argv[2]):
    runtime.omp_set_num_threads(limit)
    sizes.append(_team_size(10**12, 6))
print(*sizes)
"""


@needs_runtime
@pytest.mark.parametrize("own", [3, 5])
def test_the_runtimes_own_limit_is_no_limit_that_someone_set(own):
    """What OMP_NUM_THREADS says is the default of `get_num_threads`; here all steps ask for six threads."""
    environment = {**os.environ, "OMP_NUM_THREADS": str(own)}
    program = [sys.executable, "-P", "-c", OTHER_LIMITS, RUNTIME, str(own)]
    result = subprocess.run(program, env=environment, capture_output=True, text=True)
    assert result.stdout.split() == ["6", "2", "1", "3" if own > 3 else "6", "6", "6"]


NO_THREAD_LEFT = """
import _thread, os, resource, sys, threading
import numpy as np
import rmsfast
from rmsfast._core.threads import _team_size, _tune
_tune(forced=True, cores=4, seconds_to_inherit=0)
g = np.linspace(-1, 1, 300_000)
def make(threads):
    w = np.ones_like(g)
    return rmsfast.RMSProp(w, num_threads=threads), w
def train(opt, w):
    opt.step(g)
    opt.step(g)
    return w.tobytes()
expected = train(*make(1))
end = threading.Event()
def leave_no_thread():
    used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + 4_000_000, resource.RLIM_INFINITY))
    try:
        for _ in range(100):    # stacks of threads that ended are kept for others
            _thread.start_new_thread(end.wait, ())    # Thread.start() might wait for ever
    except RuntimeError:
        pass
def train_where_no_thread_is_left(opt, w):
    leave_no_thread()
    print(train(opt, w) == expected, _team_size(10**12, 4))
    resource.setrlimit(resource.RLIMIT_AS, (resource.RLIM_INFINITY,) * 2)
    end.set()
"""

WITHOUT_ROOM = {
    "at the first team": """
train_where_no_thread_is_left(*make(4))
print(_team_size(10**12, 4))        # not tried again at once
""",
    "after a fork": """
train(*make(4))
pid = os.fork()
if pid == 0:
    os._exit(0)
os.waitpid(pid, 0)
train_where_no_thread_is_left(*make(4))
print(_team_size(10**12, 4))
""",
    "after a smaller team": """
train(*make(4))
train(*make(2))
train_where_no_thread_is_left(*make(4))
print(_team_size(10**12, 4))
""",
    "after another thread's team": """
worker = threading.Thread(target=lambda: train(*make(4)))
worker.start()
worker.join()
train_where_no_thread_is_left(*make(4))
print(_team_size(10**12, 4))
""",
}


@needs_openmp
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="limits the memory of a process as Linux does")
@pytest.mark.skipif("san.so" in os.environ.get("LD_PRELOAD", ""), reason="takes terabytes of addresses")
@pytest.mark.parametrize("program", WITHOUT_ROOM.values(), ids=WITHOUT_ROOM)
def test_where_no_thread_can_be_started_steps_are_alone(program):
    """The runtimes would end the process."""
    command = [sys.executable, "-P", "-W", "ignore", "-c", NO_THREAD_LEFT + program]
    result = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert result.stdout.split() == ["True", "1", "1"], result.stderr


@pytest.mark.skipif("libomp" in (RUNTIME or ""), reason="LLVM's runtime ends the process itself")
@pytest.mark.parametrize("variable", ["many", "-3", "0", "99999999999999999999", "1,1,1", "", "\x01"])
def test_steps_under_any_omp_num_threads(variable):
    program = """
import numpy as np
import rmsfast
w = np.ones(300_000)
opt = rmsfast.RMSProp(w)
for _ in range(3):
    opt.step(np.ones_like(w))
expected, v = np.ones(1), np.zeros(1)
for _ in range(3):
    rmsfast.reference.rmsprop_update(expected, v, np.ones(1))
print((w == expected).all())
"""
    environment = {**os.environ, "OMP_NUM_THREADS": variable, "OMP_THREAD_LIMIT": "2", "OMP_DYNAMIC": "true"}
    result = subprocess.run([sys.executable, "-P", "-c", program], env=environment, capture_output=True, text=True)
    assert result.stdout == "True\n", result.stderr


def test_threads_that_step_change_settings_save_and_drop_arrays_at_once(tmp_path):
    """On one optimizer, whose rate is 0.5 or 0.25: each step does one of the two, to all elements."""
    w, g = np.zeros(50_000), np.ones(50_000)
    opt = rmsfast.RMSProp({"w": w}, lr=0.5, beta=0.0, eps=0.0)
    errors, steps_each = [], 40

    def steps():
        for _ in range(steps_each):
            opt.step({"w": g})

    def drops():
        for _ in range(steps_each):
            gradient = g.copy()
            opt.bind({"w": gradient})
            del gradient
            opt.step()

    def changes():
        for i in range(20 * steps_each):
            opt.param_groups[0]["lr"] = (0.5, 0.25)[i % 2]

    def saves():
        path = tmp_path / f"{threading.get_ident()}.npz"
        copied = np.zeros_like(w)
        for _ in range(5):
            opt.save(path)
            twin = rmsfast.RMSProp({"w": copied}, lr=1.0)
            twin.load(path)
            step = twin.state["w"]["step"]
            assert (copied == copied[0]).all()
            assert -0.5 * step <= copied[0] <= -0.25 * step
            assert opt.state_dict()["state"]["w"]["step"] >= step

    def guarded(work):
        try:
            work()
        except BaseException as error:
            errors.append(error)

    work = [steps, steps, steps, drops, changes, changes, saves, saves]
    workers = [threading.Thread(target=guarded, args=(each,)) for each in work]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert errors == []
    assert opt.state["w"]["step"] == 4 * steps_each
    assert (w == w[0]).all()
    assert -0.5 * 4 * steps_each <= w[0] <= -0.25 * 4 * steps_each


def test_updates_of_one_array_in_several_threads_at_once():
    """Each has a plan of its own meanwhile: they are so large that they let other threads run.

    The gradients have gaps, so that each tile looks at the plan.
    """
    numbers = np.linspace(-1, 1, 200_000)

    def arrays(i):
        return np.full(100_000, float(i)), np.zeros(100_000), (numbers + i)[::2]

    def updates(w, v, g):
        for _ in range(30):
            rmsfast.rmsprop_update(w, v, g, lr=0.5, num_threads=1)

    shared, alone = [[arrays(i) for i in range(4)] for _ in range(2)]
    workers = [threading.Thread(target=updates, args=each) for each in shared]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    for (w, v, _), each in zip(shared, alone, strict=True):
        updates(*each)
        assert_same_bits(w, each[0])
        assert_same_bits(v, each[1])


WAIT = """
import os, signal, threading, time
import numpy as np
import rmsfast
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
inside, end = threading.Event(), threading.Event()
def schedule(step):
    inside.set()
    end.wait(30)
    return 0.5
opt = rmsfast.RMSProp(np.ones(3), lr=schedule)
other = threading.Thread(target=lambda: opt.step(np.ones(3)))
other.start()
inside.wait()
threading.Timer(0.3, lambda: os.kill(os.getpid(), signal.SIGINT)).start()
try:
    opt.step(np.ones(3))
except KeyboardInterrupt:
    print("interrupted", other.is_alive())
end.set()
other.join()
opt.step(np.ones(3))
print(opt.state[0]["step"])
"""


@pytest.mark.skipif(sys.platform == "win32", reason="sends a signal to itself")
def test_a_wait_for_another_threads_step_can_be_interrupted():
    result = subprocess.run([sys.executable, "-P", "-c", WAIT], capture_output=True, text=True, timeout=60)
    assert result.stdout.split() == ["interrupted", "True", "2"], result.stderr


# ---- Fork ----

TRAIN = """
import ctypes, multiprocessing, os, signal, sys, threading, time
import numpy as np
import rmsfast
from rmsfast._core.threads import _team_size, _tune
_tune(forced=True, cores=2)
g = np.linspace(-1, 1, 300_000)
def train(threads=2):
    w = np.ones_like(g)
    opt = rmsfast.RMSProp(w, num_threads=threads)
    for _ in range(5):
        opt.step(g)
    return w.tobytes()
def in_a_child(check):
    pid = os.fork()
    if pid == 0:
        signal.alarm(30)  # rather than hang
        os._exit(0 if check() else 1)
    assert os.waitpid(pid, 0)[1] == 0
"""

FORKS = {
    "after a team": """
expected = train()
for _ in range(3):
    in_a_child(lambda: train() == expected and _team_size(10**12, 2) == 2)
    assert train() == expected and _team_size(10**12, 2) == 2
""",
    "after the policy has made a team": """
_tune(forced=False)
opt = rmsfast.RMSProp(np.ones_like(g), num_threads=2)
for _ in range(20):
    opt.step(g)
_tune(forced=True)
expected = train(threads=1)
in_a_child(lambda: train() == expected)
""",
    "before any team": """
expected = train(threads=1)
in_a_child(lambda: _team_size(10**12, 2) == 2 and train() == expected)
""",
    "of a child": """
expected = train()
def check(depth):
    if train() != expected or _team_size(10**12, 2) != 2:
        return False
    return depth == 0 or in_a_child(lambda: check(depth - 1)) is None
in_a_child(lambda: check(3))
""",
    "by multiprocessing": """
expected = train()
with multiprocessing.get_context("fork").Pool(2) as pool:
    assert pool.map_async(train, [2, 1, 2, 1]).get(timeout=30) == [expected] * 4
""",
    "by the server of multiprocessing": """
context = multiprocessing.get_context("forkserver")
context.set_forkserver_preload(["rmsfast"])
w = np.ones(300_000)
rmsfast.RMSProp(w).step(g)
with context.Pool(2) as pool:
    for result in [pool.apply_async(rmsfast.reference.rmsprop_update, (np.ones(3), np.zeros(3), np.ones(3))),
                   pool.apply_async(rmsfast.rmsprop_update, (np.ones_like(w), np.zeros_like(w), g))]:
        assert result.get(timeout=30) is None
""",
    "after another library's team": """
nothing = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)
ctypes.CDLL(sys.argv[1]).GOMP_parallel(nothing, None, 2, 0)
expected = train(threads=1)
in_a_child(lambda: train() == expected)
""",
    "by a program that tells Python afterwards only": """
expected = train()
def fork_first():
    pid = ctypes.CDLL(None).fork()      # the GIL is free meanwhile, as nobody else is there to take it
    if pid == 0:
        ctypes.pythonapi.PyOS_AfterFork_Child()
        signal.alarm(30)
        os._exit(train() != expected)
    return os.waitpid(pid, 0)[1] == 0
for _ in range(2):
    assert fork_first()
    in_a_child(lambda: train() == expected and _team_size(10**12, 2) == 2 and fork_first())
    train()
""",
    "from inside another library's team": """
expected = train()
main, inside, end, children = threading.get_ident(), threading.Event(), threading.Event(), []
def forks(_):
    if threading.get_ident() != main:   # CPython 3.11 may hang in a child if a thread begins or ends as it forks
        inside.set()
        end.wait()
        return
    inside.wait()
    children.append(os.fork())
    if children[0] == 0:
        signal.alarm(30)
        os._exit(train() != expected)
    end.set()
region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(forks)
ctypes.CDLL(sys.argv[1]).GOMP_parallel(region, None, 2, 0)
assert os.waitpid(children[0], 0)[1] == 0   # not inside, where ctypes only prints what is raised
""",
    "while other threads are inside long steps": """
expected = train()
stop = threading.Event()
def forever():
    w = np.ones(3_000_000)
    opt, gradient = rmsfast.RMSProp(w, num_threads=2), np.ones_like(w)
    while not stop.is_set():
        opt.step(gradient)
others = [threading.Thread(target=forever, daemon=True) for _ in range(3)]
for other in others: other.start()
for _ in range(20):
    in_a_child(lambda: train() == expected)
stop.set()
for other in others: other.join()
""",
    "while another thread steps": """
parent, begun, end = os.getpid(), threading.Event(), threading.Event()
def schedule(step):
    if os.getpid() == parent:
        begun.set()
        end.wait()
    return 0.5
def lone_step(opt):
    opt.step([None, np.ones(3)])
    return params[0].tolist() == [1, 1, 1] and params[1].tobytes() == twin.tobytes()
twin, params = np.ones(3), [np.ones(3), np.ones(3)]
rmsfast.RMSProp(twin, lr=0.5, momentum=0.5).step(np.ones(3))
opt = rmsfast.RMSProp(params, lr=schedule, momentum=0.5)
thread = threading.Thread(target=lambda: opt.step([np.ones(3), np.ones(3)]), daemon=True)
thread.start()
begun.wait()
in_a_child(lambda: lone_step(opt))
end.set()
thread.join()
assert params[0].tobytes() == twin.tobytes()
""",
    "by a thread that steps in turn with others, as its children do": """
begun, end, inside = threading.Event(), threading.Event(), []
def schedule(step):
    inside.append(step)
    begun.set()
    end.wait()
    time.sleep(0.001)
    assert inside == [step], "two steps at once"
    inside.remove(step)
    return 0.5
def steps():
    for _ in range(5):
        opt.step(ones)
def steps_in_turn():
    inside.clear()      # the parent's step is not here
    end.set()
    others = [threading.Thread(target=steps) for _ in range(4)]
    for other in others: other.start()
    for other in others: other.join()
    return opt.steps == 20 and (w == w[0]).all() and abs(w[0] + 10) < 1e-9
ones, w = np.ones(20_000), np.zeros(20_000)
opt = rmsfast.RMSProp(w, lr=schedule, beta=0.0, eps=0.0)
thread = threading.Thread(target=lambda: opt.step(ones), daemon=True)
thread.start()
begun.wait()
in_a_child(steps_in_turn)
end.set()
thread.join()
assert opt.steps == 1
""",
    "from inside a step": """
parent = os.getpid()
def schedule(step):
    if step == 0 and os.getpid() == parent and os.fork() == 0:
        signal.alarm(30)
    if os.getpid() != parent and step == 0:
        try:
            opt.step(np.ones(3))
        except RuntimeError as error:
            assert "from inside one of its own calls" in str(error)
        else:
            os._exit(1)
    return 0.5
w = np.ones(3)
opt = rmsfast.RMSProp(w, lr=schedule)
for _ in range(2):
    opt.step(np.ones(3))
if os.getpid() != parent:
    os._exit(opt.state[0]["step"] != 2)
assert os.wait()[1] == 0
""",
}


# Where LLVM's runtime ends the process itself.
FORKS_UNDER_GNUS = {
    "from inside another library's region of one thread": """
nothing = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)
ctypes.CDLL(sys.argv[1]).GOMP_parallel(nothing, None, 2, 0)
children = []
region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: children.append(os.fork()))
ctypes.CDLL(sys.argv[1]).GOMP_parallel(region, None, 1, 0)
if children[0] == 0:
    signal.alarm(30)
    os._exit(train() != train(threads=1))
assert os.waitpid(children[0], 0)[1] == 0
""",
    "where a thread that goes home asks for the interpreter": """
library, key = ctypes.CDLL(None), ctypes.c_uint()
destructor = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(lambda _: None)
library.pthread_key_create(ctypes.byref(key), destructor)
main = threading.get_ident()
def keep(_):
    if threading.get_ident() != main:
        library.pthread_setspecific(key, ctypes.c_void_p(1))
region = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(keep)
ctypes.CDLL(sys.argv[1]).GOMP_parallel(region, None, 2, 0)
signal.alarm(30)
expected = train(threads=1)
in_a_child(lambda: train() == expected)
""",
}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.parametrize("program", [*FORKS.values(), *FORKS_UNDER_GNUS.values()], ids=[*FORKS, *FORKS_UNDER_GNUS])
def test_fork(program):
    """In a process of its own, because Python warns of a fork beside threads."""
    if ("_team_size(" in program or "GOMP" in program) and not kernel.OPENMP:
        pytest.skip("built without OpenMP")
    if "GOMP" in program and RUNTIME is None:
        pytest.skip("no OpenMP runtime that was found")
    if program in FORKS_UNDER_GNUS.values() and "libgomp" not in (RUNTIME or ""):
        pytest.skip("another runtime than GNU's")
    if "PyOS_AfterFork_Child" in program and sys.version_info >= (3, 13):
        pytest.skip("CPython itself ends a child that it was not told of before")
    subprocess.run(
        [sys.executable, "-P", "-W", "ignore", "-c", TRAIN + program, RUNTIME or ""], check=True, timeout=120
    )


# ---- What a plan learns ----


@needs_openmp
def test_each_kind_of_work_is_learned_from_whatever_the_gradients_look_like(tune):
    """Steps that gather, or go by rows, and measuring passes: each for itself, but for a plan's first step."""
    tune(forced=False)
    w = np.ones((400, 400), np.float32)
    direct, turned = np.ones_like(w), np.ones_like(w).T
    rows = rmsfast.Rows(np.arange(300), np.ones((300, 400), np.float32))
    opt = rmsfast.RMSProp(w, num_threads=2, clip_norm=1.0)
    for gradient, kind in (direct, "updating"), (turned, "gathering"), (rows, "gathering"):
        for _ in range(3):
            opt.step(gradient)
        known = {name for name, _ in opt._front.plan._learned()}
        assert {kind, "measuring"} <= known
    before = opt._front.plan._learned()
    assert all(learned["step"] >= 2 for learned in before.values())
    other = rmsfast.RMSProp(np.ones_like(w), num_threads=2)
    assert other._front.plan._learned() == {}, "what is learned belongs to a plan"
    opt.add_param_group({"params": np.ones(3)})
    assert opt._front.plan._learned() == before, "and to the one that takes its place"


@needs_openmp
@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at threads in /proc")
def test_two_optimizers_in_turn_keep_their_threads(tune):
    """Of 512 KiB and 2 MiB, where sizes that follow bytes would make and end threads at every step."""
    tune(forced=False, cores=16)
    pairs = [
        (rmsfast.RMSProp(np.ones(n, np.float32), num_threads=16), np.ones(n, np.float32)) for n in (1 << 17, 1 << 19)
    ]
    seen = set()
    for turn in range(600):
        for opt, g in pairs:
            opt.step(g)
            if turn >= 300:
                seen.update(Path("/proc/self/task").iterdir())
    assert len(seen) < 300, "fewer new threads than turns; eleven or twelve in each would be thousands"


# ---- How threads share the line ----

LINES = {
    "one array": [1_000_003],
    "mlp6": [784 * 256, 256, 256 * 256, 256, 2560, 10],
    "one large and many tiny ones": [1 << 20, *[10] * 5000],
    "many tiny ones and one large": [*[10] * 5000, 1 << 20],
    "nothing in between": [5000, 0, 0, 5000],
}


def cost_of(stretch):
    """What a thread has to do, in bytes: 15 ns for an array count as much as 512 bytes of it."""
    return sum(4 * (last - first) + 512 for _, first, last in stretch)


@pytest.mark.parametrize("line", LINES)
@pytest.mark.parametrize("count", [1, 2, 3, 16])
def test_threads_share_the_work_evenly_and_cut_at_cache_lines(line, count):
    params = [np.ones(n, np.float32) for n in LINES[line]]
    opt = rmsfast.RMSProp(params)
    stretches = opt._front._stretches([np.ones(n, np.float32) for n in LINES[line]], count)
    updated = [0] * len(params)
    for stretch in stretches:
        for i, first, last in stretch:
            assert first == updated[i], "each element once, in order"
            updated[i] = last
            if first > 0:
                assert (params[i].ctypes.data + 4 * first) % 64 == 0
                assert (opt.state[i]["square_avg"].ctypes.data + 4 * first) % 64 == 0
    assert updated == LINES[line]
    costs = [cost_of(stretch) for stretch in stretches]
    # An array that is cut counts for both; a cache line may go to either.
    assert max(costs) <= sum(costs) / count + 2 * 512 + 64


def test_without_openmp_every_step_is_alone(tune):
    assert rmsfast.config()["openmp"] == (_team_size(10**12, 2) == 2)
