"""Several processes share parameters and state on purpose, and take steps without a lock."""

import subprocess
import sys
from multiprocessing.shared_memory import SharedMemory

import numpy as np
import pytest

FEATURES = 200
TRUTH = np.linspace(-1, 1, FEATURES)

# Of the shared memory, the first row says which processes have begun; then come the parameters and the averages.
WORKER = """
import sys, time
from multiprocessing import resource_tracker
from multiprocessing.shared_memory import SharedMemory
import numpy as np
import rmsfast

resource_tracker.register = lambda *args: None      # the memory is its maker's to remove
name, workers, k = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
memory = SharedMemory(name)
here, w, v = np.ndarray((3, 200), np.float64, memory.buf)
truth = np.linspace(-1, 1, 200)
rng = np.random.default_rng(k)
here[k] = 1
while here[:workers].sum() < workers:
    time.sleep(0.001)
for step in range(2000):
    x = rng.standard_normal((20, 200))
    rmsfast.rmsprop_update(w, v, 2 * x.T @ (x @ (w - truth)) / 20, lr=1e-2 * 0.01 ** (step / 2000), beta=0.99)
del here, w, v
memory.close()
"""


@pytest.mark.parametrize("workers", [1, 3])
def test_processes_that_share_a_model_find_its_parameters_together(workers):
    memory = SharedMemory(create=True, size=3 * FEATURES * 8)
    try:
        shared = np.ndarray((3, FEATURES), np.float64, memory.buf)
        shared[:] = 0
        processes = [
            subprocess.Popen([sys.executable, "-P", "-c", WORKER, memory.name, str(workers), str(k)])
            for k in range(workers)
        ]
        assert [process.wait(120) for process in processes] == [0] * workers
        assert np.abs(shared[1] - TRUTH).max() < 0.02
        assert (shared[2] > 0).all()
        del shared
    finally:
        memory.close()
        memory.unlink()
