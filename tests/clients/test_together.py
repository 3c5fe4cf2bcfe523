"""NumPy, SciPy, scikit-learn, PyTorch and rmsfast in one process, each with its own threads, whichever came first."""

import subprocess
import sys

import pytest

pytest.importorskip("sklearn")
torch = pytest.importorskip("torch")

PROGRAM = """
import importlib, sys, warnings

for name in sys.argv[1:]:
    importlib.import_module(name)

import numpy as np
import rmsfast
import rmsfast.torch
import scipy.sparse
import torch
from sklearn.cluster import KMeans
from sklearn.ensemble import HistGradientBoostingRegressor

warnings.simplefilter("ignore")  # KMeans', of more samples than clusters
rng = np.random.default_rng(0)
x = rng.standard_normal((2000, 20)).astype(np.float32)
y = x @ rng.standard_normal(20).astype(np.float32)

w = rng.standard_normal((300_000, 2)).astype(np.float32)
twin = w.copy()
model = torch.nn.Linear(20, 1)
start = [p.detach().numpy().copy() for p in model.parameters()]
grads = []  # of the model, in each step
ours = rmsfast.RMSProp([w], num_threads=2)
reference = rmsfast.reference.RMSProp([twin])
inside = rmsfast.torch.RMSprop(model.parameters(), num_threads=2)
for step in range(6):
    KMeans(3, n_init=1, random_state=step).fit(x)  # scikit-learn's team
    HistGradientBoostingRegressor(max_iter=2).fit(x, y)
    inside.zero_grad()
    (model(torch.tensor(x)).squeeze(1) - torch.tensor(y)).square().mean().backward()  # PyTorch's team
    grads.append([p.grad.numpy().copy() for p in model.parameters()])
    inside.step()
    rows = np.sort(rng.choice(300_000, 40_000, replace=False))
    if step % 2:  # SciPy's sparse rows
        pointers = np.zeros(300_001, np.int32)
        pointers[rows + 1] = 2
        columns = np.tile(np.arange(2, dtype=np.int32), 40_000)
        values = rng.standard_normal(80_000).astype(np.float32)
        g = scipy.sparse.csr_matrix((values, columns, np.cumsum(pointers)), w.shape)
    else:
        g = rng.standard_normal(w.shape).astype(np.float32)
    ours.step([g.copy()])
    reference.step([g.copy()])
assert np.array_equal(w, twin), "rmsfast beside the others"

expected = [torch.nn.Parameter(torch.tensor(p)) for p in start]
theirs = torch.optim.RMSprop(expected)
for given in grads:
    for p, g in zip(expected, given):
        p.grad = torch.tensor(g)
    theirs.step()
for p, e in zip(model.parameters(), expected):
    torch.testing.assert_close(p, e, rtol=1e-5, atol=1e-7)
print("done")
"""


# PyTorch 2.5 has a libgomp from before OpenMP 5.0, of the name that every other one has.
@pytest.mark.parametrize("first", ["rmsfast", "rmsfast.torch", "sklearn.cluster", "scipy.sparse", "torch"])
def test_all_of_them_train_in_one_process(first):
    """In the bits of the reference; PyTorch's own rule rounds otherwise."""
    command = [sys.executable, "-P", "-c", PROGRAM, first]
    result = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (result.returncode, result.stdout) == (0, "done\n"), result.stderr
