"""rmsfast.Rows, and SciPy's sparse matrices: a gradient of some rows moves these, and nothing else."""

import threading

import numpy as np
import pytest
import scipy.sparse
from helpers import assert_same_bits, fleeting, misaligned

import rmsfast

CLASSES = [rmsfast.RMSProp, rmsfast.reference.RMSProp]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("shape", [(20,), (20, 7), (20, 300), (20, 3, 5), (20, 1, 400)])
@pytest.mark.parametrize("order", ["C", "F"])
@pytest.mark.parametrize("settings", [{}, {"momentum": 0.9, "centered": True, "weight_decay": 0.1, "clip_norm": 1.0}])
def test_rows_move_as_an_array_of_them_would(rng, short_stretches, cls, shape, order, settings):
    w = np.asarray(fleeting(rng, shape, np.float32), order=order)
    before = w.copy()
    rows = rng.permutation(20)[:9]
    part = np.asarray(w[rows], order=order)
    opt, twin = cls(w, **settings, num_threads=3), cls(part, **settings)
    for step in range(4):
        g = fleeting(rng, part.shape, np.float32)
        opt.step(rmsfast.Rows(rows, misaligned(g) if step == 2 else np.asarray(g, order="FC"[step % 2])))
        twin.step(g)
    others = np.setdiff1d(np.arange(20), rows)
    assert_same_bits(w[rows], part)
    assert_same_bits(w[others], before[others])
    for name in list(twin.state[0])[1:]:
        assert_same_bits(opt.state[0][name][rows], twin.state[0][name])
        assert not opt.state[0][name][others].any()
    assert opt.state[0]["step"] == 4


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex64, np.complex128])
def test_repeated_rows_are_summed_in_the_order_in_which_they_appear(cls, dtype):
    """In any other order, the small number is lost or kept differently."""
    big = 2.0 / np.finfo(dtype).eps
    values = np.array([[big, 1.0], [7.0, 7.0], [1.0, big], [-big, -big], [0.5, 0.25]], dtype)
    w = np.zeros((4, 2), dtype)
    cls(w, lr=1.0, beta=1.0, eps=1.0).step(rmsfast.Rows([2, 0, 2, 2, 2], values))
    expected = values[0].copy()
    for i in 2, 3, 4:
        expected += values[i]
    assert (w[2] == -expected).all()
    assert (w[0] == -7).all()
    assert not w[[1, 3]].any()


@pytest.mark.parametrize("shape", [(20, 17), (20, 9, 8, 7)])
@pytest.mark.parametrize("dtype", [np.float64, np.complex128])
@pytest.mark.parametrize("kind", ["clip_norm", "clip_global_norm"])
def test_the_norm_of_rows_is_summed_row_by_row(rng, shape, dtype, kind):
    """Each in the order in which its elements lie. The last bit of the norm depends on it, and with it all numbers."""
    for _ in range(20):
        start = np.asarray(rng.standard_normal(shape), dtype, order="F")
        rows = rmsfast.Rows(rng.permutation(20)[:10], rng.standard_normal((10, *shape[1:])).astype(dtype))
        results = []
        for cls in CLASSES:
            w = start.copy(order="K")
            cls(w, lr=1.0, beta=1.0, eps=1.0, **{kind: 0.1}).step(rows)
            results.append(np.ascontiguousarray(w).view(w.real.dtype))
        assert_same_bits(*results)


def test_many_rows_that_repeat(rng, short_stretches):
    w, twin = np.zeros((50, 6)), np.zeros((50, 6))
    for step in range(30):
        rows = rng.integers(0, 50, rng.integers(0, 200))
        values = fleeting(rng, (len(rows), 6), np.float64)
        for each, cls in (w, rmsfast.RMSProp), (twin, rmsfast.reference.RMSProp):
            cls(each, momentum=0.5, clip_norm=1.0, **({} if cls is CLASSES[1] else {"num_threads": step % 4 + 1})).step(
                rmsfast.Rows(rows, values)
            )
        assert_same_bits(w, twin)
    total = np.zeros((50, 6))
    np.add.at(total, rows, values)
    zero = np.zeros((50, 6))
    rmsfast.RMSProp(zero, lr=1.0, beta=1.0, eps=1.0).step(rmsfast.Rows(rows, values))
    assert zero == pytest.approx(-total, rel=1e-9)


@pytest.mark.parametrize("dtype", "bBhHiIlLqQ")
def test_indices_of_any_width(dtype):
    w = np.zeros((100, 2))
    rmsfast.RMSProp(w, lr=1.0, beta=1.0, eps=1.0).step(rmsfast.Rows(np.array([99, 3], dtype), np.ones((2, 2))))
    assert np.flatnonzero(w.any(axis=1)).tolist() == [3, 99]


def test_indices_of_other_forms():
    for indices in [3, 1], (3, 1), np.array([3, 1], ">i4"), np.array([3, 0, 1, 0])[::2], range(3, 0, -2):
        w = np.zeros((4, 2))
        rmsfast.RMSProp(w).step(rmsfast.Rows(indices, np.ones((2, 2))))
        assert np.flatnonzero(w.any(axis=1)).tolist() == [1, 3]


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("indices", [[], np.array([], np.int64)])
def test_no_rows_at_all_are_a_step_all_the_same(cls, indices):
    w = np.ones((4, 2))
    opt = cls(w, nonfinite="raise", clip_global_norm=1.0)
    opt.step(rmsfast.Rows(indices, np.ones((0, 2))), zero_grads=True)
    assert (w == 1).all()
    assert opt.state[0]["step"] == 1
    empty = np.ones((3, 0))
    cls(empty).step(rmsfast.Rows([1, 1], np.ones((2, 0))))


VALUES = np.ones((2, 3))
REFUSED_ROWS = {
    "too large": (rmsfast.Rows([0, 5], VALUES), ValueError, "grads.indices[1]: 5, expected a row from 0 to 4"),
    "negative": (rmsfast.Rows([-1, 0], VALUES), ValueError, "grads.indices[0]: -1, expected a row from 0 to 4"),
    "huge": (
        rmsfast.Rows(np.array([0, 2**63 + 1], np.uint64), VALUES),
        ValueError,
        "grads.indices[1]: 9223372036854775809, expected a row from 0 to 4",
    ),
    "floats": (rmsfast.Rows([0.0, 1.0], VALUES), TypeError, "grads.indices: dtype float64, expected integers"),
    "no integers": (
        rmsfast.Rows(np.array([]), VALUES[:0]),
        TypeError,
        "grads.indices: dtype float64, expected integers",
    ),
    "bools": (rmsfast.Rows([True, False], VALUES), TypeError, "grads.indices: dtype bool, expected integers"),
    "one index": (rmsfast.Rows(1, VALUES), ValueError, "grads.indices: shape (), expected one axis"),
    "two axes": (rmsfast.Rows([[0, 1]], VALUES), ValueError, "grads.indices: shape (1, 2), expected one axis"),
    "too few": (rmsfast.Rows([0], VALUES), ValueError, "grads.values: shape (2, 3), expected (1, 3): a row for each"),
    "row shape": (rmsfast.Rows([0, 1], np.ones((2, 4))), ValueError, "grads.values: shape (2, 4), expected (2, 3)"),
    "dtype": (rmsfast.Rows([0, 1], np.ones((2, 3), "f4")), TypeError, "grads.values: dtype float32, expected float64"),
    "byte order": (
        rmsfast.Rows([0, 1], np.ones((2, 3), ">f8")),
        TypeError,
        "grads.values: dtype >f8, expected float64",
    ),
    "a list": (rmsfast.Rows([0, 1], [[1.0] * 3] * 2), TypeError, "grads.values: list, expected a NumPy array"),
    "masked": (rmsfast.Rows([0, 1], np.ma.ones((2, 3))), TypeError, "grads.values: a masked array"),
    "sparse shape": (scipy.sparse.csr_matrix((3, 5)), ValueError, "grads: shape (3, 5), expected (5, 3)"),
    "sparse dtype": (
        scipy.sparse.csr_matrix(np.ones((5, 3), "f4")),
        TypeError,
        "grads.values: dtype float32, expected",
    ),
    "sparse vector": (
        scipy.sparse.coo_array(np.ones(3)),
        ValueError,
        "grads: shape (3,), expected (5, 3)",
    ),
    "part of a row": (
        scipy.sparse.csr_matrix(np.triu(np.ones((5, 3)))),
        ValueError,
        "grads: a sparse matrix with a part of a row, expected each row to be whole or empty",
    ),
    "three of four entries": (
        scipy.sparse.coo_matrix((np.ones(3), ([0, 0, 0], [0, 1, 1])), (5, 3)),
        ValueError,
        "grads: a sparse matrix with a part of a row",
    ),
}


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(("g", "error", "message"), REFUSED_ROWS.values(), ids=REFUSED_ROWS)
def test_refused_rows_change_nothing(cls, g, error, message):
    w = np.ones((5, 3))
    opt = cls(w)
    with pytest.raises(error) as caught:
        opt.step(g)
    assert message in str(caught.value)
    assert (w == 1).all()
    assert opt.state[0]["step"] == 0


def test_rows_of_what_has_none():
    with pytest.raises(ValueError, match="grads: rows, expected an array without any axis, as the parameter"):
        rmsfast.RMSProp(np.ones(())).step(rmsfast.Rows([0], np.ones(1)))


def test_messages_name_the_parameter():
    opt = rmsfast.RMSProp({"a": np.ones(3), "table": np.ones((5, 3))})
    with pytest.raises(ValueError, match=r"^grads\['table'\].indices\[1\]: 7, expected a row from 0 to 4"):
        opt.step({"a": None, "table": rmsfast.Rows([1, 7], VALUES)})


def test_indices_of_a_batch_and_masks_are_answered_with_the_form_that_is_taken():
    table, ids = np.zeros((5, 3)), np.array([[1, 2], [2, 4]])
    opt = rmsfast.RMSProp(table)
    values = np.ones((2, 2, 3))
    with pytest.raises(
        ValueError, match=r"^grads.indices: shape \(2, 2\), expected one axis: Rows\(indices.reshape\(-1\), "
    ):
        opt.step(rmsfast.Rows(ids, values))
    opt.step(rmsfast.Rows(ids.reshape(-1), values.reshape(-1, *table.shape[1:])))
    assert table.any(axis=1).tolist() == [False, True, True, False, True]
    mask = table.any(axis=1)
    with pytest.raises(
        TypeError, match=r"^grads.indices: dtype bool, expected integers: np.flatnonzero\(mask\) has them$"
    ):
        opt.step(rmsfast.Rows(mask, np.ones((3, 3))))
    opt.step(rmsfast.Rows(np.flatnonzero(mask), np.ones((3, 3))))


def test_rows_beside_arrays_and_nothing(rng):
    params = [np.ones(4), np.ones((5, 3)), np.ones(2)]
    opt = rmsfast.RMSProp(params, eps=1.0)
    opt.step([np.ones(4), rmsfast.Rows([4], np.ones((1, 3))), None])
    assert params[0].tolist() == [params[1][4, 0]] * 4
    assert (params[1][:4] == 1).all()
    assert [entry["step"] for entry in opt.state.values()] == [1, 1, 0]


def test_rows_share_memory_with_no_parameter_and_no_state():
    memory = np.ones((10, 3))
    opt = rmsfast.RMSProp(memory[:5])
    for values, name in [
        (memory[4:6], "params"),
        (opt.state[0]["square_avg"][::2][:2], r"state\[0\]\['square_avg'\]"),
    ]:
        with pytest.raises(
            ValueError, match=f"grads: shares memory with {name}, expected memory of its own: pass a copy"
        ):
            opt.step(rmsfast.Rows([0, 1], values))
    opt.step(rmsfast.Rows([0, 1], memory[5:7]))


@pytest.mark.parametrize("cls", CLASSES)
def test_the_values_of_rows_are_set_to_zero(cls):
    w, values = np.ones((5, 3)), np.ones((3, 6))
    cls(w).step(rmsfast.Rows([0, 0, 4], values[:, ::2]), zero_grads=True)
    assert values.tolist() == [[0, 1] * 3] * 3
    with pytest.raises(ValueError, match="grads: read-only, expected a writable array, because zero_grads"):
        cls(w).step(rmsfast.Rows([0], np.broadcast_to(np.ones(3), (1, 3))), zero_grads=True)


@pytest.mark.parametrize("cls", CLASSES)
def test_nonfinite_rows(cls):
    w = np.ones((5, 3))
    opt = cls(w, nonfinite="skip")
    opt.step(rmsfast.Rows([0, 3], np.array([[1, 1, 1], [1, np.nan, 1.0]])))
    assert opt.skipped_steps == 1
    opt.param_groups[0]["nonfinite"] = "raise"
    with pytest.raises(FloatingPointError, match="grads: 2 of 6 numbers"):
        opt.step(rmsfast.Rows([0, 3], np.array([[np.inf, 1, 1], [1, np.nan, 1.0]])))
    assert (w == 1).all()


def test_sparse_is_not_dense_with_zeros():
    """A dense step with zeros moves the other rows by their momentum; a sparse one does not."""
    dense, sparse = np.ones((3, 1)), np.ones((3, 1))
    for w, g in (dense, np.array([[1.0], [0.0], [0.0]])), (sparse, rmsfast.Rows([0], np.ones((1, 1)))):
        opt = rmsfast.RMSProp(w, momentum=0.9)
        opt.step(np.ones((3, 1)))
        opt.step(g)
    assert dense[0, 0] == sparse[0, 0]
    assert dense[1, 0] < sparse[1, 0]


def test_indices_that_change_during_the_step():
    """They are copied before they are checked; another thread that meddles with them meddles too late."""
    w = np.zeros((1000, 4))
    indices = np.zeros(500, np.int64)
    values = np.ones((500, 4))
    opt = rmsfast.RMSProp(w)
    done = threading.Event()

    def meddle():
        while not done.is_set():
            indices[:] = 10**15
            indices[:] = 5

    thread = threading.Thread(target=meddle)
    thread.start()
    try:
        for _ in range(300):
            try:
                opt.step(rmsfast.Rows(indices, values))
            except ValueError as error:
                assert "expected a row from 0 to 999" in str(error)
    finally:
        done.set()
        thread.join()
    assert set(np.flatnonzero(w.any(axis=1))) <= {0, 5}


@pytest.mark.parametrize(
    "make", [scipy.sparse.csr_matrix, scipy.sparse.coo_matrix, scipy.sparse.csr_array, scipy.sparse.coo_array]
)
def test_sparse_matrices_with_whole_rows(rng, make):
    dense = np.zeros((9, 5), np.float32)
    rows = [7, 2, 4]
    dense[rows] = rng.standard_normal((3, 5))
    results = []
    for g in make(dense), rmsfast.Rows(rows, dense[rows]):
        w = np.ones((9, 5), np.float32)
        rmsfast.RMSProp({"w": w}).step({"w": g})
        results.append(w)
    assert_same_bits(*results)
    w = np.ones((9, 5), np.float32)
    rmsfast.RMSProp(w).step(make((9, 5), dtype=np.float32))
    assert (w == 1).all()
    rmsfast.RMSProp(np.ones((9, 0))).step(make((9, 0), dtype=np.float64))


@pytest.mark.parametrize("cls", CLASSES)
def test_sparse_matrices_are_not_set_to_zero(cls):
    """What a step takes are copies of what they hold."""
    params, g = [np.ones(2), np.ones((3, 2))], np.ones(2)
    opt = cls(params)
    sparse = scipy.sparse.csr_matrix(np.ones((3, 2)))
    with pytest.raises(TypeError, match=r"grads\[1\]: a sparse matrix, expected an array or Rows, because zero_grads"):
        opt.step([g, sparse], zero_grads=True)
    assert (g == 1).all()
    assert all((w == 1).all() for w in params)
    opt.step([g, sparse])


def test_a_sparse_vector_has_no_rows():
    with pytest.raises(ValueError, match=r"grads: a sparse array of shape \(5,\), expected one with rows and columns"):
        rmsfast.RMSProp(np.ones(5)).step(scipy.sparse.coo_array(np.ones(5)))


def test_rows_of_values_that_move_during_the_step():
    """A schedule runs between the look at the values and the step; what is no longer there is refused."""
    values = np.ones((2, 3))
    w = np.ones((5, 3))
    opt = rmsfast.RMSProp(w, lr=lambda step: values.resize((200_000, 3), refcheck=False) or 0.1)
    with pytest.raises(ValueError, match="grads: rows of another parameter, or moved"):
        opt.step(rmsfast.Rows([0, 1], values))
    assert (w == 1).all()


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("change", ["reshaped", "shrunk"])
@pytest.mark.filterwarnings("ignore:Setting the .* on a NumPy array has been deprecated:DeprecationWarning")
def test_rows_of_values_that_change_once_they_are_summed(cls, change):
    """The indices of the next gradient run code. Whoever reshapes the values has another view than the step; whoever
    takes their memory away is refused, even where it begins at the same place."""
    values = np.ones((1000, 2))

    class Meddling:
        def __array__(self, dtype=None, copy=None):
            if change == "reshaped":
                values.shape = (2000,)
            else:
                values.resize((900, 2), refcheck=False)
            return np.array([0])

    params = [np.ones((1000, 2)), np.ones((1, 1))]
    opt = cls(params, lr=1.0, beta=1.0, eps=1.0)
    grads = [rmsfast.Rows(range(1000), values), rmsfast.Rows(Meddling(), np.ones((1, 1)))]
    if change == "reshaped":
        opt.step(grads, zero_grads=True)
        assert not params[0].any()
        assert not values.any()
    else:
        with pytest.raises(ValueError, match=r"grads\[0\]: rows of another parameter, or moved since they were given"):
            opt.step(grads)
        assert (params[0] == 1).all()


def test_entries_of_a_sparse_matrix_that_repeat_are_rows_that_do(rng):
    """In any order of the entries, the n-th of each entry belongs to the n-th of its row."""
    rows, values = np.array([6, 1, 6, 6]), fleeting(rng, (4, 3), np.float32)
    row, column = np.repeat(rows, 3), np.tile(np.arange(3), 4)
    mixed = np.lexsort((row, rng.permutation(3)[column]))  # by column first; stable within one entry
    g = scipy.sparse.coo_matrix((values.ravel()[mixed], (row[mixed], column[mixed])), (8, 3))
    results = []
    for each in g, rmsfast.Rows(rows, values):
        w = np.zeros((8, 3), np.float32)
        rmsfast.RMSProp(w, lr=1.0, beta=1.0, eps=1.0).step(each)
        results.append(w)
    assert_same_bits(*results)
    assert g.nnz == 12


def test_repr():
    assert repr(rmsfast.Rows([1], np.ones((1, 1)))) == "Rows([1], array([[1.]]))"
