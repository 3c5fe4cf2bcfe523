"""One step of each contender on each case: `pytest bench`, with all the options of pytest-benchmark."""

import numpy as np
import pytest

import rmsfast
from bench.contenders import CASES, CONTENDERS, SLOW_TO_START, make_arrays


@pytest.mark.parametrize("contender", [name for name in CONTENDERS if name not in SLOW_TO_START])
@pytest.mark.parametrize("case", CASES)
def bench_step(benchmark, case, contender):
    arrays = make_arrays(CASES[case], np.float32)
    benchmark.group = case
    benchmark.extra_info.update(dtype="float32", **rmsfast.config())
    try:
        step = CONTENDERS[contender](arrays, rmsfast.get_num_threads())
    except ImportError as error:
        pytest.skip(str(error))
    benchmark.pedantic(step, rounds=20, iterations=1 if case == "1x16M" else 10, warmup_rounds=2)
    assert np.isfinite(arrays.w[0]).all()
