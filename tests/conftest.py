"""Fixtures of several test files."""

import numpy as np
import pytest
from helpers import SHORT_STRETCHES

from rmsfast import _kernel


@pytest.fixture
def rng():
    return np.random.default_rng(20261121)


@pytest.fixture
def short_stretches():
    """Let threads share even a handful of elements, however long that takes them."""
    old = _kernel._tune(**SHORT_STRETCHES)
    yield
    _kernel._tune(**old)
