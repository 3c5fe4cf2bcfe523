"""Fixtures of several test files."""

import numpy as np
import pytest
from helpers import SHORT_STRETCHES, fleeting

from rmsfast._core.threads import _tune


@pytest.fixture
def rng():
    return np.random.default_rng(20261121)


@pytest.fixture
def short_stretches():
    """Let threads share even a handful of elements, however long that takes them."""
    old = _tune(**SHORT_STRETCHES)
    yield
    _tune(**old)


@pytest.fixture
def pair(rng):
    """Two parameters and their gradients."""
    params = [fleeting(rng, (3, 4), np.float32), fleeting(rng, 5, np.float64)]
    return params, [fleeting(rng, w.shape, w.dtype) for w in params]
