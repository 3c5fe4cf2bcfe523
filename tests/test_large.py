"""An array of more than 2³¹ elements: every length and offset is 64 bits wide."""

import ctypes
import mmap
import os
import sys
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_same_bits, textbook

import rmsfast

N = 2**31 + 16
GIB = 2**30


def available_memory():
    """Return how many bytes can be had without swapping."""
    with Path("/proc/meminfo").open() as lines:
        return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("MemAvailable:"))


@pytest.fixture
def repeated(tmp_path):
    """A float32 array of N elements that repeats 2²⁰: one small file, mapped again and again side by side."""
    pattern = np.random.default_rng(0).uniform(0.1, 1, 2**20).astype(np.float32)
    (tmp_path / "pattern").write_bytes(pattern.tobytes())
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mmap.restype = ctypes.c_void_p
    libc.mmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t, *[ctypes.c_int] * 3, ctypes.c_long]
    libc.munmap.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
    count = -(-N // pattern.size)
    length = count * pattern.nbytes
    start = libc.mmap(None, length, mmap.PROT_READ, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0)
    file = os.open(tmp_path / "pattern", os.O_RDONLY)
    map_fixed = 0x10
    for i in range(count):
        at = start + i * pattern.nbytes
        assert libc.mmap(at, pattern.nbytes, mmap.PROT_READ, mmap.MAP_SHARED | map_fixed, file, 0) == at
    os.close(file)
    yield np.ctypeslib.as_array((ctypes.c_float * N).from_address(start)), pattern
    libc.munmap(start, length)


@pytest.mark.slow
@pytest.mark.skipif(
    not sys.platform.startswith("linux") or available_memory() < 20 * GIB, reason="needs Linux and 20 GiB of memory"
)
@pytest.mark.parametrize("threads", [1, 2])
def test_more_elements_than_an_int_counts(repeated, threads):
    g, pattern = repeated
    assert g.size == N
    assert np.array_equal(g[-16:], pattern[:16])
    w = np.ones(N, np.float32)
    opt = rmsfast.RMSProp([w], num_threads=threads)
    opt.step([g])

    expected_w, expected_v = np.ones_like(pattern), np.zeros_like(pattern)
    textbook(expected_w, expected_v, pattern)
    v = opt.state[0]["square_avg"]
    for start in range(0, N, pattern.size):
        n = min(pattern.size, N - start)
        assert_same_bits(w[start : start + n], expected_w[:n])
        assert_same_bits(v[start : start + n], expected_v[:n])

    if threads == 1:  # the same backwards, as a strided gradient
        w[:] = 1
        rmsfast.rmsprop_update(w, v, g[::-1])
        textbook(second := np.ones_like(pattern), expected_v, np.roll(pattern, -16)[::-1])
        assert_same_bits(w[: pattern.size], second)
        assert_same_bits(w[N - 16 :], second[:16])
