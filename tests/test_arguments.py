"""The forms in which parameters and gradients come, and every refusal: the message, and everything as it was."""

import array
import copy
import subprocess
import sys

import numpy as np
import pytest
from helpers import (
    CLASSES,
    GRADS,
    after_one_step,
    assert_same_bits,
    assert_says_all,
    assert_unchanged,
    fleeting,
    misaligned,
    shared_arrays,
    trained,
)
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

import rmsfast

ONE = np.ones(6)
endless = []
endless.append(endless)

# ---- Forms ----


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(
    ("form_of_params", "form_of_grads"),
    [
        (list, list),
        (tuple, tuple),
        (list, tuple),
        (iter, iter),
        (lambda a: (x for x in a), lambda a: (x for x in a)),
        (lambda a: dict(zip("wb", a, strict=True)), lambda a: dict(zip("bw", reversed(a), strict=True))),
        (lambda a: dict(zip("wb", a, strict=True)), lambda a: list(a)),
        (lambda a: [{"params": x} for x in a], list),
        (lambda a: [{"params": [x]} for x in a], lambda a: [[x] for x in a]),
        (lambda a: [{"params": a}], lambda a: [a]),
        (lambda a: [{"params": a}], lambda a: [{"params": a}]),
        (lambda a: [{"params": {"w": a[0]}}, {"params": {"b": a[1]}}], lambda a: {"w": a[0], "b": a[1]}),
        (lambda a: [{"params": {"w": a[0]}}, {"params": {"b": a[1]}}], lambda a: [{"w": a[0]}, {"b": a[1]}]),
        (lambda a: [{"params": []}, {"params": a}], lambda a: [None, a]),
    ],
)
@shared_arrays
def test_forms_of_params_and_grads(pair, cls, form_of_params, form_of_grads):
    params, grads = pair
    expected = [after_one_step(w, g) for w, g in zip(params, grads, strict=True)]
    opt = cls(form_of_params(params))
    opt.step(form_of_grads(grads))
    for w, e in zip(params, expected, strict=True):
        assert_same_bits(w, e)
    assert [entry["step"] for entry in opt.state.values()] == [1, 1]


@shared_arrays
def test_a_single_array(pair):
    (w, _), (g, _) = pair
    expected = after_one_step(w, g)
    rmsfast.RMSProp(w).step(g)
    assert_same_bits(w, expected)


@pytest.mark.parametrize("grads", [None, 1.0, "g", {}, {"w": np.ones(3)}])
def test_a_single_array_needs_a_gradient(grads):
    opt = rmsfast.RMSProp(np.ones(3))
    with pytest.raises(TypeError, match="^grads: .*, expected (a sequence of|gradients)"):
        opt.step(grads)
    opt.step([None])
    assert opt.state[0]["step"] == 0


@pytest.mark.parametrize("grads", [[None, 1], {"w": None, "b": 1}])
@shared_arrays
def test_no_gradient_leaves_a_parameter_alone(pair, grads):
    params, given = pair
    before, expected = params[0].copy(), after_one_step(params[1], given[1])
    opt = rmsfast.RMSProp(params if isinstance(grads, list) else dict(zip("wb", params, strict=True)))
    if isinstance(grads, list):
        opt.step([None, given[1]])
    else:
        opt.step({**grads, "b": given[1]})
    assert_same_bits(params[0], before)
    assert_same_bits(params[1], expected)
    assert [entry["step"] for entry in opt.state.values()] == [0, 1]


# ---- Names that a mapping of gradients lacks ----


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize("form", [dict, lambda grads: type("Other", (dict,), {})(grads)])
def test_a_name_that_a_mapping_lacks_is_said_once(cls, form):
    """A parameter without a gradient stays as it is; when it was forgotten, that would otherwise go unseen."""
    params = {"weight": np.ones(3), "bias": np.ones(2), "scale": np.ones(2)}
    opt = cls(params)
    opt.step(form({"weight": np.ones(3), "bias": None, "scale": None}))
    with pytest.warns(UserWarning, match="^grads: no gradient of 'bias', 'scale', expected one for each name") as seen:
        opt.step(form({"weight": np.ones(3)}))
    assert [warning.filename for warning in seen] == [__file__]
    opt.step(form({"weight": np.ones(3)}))
    opt.step(form({"scale": np.ones(2)}))
    assert [entry["step"] for entry in opt.state.values()] == [3, 0, 1]
    assert_same_bits(params["bias"], np.ones(2))


def test_a_sequence_may_not_omit_names():
    with pytest.raises(ValueError, match=r"^grads: 0 entries, expected more: a gradient or None for params\['w'\]"):
        rmsfast.RMSProp({"w": np.ones(3)}).step([])


def test_a_warning_that_is_an_error_changes_nothing():
    opt, params = trained("abc")
    before = [w.copy() for w in params], opt.state_dict()
    for call in opt.step, opt.bind:
        for _ in range(2):
            with pytest.raises(UserWarning, match="no gradient of 'b', 'c'"):
                call({"a": GRADS[0]})
    assert_unchanged(opt, params, before)


def test_the_warning_of_bind_points_to_the_users_line():
    opt = rmsfast.RMSProp({"w": np.ones(3), "b": np.ones(2)})
    with pytest.warns(UserWarning, match="no gradient of 'b'") as seen:
        opt.bind({"w": np.ones(3)})
    assert [warning.filename for warning in seen] == [__file__]


# ---- Trees ----


def layers(rng):
    return [[fleeting(rng, (3, 4), np.float32), fleeting(rng, 4, np.float32)] for _ in range(2)]


# How a tree is made of two layers of two arrays each, and the names of the four.
TREES = {
    "pairs": (lambda a: [(W, b) for W, b in a], ["0.0", "0.1", "1.0", "1.1"]),
    "mappings in a list": (lambda a: [{"W": W, "b": b} for W, b in a], ["0.W", "0.b", "1.W", "1.b"]),
    "a tuple of lists": (lambda a: tuple(map(list, a)), ["0.0", "0.1", "1.0", "1.1"]),
    "mappings in a mapping": (
        lambda a: {"in": {"W": a[0][0], "b": a[0][1]}, "out": {"b": a[1][1], "W": a[1][0]}},
        ["in.W", "in.b", "out.b", "out.W"],
    ),
    "deep": (
        lambda a: {"layers": [{"W": a[0][0], "b": [a[0][1]]}, tuple(a[1])], "none": []},
        ["layers.0.W", "layers.0.b.0", "layers.1.0", "layers.1.1"],
    ),
    "an array beside a tuple": (lambda a: [a[0][0], (a[0][1], a[1][0]), a[1][1]], ["0", "1.0", "1.1", "2"]),
    "params is a name": (
        lambda a: {"params": {"a": a[0], "b": a[1]}},
        ["params.a.0", "params.a.1", "params.b.0", "params.b.1"],
    ),
    "a setting is a name": (lambda a: [{"beta": W, "eps": b} for W, b in a], ["0.beta", "0.eps", "1.beta", "1.eps"]),
    "groups": (
        lambda a: [{"params": [tuple(a[0])]}, {"params": {"out": {"W": a[1][0], "b": a[1][1]}}}],
        ["0.0", "0.1", "out.W", "out.b"],
    ),
}


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(("form", "names"), TREES.values(), ids=TREES)
def test_trees_of_params_and_grads(rng, cls, form, names):
    params, grads = layers(rng), layers(rng)
    expected = [[after_one_step(w, g) for w, g in zip(*pair, strict=True)] for pair in zip(params, grads, strict=True)]
    opt = cls(form(params))
    assert list(opt.state) == names
    opt.step(form(grads))
    for layer, other in zip(params, expected, strict=True):
        for w, e in zip(layer, other, strict=True):
            assert_same_bits(w, e)
    flat = dict(zip(names, (w for group in opt.param_groups for w in group["params"]), strict=True))
    by_path = {name: np.ones_like(w) for name, w in flat.items()}
    opt.step(by_path)
    opt.step(list(by_path.values()))
    opt.bind(form(grads))
    opt.step()
    assert [entry["step"] for entry in opt.state.values()] == [4] * 4
    twin = copy.deepcopy(opt)
    twin.step(form(grads))
    assert list(twin.state_dict()["state"]) == names


def test_rows_and_none_in_a_tree():
    W, b, table = np.zeros((3, 2)), np.zeros(2), np.zeros((4, 2))
    opt = rmsfast.RMSProp([(W, b), {"table": table}], lr=1.0, beta=0.0, eps=0.0)
    opt.step([None, {"table": rmsfast.Rows([2], np.ones((1, 2)))}])
    assert table.tolist() == [[0, 0], [0, 0], [-1, -1], [0, 0]]
    opt.step([(None, np.ones(2)), None])
    opt.step([None, None])
    assert b.tolist() == [-1, -1]
    assert not W.any()
    assert [entry["step"] for entry in opt.state.values()] == [0, 1, 1]
    with pytest.warns(UserWarning, match="^grads: no gradient of '1.table'"):
        opt.step([(None, np.ones(2)), {}])


@pytest.mark.parametrize(
    ("grads", "error", "message"),
    [
        ([(ONE,), None], ValueError, "grads['0']: 1 entry, expected more: a gradient or None for params['0.1']"),
        ([(ONE, ONE.copy())], ValueError, "grads: 1 entry, expected more: a gradient or None for params['1.table']"),
        ([(ONE, ONE, ONE), None], ValueError, "grads['0.2']: no parameter has this name, expected one of '0.0', '0.1'"),
        (
            [((ONE, ONE), ONE), None],
            ValueError,
            "grads['0.0']: a list, tuple or mapping, expected an array or None, as the parameter is one array: rm",
        ),
        ([(ONE, ONE), {"tabel": ONE}], ValueError, "Did you mean '1.table'?"),
        ([(np.ones(5), ONE), None], ValueError, "grads['0.0']: shape (5,), expected (6,)"),
        ([(ONE, 1.0), None], TypeError, "grads['0.1']: float, expected a NumPy array"),
        ([], ValueError, "grads: 0 entries, expected more: a gradient or None for params['0.0']"),
        (
            [(ONE, ONE), []],
            ValueError,
            "grads['1']: 0 entries, expected more: a gradient or None for params['1.table']",
        ),
        ([ONE, ONE], ValueError, "grads: 2 gradients, expected 3: an array or None for each parameter"),
        ([(ONE, endless), None], ValueError, "grads: nested more than 64 deep, expected less"),
        ({0: None}, TypeError, "grads: 0 as a name, expected a str"),
        ({"0.0": ONE, "0": None}, ValueError, "grads['0']: '0.0' is given twice, expected each gradient once"),
        ({"0": None, "0.0": ONE}, ValueError, "grads['0.0']: '0.0' is given twice, expected each gradient once"),
    ],
)
def test_refused_trees_of_grads(grads, error, message):
    params = [(np.ones(6), np.ones(6)), {"table": np.ones(6)}]
    opt = rmsfast.RMSProp(params)
    with pytest.raises(error) as caught:
        opt.step(grads)
    assert message in str(caught.value)
    assert_says_all(caught.value)
    assert opt.steps == 0
    assert all((w == 1).all() for w in opt.param_groups[0]["params"])


def test_memory_without_a_copy(rng):
    """What has the buffer protocol or DLPack is trained in its own memory."""

    class OverDLPack:
        def __init__(self, values):
            self.values = values

        def __dlpack__(self, **kwargs):
            return self.values.__dlpack__(**kwargs)

        def __dlpack_device__(self):
            return self.values.__dlpack_device__()

    values = fleeting(rng, 20, np.float32)
    g = fleeting(rng, 20, np.float32)
    expected = after_one_step(values, g)
    buffer = array.array("f", values)
    rmsfast.RMSProp(buffer).step(array.array("f", g))
    assert_same_bits(np.array(buffer, np.float32), expected)

    view = memoryview(bytearray(values.tobytes())).cast("f")
    rmsfast.RMSProp([view]).step([memoryview(g)])
    assert_same_bits(np.array(view, np.float32), expected)

    if np.lib.NumpyVersion(np.__version__) >= "2.2.0":
        rmsfast.RMSProp(OverDLPack(values)).step(OverDLPack(g))
        assert_same_bits(values, expected)
    else:  # NumPy 2.0 and 2.1 take all that comes by DLPack for read-only
        with pytest.raises(ValueError, match="params: read-only"):
            rmsfast.RMSProp(OverDLPack(values))


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.complex128])
def test_a_numpy_number_is_the_gradient_of_an_array_without_axes(dtype):
    """That is what arithmetic on such an array returns."""
    w, twin = np.array(3, dtype), np.array(3, dtype)
    opt = rmsfast.RMSProp(w)
    opt.step(2 * w)
    rmsfast.RMSProp(twin).step(np.array(6, dtype))
    assert w.tobytes() == twin.tobytes()


def test_subclasses_are_arrays(rng, tmp_path):
    values, g = fleeting(rng, (4, 5), np.float64), fleeting(rng, (4, 5), np.float64)
    expected = after_one_step(values, g)
    matrix = values.view(type("Plain", (np.ndarray,), {}))
    rmsfast.RMSProp([matrix]).step([g.copy().view(type(matrix))])
    assert_same_bits(matrix.view(np.ndarray), expected)

    mapped = np.memmap(tmp_path / "w", np.float64, "w+", shape=(4, 5))
    mapped[...] = fleeting(np.random.default_rng(1), (4, 5), np.float64)
    expected = after_one_step(np.array(mapped), g)
    rmsfast.RMSProp({"w": mapped}).step({"w": g})
    assert_same_bits(np.array(mapped), expected)


class Untouchable(np.ndarray):
    """An array whose elements only NumPy itself may read and write."""

    def refuse(self, *args):
        raise RuntimeError

    __getitem__ = __setitem__ = __array_function__ = refuse


@pytest.mark.parametrize("cls", CLASSES)
def test_nothing_that_a_subclass_redefines_is_called(cls, tmp_path):
    w, v = np.ones((3, 2)), np.ones((3, 2))
    opt, twin = cls([w.view(Untouchable)]), cls([v])
    for each in (opt, twin):
        each.step([rmsfast.Rows([2, 0], np.ones((2, 2)))])
    opt.save(tmp_path / "saved")
    w[...] = 0
    opt.load(tmp_path / "saved")
    assert_same_bits(w, v)
    clone = copy.deepcopy(opt)
    assert_same_bits(np.asarray(clone.param_groups[0]["params"][0]), v)


# ---- Memory that belongs to another object ----


def run(program):
    """Run a program in a process of its own, where a crash is seen, and return what it printed."""
    result = subprocess.run([sys.executable, "-P", "-c", program], capture_output=True, text=True)
    assert result.returncode == 0, f"ended with {result.returncode}: {result.stderr}"
    return result.stdout


TENSOR_PROGRAM = """
import numpy as np, torch, rmsfast
n = 1_000_000

def refused(error, text, call, *args, **kwargs):
    try:
        call(*args, **kwargs)
    except error as caught:
        assert text in str(caught), caught
    else:
        raise AssertionError(f"expected {error}: {text}")

"""


@pytest.mark.parametrize("cls", ["rmsfast.RMSProp", "rmsfast.reference.RMSProp"])
def test_a_tensor_that_is_trained_keeps_its_memory(cls):
    """PyTorch refuses to resize it; a tensor that is given other memory leaves the old one to the optimizer."""
    pytest.importorskip("torch")
    run(
        TENSOR_PROGRAM
        + f"""
for form in (lambda a: a), (lambda a: [a]), (lambda a: dict(w=a)):
    t = torch.ones(n, dtype=torch.float64)
    opt = {cls}(form(t), lr=0.5, beta=0.0, eps=0.0)
    refused(RuntimeError, "not resizable", t.resize_, 10 * n)
    t.resize_(n)  # PyTorch has changed the shape all the same
    refused(RuntimeError, "not resizable", t.untyped_storage().resize_, 0)
    opt.step(form(torch.ones(n, dtype=torch.float64)))
    assert (t == 0.5).all()
    w = opt.param_groups[0]["params"][0]
    t.set_()
    opt.step(form(np.ones(n)))
    assert (w == 0).all()

    t = torch.ones(n, dtype=torch.float64)
    opt = {cls}(form(t), lr=0.5, beta=0.0, eps=0.0)
    w = opt.param_groups[0]["params"][0]
    t.data = torch.zeros(3)
    opt.step(form(np.ones(n)))
    assert (w == 0.5).all()
"""
    )


def test_a_tensor_as_a_bound_gradient_keeps_its_memory():
    pytest.importorskip("torch")
    run(
        TENSOR_PROGRAM
        + """
w, g = np.ones(n), torch.ones(n, dtype=torch.float64)
opt = rmsfast.RMSProp(w, lr=0.5, beta=0.0, eps=0.0)
opt.bind(g)
refused(RuntimeError, "not resizable", g.untyped_storage().resize_, 0)
opt.step()
g.set_()
opt.step()
assert (w == 0).all()
"""
    )


def test_tensors_in_one_update_keep_their_memory():
    pytest.importorskip("torch")
    run(
        TENSOR_PROGRAM
        + """
w, v, g = (torch.ones(n, dtype=torch.float64) for _ in range(3))
rmsfast.rmsprop_update(w, v, g, lr=0.5, beta=0.0, eps=0.0)
assert (w == 0.5).all()
"""
    )


def test_tensors_that_numpy_cannot_show_are_refused():
    torch = pytest.importorskip("torch")
    from torch._subclasses.fake_tensor import FakeTensorMode

    w, real = np.ones(3), torch.ones(3, dtype=torch.float64)
    with FakeTensorMode():
        fake = torch.ones(3, dtype=torch.float64)
    for value, text in [
        (
            real.clone().requires_grad_(),
            "a tensor that requires grad, expected one that does not: pass tensor.detach(), or use rms",
        ),
        (
            real.to(torch.complex128).conj(),
            "a tensor with the conjugate bit, expected its values in memory: tensor.resolve_conj() has",
        ),
        (torch._neg_view(real), "a tensor with the negative bit, expected its values in memory: tensor.resolve_neg()"),
        (real.to_sparse(), "a tensor that NumPy cannot show, expected a dense one on the CPU"),
        (real.to("meta"), "a tensor that NumPy cannot show, expected a dense one on the CPU"),
        (real.to(torch.bfloat16), "a tensor that NumPy cannot show, expected a dense one on the CPU"),
        (fake, "a tensor that NumPy cannot show, expected a dense one on the CPU"),
    ]:
        for name, call in [
            ("params", rmsfast.RMSProp),
            ("grads", rmsfast.RMSProp(w).step),
            ("grads", rmsfast.RMSProp(w).bind),
            ("w", lambda value: rmsfast.rmsprop_update(value, np.ones(3), np.ones(3))),
            ("g", lambda value: rmsfast.rmsprop_update(w, np.ones(3), value)),
        ]:
            with pytest.raises(TypeError) as caught:
                call(value)
            assert str(caught.value).startswith(f"{name}: {text}")
    assert_same_bits(w, np.ones(3))
    parameter = torch.nn.Parameter(real.clone())
    with pytest.raises(TypeError, match=r"params\[0\]: .* or use rmsfast.torch.RMSprop$"):
        rmsfast.RMSProp([parameter])
    parameter.requires_grad_(False)
    rmsfast.RMSProp([parameter], lr=0.5, beta=0.0, eps=0.0).step([real])
    assert parameter.tolist() == [0.5] * 3


MOVED = {
    "a tensor that moves into shared memory": """
import torch
lender = torch.ones(n, dtype=torch.float64)
lend = lambda: lender
move = lambda: lender.share_memory_()
""",
    "an array of a tensor's": """
import torch
lender = torch.ones(n, dtype=torch.float64)
lend = lambda: lender.numpy()[:n]
move = lambda: lender.share_memory_()
""",
    "a resized ctypes array": """
import ctypes
lender = (ctypes.c_double * n)(*[1.0] * n)
ctypes.resize(lender, 16 * n)
lend = lambda: lender
move = lambda: ctypes.resize(lender, 800 * n)
""",
    "an array over a map that is closed": """
import mmap
lender = mmap.mmap(-1, 8 * n)
lend = lambda: np.ndarray((n,), np.float64, lender)
move = lambda: lender.close()
""",
    "an array over shared memory that is closed": """
from multiprocessing.shared_memory import SharedMemory
lender = SharedMemory(create=True, size=8 * n)
lender.unlink()
lend = lambda: np.ndarray((n,), np.float64, lender.buf)
move = lambda: lender.close()
""",
    "an array over a bytearray that is cleared": """
lender = bytearray(8 * n)
lend = lambda: np.ndarray((n,), np.float64, lender)
move = lambda: lender.clear()
""",
}


@pytest.mark.parametrize("program", MOVED.values(), ids=MOVED)
def test_memory_that_was_moved_or_freed_is_refused(program, tmp_path):
    """Parameters at each step, save, load and copy; bound gradients at each step that takes them."""
    if "torch" in program:
        pytest.importorskip("torch")
    run(
        "import copy, numpy as np, pytest, rmsfast\nn = 1_000_000\n"
        + program
        + f"""
path = {str(tmp_path / "saved")!r}
other, g = np.ones(3), np.ones(n)
trained = rmsfast.RMSProp([other, lend()])
bound = rmsfast.RMSProp(np.ones(n))
bound.bind(lend())
for _ in range(2):
    trained.step([None, g])
    bound.step()
trained.save(path)
move()
before = other.copy()
for call in [
    lambda: trained.step([np.ones(3), g]),
    lambda: trained.save(path),
    lambda: trained.load(path),
    lambda: copy.deepcopy(trained),
]:
    with pytest.raises(ValueError, match=r"^params.1.: the \\w+ that owns its memory moved or freed it, expected"):
        call()
with pytest.raises(ValueError, match=r"^grads: the \\w+ that owns its memory moved or freed it, expected .*: bind"):
    bound.step()
assert (other == before).all()
assert trained.state[0]["step"] == 0
bound.step(g)
bound.bind(g)
bound.step()
bound.bind(None)
"""
    )


PINNED = {
    "bytearray": ("m = bytearray(8 * n)", "m", "m.clear()"),
    "array": ("import array; m = array.array('d', [0.0]) * n", "m", "m.extend(m)"),
    "map": ("import mmap; m = mmap.mmap(-1, 8 * n)", "memoryview(m).cast('d')", "m.close()"),
    "shared memory": (
        "from multiprocessing.shared_memory import SharedMemory; m = SharedMemory(create=True, size=8 * n); m.unlink()",
        "m.buf.cast('d')",
        "m.close()",
    ),
    "bytes of a view": ("m = bytearray(8 * n)", "memoryview(m).cast('d')", "m.extend(m)"),
}


@pytest.mark.parametrize(("make", "lend", "move"), PINNED.values(), ids=PINNED)
def test_memory_of_the_buffer_protocol_stays_while_it_is_trained(make, lend, move):
    """Its owner refuses to move it; a view that is released makes no difference."""
    run(
        f"""
import numpy as np, rmsfast
n = 1_000_000
{make}
view = {lend}
if not hasattr(view, "cast"):
    view = memoryview(view).cast("B").cast("d")
opt, twin = rmsfast.RMSProp(view), rmsfast.RMSProp(np.zeros(n))
twin.bind(view)
view.release()
try:
    {move}
except BufferError:
    pass
else:
    raise AssertionError("it moved")
opt.step(np.ones(n))
twin.step()
del opt, twin
{move}
"""
    )


# ---- Refusals: the message, and everything as it was ----


def readonly(a):
    a.flags.writeable = False
    return a


def overlapping(params):
    """A gradient inside a memory that also holds the parameter before it."""
    return params[0].reshape(-1)[:12].reshape(3, 4)


def with_grad(i, g):
    return lambda opt, params: [*GRADS[:i], g(opt, params) if callable(g) else g, *GRADS[i + 1 :]]


REFUSED_GRADS = {
    "shape": (with_grad(0, np.ones((10, 5), np.float32)), ValueError, r"grads\[0\]: shape (10, 5), expected (5, 10)"),
    "transposed": (
        with_grad(0, np.ones((10, 5), np.float32)),
        ValueError,
        "grads[0]: shape (10, 5), expected (5, 10), as the parameter: g.T has it",
    ),
    "rank": (
        with_grad(1, np.ones((7, 1))),
        ValueError,
        "grads[1]: shape (7, 1), expected (7,), as the parameter: g.reshape(w.shape) has it",
    ),
    "batch": (
        with_grad(1, np.ones((32, 7))),
        ValueError,
        "grads[1]: shape (32, 7), expected (7,), as the parameter: g.sum(axis=0) has it, if the first",
    ),
    "0-d": (with_grad(1, np.array(1.0)), ValueError, "grads[1]: shape (), expected (7,)"),
    "dtype": (with_grad(1, np.ones(7, np.float32)), TypeError, "grads[1]: dtype float32, expected float64, as the"),
    "integers": (with_grad(1, np.ones(7, int)), TypeError, "grads[1]: dtype int64, expected float64"),
    "objects": (with_grad(1, np.ones(7, object)), TypeError, "grads[1]: dtype object, expected float64"),
    "complex": (with_grad(1, np.ones(7, complex)), TypeError, "grads[1]: dtype complex128, expected float64"),
    "short integers": (with_grad(0, np.ones((5, 10), np.int16)), TypeError, "grads[0]: dtype int16, expected float32"),
    "longdouble": (with_grad(1, np.ones(7, np.longdouble)), TypeError, "expected float64"),
    "byte order": (with_grad(1, np.ones(7, ">f8")), TypeError, "grads[1]: dtype >f8, expected float64"),
    "list": (
        with_grad(1, [1.0] * 7),
        TypeError,
        "grads[1]: list, expected a NumPy array: np.array(numbers, dtype=np.float64) makes one",
    ),
    "lists": (
        with_grad(0, [[1] * 10] * 5),
        TypeError,
        "grads[0]: list, expected a NumPy array: np.array(numbers, dtype=np.float32) makes one",
    ),
    "number": (
        with_grad(1, 1.0),
        TypeError,
        "grads[1]: float, expected a NumPy array: np.array(numbers, dtype=np.float64) makes one",
    ),
    "NumPy's numbers": (
        with_grad(1, [np.float64(1)] * 7),
        TypeError,
        "grads[1]: list, expected a NumPy array: np.array(numbers, dtype=np.float64) makes one",
    ),
    "nested": (with_grad(1, (ONE, ONE)), TypeError, "grads[1]: tuple, expected a NumPy array"),
    "rows of numbers": (
        with_grad(1, rmsfast.Rows([0], [1.0])),
        TypeError,
        "grads[1].values: list, expected a NumPy array: np.array(numbers, dtype=np.float64) makes one",
    ),
    "masked": (
        with_grad(1, np.ma.ones(7)),
        TypeError,
        "grads[1]: a masked array, expected an array without a mask: .filled(0) returns one",
    ),
    "too few": (
        lambda opt, params: GRADS[:2],
        ValueError,
        "grads: 2 gradients, expected 3: an array or None for each parameter",
    ),
    "too many": (lambda opt, params: [*GRADS, None], ValueError, "grads: 4 gradients, expected 3"),
    "none at all": (lambda opt, params: None, TypeError, "grads: None, expected gradients: opt.step(grads), or"),
    "a string": (lambda opt, params: "abc", TypeError, "grads: str, expected a sequence of"),
    "a set": (lambda opt, params: {1, 2, 3}, TypeError, "grads: set, expected a sequence of"),
    "one array": (
        lambda opt, params: np.ones((3, 7)),
        TypeError,
        "grads: one array, expected a sequence of 3 gradients, one for each parameter",
    ),
    "a mapping": (
        lambda opt, params: {"w": GRADS[0]},
        TypeError,
        "grads: a mapping, expected a sequence of 3 gradients, because the parameters have no names: give `params` as",
    ),
    "the parameter": (
        with_grad(0, lambda opt, params: params[0]),
        ValueError,
        "grads[0]: shares memory with params[0], expected memory of its own: pass a copy",
    ),
    "another parameter": (
        with_grad(2, lambda opt, params: overlapping(params)),
        ValueError,
        "grads[2]: shares memory with params[0], expected memory of its own: pass a copy",
    ),
    "state": (
        with_grad(1, lambda opt, params: opt.state[1]["square_avg"][::-1]),
        ValueError,
        "grads[1]: shares memory with state[1]['square_avg'], expected memory of its own: pass a copy",
    ),
    "strided parameter": (
        with_grad(2, lambda opt, params: params[0][1:4, ::3]),
        ValueError,
        "grads[2]: shares memory with params[0], expected memory of its own: pass a copy",
    ),
    "broadcast parameter": (
        with_grad(2, lambda opt, params: np.broadcast_to(params[0][4, 9:], (3, 4))),
        ValueError,
        "grads[2]: shares memory with params[0], expected memory of its own: pass a copy",
    ),
}


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(("make", "error", "message"), REFUSED_GRADS.values(), ids=REFUSED_GRADS)
def test_refused_gradients_change_nothing(cls, make, error, message):
    opt, params = trained()
    grads = make(opt, params)
    if cls is rmsfast.reference.RMSProp:
        opt = cls(params)
        grads = make(opt, params)
    before = [w.copy() for w in params], opt.state_dict()
    with pytest.raises(error) as caught:
        opt.step(grads)
    assert message.replace("\\", "") in str(caught.value)
    assert_says_all(caught.value)
    assert_unchanged(opt, params, before)


@pytest.mark.parametrize("form", [dict, lambda grads: type("Other", (dict,), {})(grads)])
def test_refused_names(form):
    opt, params = trained("abc")
    before = [w.copy() for w in params], opt.state_dict()
    grads = dict(zip("abd", GRADS, strict=True))
    with pytest.raises(ValueError, match=r"grads\['d'\]: no parameter has this name, expected one of 'a', 'b', 'c'"):
        opt.step(form(grads))
    with pytest.raises(ValueError, match=r"grads\['b'\]: shape \(8,\), expected \(7,\)"):
        opt.step(form({"a": GRADS[0], "b": np.ones(8), "c": None}))
    with pytest.raises(ValueError, match=r"grads\['b'\]: shares memory with params\['b'\]"):
        opt.step(form({"a": GRADS[0], "b": params[1], "c": None}))
    assert_unchanged(opt, params, before)


def test_a_wrong_name_of_a_gradient_is_answered_with_the_nearest():
    opt = rmsfast.RMSProp({"weight": np.ones(3), "bias": np.ones(3)})
    with pytest.raises(ValueError, match=r"expected one of 'weight', 'bias'. Did you mean 'weight'\?$"):
        opt.step({"wieght": np.ones(3)})


def test_a_reversed_gradient_that_reaches_back_into_a_parameter():
    memory = np.ones(30)
    opt = rmsfast.RMSProp([memory[:10]])
    with pytest.raises(ValueError, match=r"grads\[0\]: shares memory with params\[0\]"):
        opt.step([memory[18:8:-1]])
    opt.step([memory[19:9:-1]])
    assert memory[:10].tolist() == [memory[0]] * 10
    assert memory[10:].tolist() == [1.0] * 20


def test_a_gradient_beside_a_parameter_is_no_overlap(rng):
    """Two columns of one table: the gradient's reach covers the parameter, but they share no element."""
    table = fleeting(rng, (8, 16), np.float32)
    w, g = table[3, 4:12], table[:, 2]
    expected = after_one_step(w, g)
    rmsfast.RMSProp([w]).step([g])
    assert_same_bits(w, expected)


def structured(values):
    table = np.zeros(values.shape, [("a", values.dtype), ("b", "f8")])
    return table["a"]


REFUSED_PARAMS = {
    "integers": (
        lambda: [np.ones(3, int)],
        TypeError,
        "params[0]: dtype int64, expected float32, float64, complex64, complex128, float16 or bfloat16 in native",
    ),
    "objects": (lambda: [np.ones(3, object)], TypeError, "params[0]: dtype object, expected float32"),
    "short integers": (lambda: [ONE, np.ones(3, np.int16)], TypeError, "params[1]: dtype int16, expected float32, "),
    "longdouble": (lambda: [np.ones(3, np.longdouble)], TypeError, "expected float32, float64, complex64, "),
    "complex": (lambda: [np.ones(3, np.clongdouble)], TypeError, "expected float32, float64, complex64, "),
    "byte order": (
        lambda: [np.ones(3, ">f4")],
        TypeError,
        "params[0]: dtype >f4, expected float32, float64, complex64, complex128, float16 or bfloat16 in native",
    ),
    "read-only": (lambda: [readonly(np.ones(3))], ValueError, "params[0]: read-only, expected a writable array"),
    "scalar": (lambda: [np.float32(1)], ValueError, "params[0]: read-only, expected a writable array"),
    "bytes": (lambda: b"abcd", TypeError, "params: dtype uint8, expected float32, "),
    "strided": (lambda: [np.ones(6)[::2]], ValueError, "params[0]: strides (16,) with shape (3,), expected a C- or"),
    "reversed": (lambda: [np.ones(6)[::-1]], ValueError, "params[0]: strides (-8,) with shape (6,), expected"),
    "transposed": (lambda: [np.ones((2, 3, 4)).swapaxes(0, 1)], ValueError, "expected a C- or F-contiguous array"),
    "field": (lambda: [structured(np.ones(3))], ValueError, "params[0]: strides (16,) with shape (3,)"),
    "misaligned": (
        lambda: [misaligned(np.ones(1))],
        ValueError,
        "params[0]: misaligned memory, expected an address that is a multiple of 8",
    ),
    "masked": (
        lambda: [np.ma.ones(3)],
        TypeError,
        "params[0]: a masked array, expected an array without a mask: .filled(0)",
    ),
    "list": (
        lambda: [[1.0, 2.0]],
        TypeError,
        "params[0]: list, expected a NumPy array: np.array(numbers, dtype=np.float32) makes one",
    ),
    "numbers": (
        lambda: [1.0, 2.0],
        TypeError,
        "params[0]: float, expected a NumPy array: np.array(numbers, dtype=np.float32) makes one",
    ),
    "numbers in a tree": (
        lambda: [[np.ones(2)], [1.0, 2.0]],
        TypeError,
        "params['1']: list, expected a NumPy array: np.array(numbers, dtype=np.float32) makes one",
    ),
    "a set in a tree": (lambda: {"layers": [{1.0}]}, TypeError, "params['layers.0']: set, expected a NumPy array"),
    "nothing in a tree": (lambda: [[ONE], None], TypeError, "params['1']: NoneType, expected a NumPy array"),
    "no leaves": (lambda: [[], {"a": ()}], ValueError, "params: empty, expected at least one array"),
    "names in a tree": (lambda: {"layers": {0: ONE}}, TypeError, "params: 0 as a name, expected a str"),
    "one path twice": (
        lambda: {"a.b": ONE, "a": {"b": np.ones(2)}},
        ValueError,
        "params['a.b']: a name of two parameters",
    ),
    "an endless list": (lambda: endless, ValueError, "params: nested more than 64 deep, expected less"),
    "a group alone": (
        lambda: {"params": ONE, "lr": 0.1},
        TypeError,
        "expected a mapping with 'params' and settings, in a sequence: [{'params': [W, b], 'lr': 0.1}]",
    ),
    "something else": (
        lambda: [object()],
        TypeError,
        "params[0]: object, expected a NumPy array, or an object that shares its memory by DLPack",
    ),
    "number": (
        lambda: 1.0,
        TypeError,
        "params: float, expected an array, a sequence or mapping of arrays, which may be nested, or",
    ),
    "none": (lambda: None, TypeError, "params: NoneType, expected an array, a sequence or mapping"),
    "string": (lambda: "abc", TypeError, "params: str, expected an array, a sequence or mapping"),
    "set": (lambda: {1.0}, TypeError, "params: set, expected an array, a sequence or mapping of arrays"),
    "empty": (list, ValueError, "params: empty, expected at least one array"),
    "empty mapping": (dict, ValueError, "params: empty, expected at least one array"),
    "twice": (lambda: [ONE, np.ones(2), ONE], ValueError, "params[2]: shares memory with params[0]"),
    "overlap": (lambda: [ONE[:4], ONE[3:]], ValueError, "params[1]: shares memory with params[0]"),
    "overlap by name": (
        lambda: {"a": ONE[3:], "b": ONE[:4]},
        ValueError,
        "params['b']: shares memory with params['a']",
    ),
    "names": (lambda: {"a": ONE, 1: np.ones(2)}, TypeError, "params: 1 as a name, expected a str"),
    "half a group": (
        lambda: [{"params": ONE}, np.ones(2)],
        TypeError,
        "param_groups[1]: array([1., 1.]), expected a mapping",
    ),
    "no params": (lambda: [{"lr": 0.1}], TypeError, "param_groups[0]: {'lr': 0.1}, expected a mapping"),
    "unknown setting": (
        lambda: [{"params": ONE, "momentun": 1}],
        ValueError,
        "param_groups[0]['momentun']: no such setting, expected one of lr, ",
    ),
    "setting of a group": (
        lambda: [{"params": ONE, "lr": -1}],
        ValueError,
        "param_groups[0]['lr']: -1, expected a number",
    ),
    "some names": (lambda: [{"params": {"a": ONE}}, {"params": [np.ones(2)]}], ValueError, "params: names in some"),
    "no names": (lambda: [{"params": [ONE]}, {"params": {"a": np.ones(2)}}], ValueError, "params: names in some"),
    "one name": (
        lambda: [{"params": {"a": ONE}}, {"params": {"a": np.ones(2)}}],
        ValueError,
        "params['a']: a name of two parameters",
    ),
}


@pytest.mark.parametrize("cls", CLASSES)
@pytest.mark.parametrize(("make", "error", "message"), REFUSED_PARAMS.values(), ids=REFUSED_PARAMS)
def test_refused_params(cls, make, error, message):
    with pytest.raises(error) as caught:
        cls(make())
    assert message in str(caught.value)
    assert_says_all(caught.value)


@pytest.mark.parametrize(
    ("group", "error", "message"),
    [
        (
            {"params": [np.ones(2)], "beta": 2},
            ValueError,
            r"param_groups\[1\]\['beta'\]: 2, expected a number from 0 to 1",
        ),
        ({"params": [np.ones(2, int)]}, TypeError, r"params\[3\]: dtype int64"),
        ({"params": {"a": np.ones(2)}}, ValueError, "names in some groups"),
        ([np.ones(2)], TypeError, r"param_groups\[1\]: .*, expected a mapping with 'params'"),
    ],
)
def test_a_refused_group_changes_nothing(group, error, message):
    opt, params = trained()
    before = [w.copy() for w in params], opt.state_dict()
    with pytest.raises(error, match=message):
        opt.add_param_group(group)
    with pytest.raises(ValueError, match=r"params\[3\]: shares memory with params\[0\]"):
        opt.add_param_group({"params": params[0][1:2]})
    assert len(opt.param_groups) == 1
    assert_unchanged(opt, params, before)
    opt.step(GRADS)


def table(w=ONE, v=ONE, g=ONE):
    return lambda: (w.copy(), v.copy(), g.copy())


def two_in_one():
    memory = np.ones(10)
    return memory[:6], memory[4:], np.ones(6)


def all_one():
    w = np.ones(6)
    return w, np.ones(6), w


REFUSED_UPDATES = {
    "w": (lambda: ([1.0], ONE, ONE), TypeError, "w: list, expected a NumPy array"),
    "v": (lambda: (ONE, None, ONE), TypeError, "v: NoneType, expected a NumPy array"),
    "g": (lambda: (ONE, np.ones(6), 1.0), TypeError, "g: float, expected a NumPy array"),
    "w dtype": (table(w=np.ones(6, int)), TypeError, "w: dtype int64, expected float32, "),
    "v dtype": (table(v=np.ones(6, np.float32)), TypeError, "v: dtype float32, expected float64, as w"),
    "g dtype": (table(g=np.ones(6, np.float32)), TypeError, "g: dtype float32, expected float64, as the parameter"),
    "v shape": (table(v=np.ones(7)), ValueError, "v: shape (7,), expected (6,), as w"),
    "g shape": (table(g=np.ones(7)), ValueError, "g: shape (7,), expected (6,)"),
    "w read-only": (lambda: (readonly(np.ones(6)), ONE, ONE), ValueError, "w: read-only"),
    "v read-only": (lambda: (np.ones(6), readonly(np.ones(6)), ONE), ValueError, "v: read-only"),
    "order": (
        lambda: (np.ones((2, 3)), np.ones((2, 3), order="F"), np.ones((2, 3))),
        ValueError,
        "v: memory order differs, expected that of w",
    ),
    "v in w": (two_in_one, ValueError, "v: shares memory with w"),
    "g is w": (all_one, ValueError, "g: shares memory with w, expected memory of its own: pass a copy"),
    "masked": (
        lambda: (np.ones(6), np.ma.ones(6), ONE),
        TypeError,
        "v: a masked array, expected an array without a mask",
    ),
}


@pytest.mark.parametrize("update", [rmsfast.rmsprop_update, rmsfast.reference.rmsprop_update])
@pytest.mark.parametrize(("make", "error", "message"), REFUSED_UPDATES.values(), ids=REFUSED_UPDATES)
def test_refused_updates_change_nothing(update, make, error, message):
    arrays = make()
    before = copy.deepcopy(arrays)
    with pytest.raises(error) as caught:
        update(*arrays)
    assert message in str(caught.value)
    assert_says_all(caught.value)
    for a, b in zip(arrays, before, strict=True):
        assert np.array_equal(a, b)


def test_the_names_of_a_group_are_taken_over():
    """A group of another optimizer, or in PyTorch's form, has its names beside its arrays."""
    a, b = np.ones(2), np.ones(3)
    named = rmsfast.RMSProp({"a": a, "b": b}, lr=0.5)
    again = rmsfast.RMSProp(named.param_groups)
    assert list(again.state) == ["a", "b"]
    assert again.lr == 0.5
    with pytest.raises(ValueError, match=r"param_groups\[0\]\['param_names'\]: 1 name, expected 2, one for each array"):
        rmsfast.RMSProp([{"params": [a, b], "param_names": ["a"]}])


def test_messages_count_parameters_across_groups():
    a, b = np.ones(2), np.ones(3)
    with pytest.raises(TypeError, match=r"params\[2\]: list, expected"):
        rmsfast.RMSProp([{"params": [a, b]}, {"params": [[1.0]]}])
    opt = rmsfast.RMSProp([{"params": [a]}, {"params": [b]}])
    with pytest.raises(TypeError, match=r"params\[2\]: int, expected"):
        opt.add_param_group({"params": [5]})
    with pytest.raises(ValueError, match=r"grads \(param_groups\[1\]\): 2 gradients, expected 1"):
        opt.step([[a.copy()], [b.copy(), b.copy()]])


def test_an_empty_named_group():
    w, g = np.ones(3), np.ones(3)
    expected = after_one_step(w, g)
    opt = rmsfast.RMSProp([{"params": {}}, {"params": {"a": w}}])
    opt.step([{}, {"a": g}])
    assert_same_bits(w, expected)


def test_a_name_that_runs_code_while_it_is_looked_up():
    """Whatever a name's == does to the arrays, a step sees it, and refuses or takes them as they are."""
    w, g = np.ones(10_000), np.ones(10_000)
    meddle = []

    class Name(str):
        __hash__ = str.__hash__

        def __eq__(self, other):
            for meddled in meddle:
                meddled.resize(1, refcheck=False)
            return str.__eq__(self, other)

    opt = rmsfast.RMSProp({Name("a"): w, "b": np.ones(3)})
    assert [type(key) for key in opt.state] == [str, str]
    opt.step({"a": g, Name("b"): np.ones(3)})
    meddle.append(g)
    with pytest.raises(ValueError, match=r"grads\['a'\]: shape \(1,\), expected \(10000,\)"):
        opt.step({"a": g, Name("b"): np.ones(3)})
    meddle[:] = [w]
    with pytest.raises(ValueError, match=r"params\['a'\]: resized or changed"):
        opt.step({"a": np.ones(10_000), Name("b"): np.ones(3)})


@given(st.data())
@settings(max_examples=300, deadline=None)
def test_shared_memory_is_found_as_numpy_finds_it(data):
    """Random strided gradients over a memory that holds the parameter are refused if, and only if, they share some."""
    memory = np.ones(400, np.float32)
    shape = data.draw(hnp.array_shapes(min_dims=1, max_dims=3, min_side=1, max_side=5))
    size = int(np.prod(shape))
    first = data.draw(st.integers(0, 400 - size))
    w = memory[first : first + size].reshape(shape)
    strides = [data.draw(st.integers(-80, 80)) for _ in shape]  # in bytes, so that elements may be misaligned
    low = sum(min(0, s * (n - 1)) for s, n in zip(strides, shape, strict=True))
    high = sum(max(0, s * (n - 1)) for s, n in zip(strides, shape, strict=True))
    start = data.draw(st.integers(-low, memory.nbytes - 4 - high))
    g = np.ndarray(shape, np.float32, memory, start, strides)
    opt = rmsfast.RMSProp([w])
    if np.shares_memory(w, g):
        with pytest.raises(
            ValueError, match=r"grads\[0\]: shares memory with params\[0\], expected memory of its own: pass a copy"
        ):
            opt.step([g])
        assert (memory == 1).all()
    else:
        expected = after_one_step(w, g.copy())
        opt.step([g])
        assert_same_bits(w, expected)


class Liar(np.ndarray):
    """Says that it has no axes, and another shape."""

    ndim = 0

    @property
    def shape(self):
        return (100_000,)


def test_an_array_that_lies_about_its_form_is_taken_as_it_is():
    optimizers = [rmsfast.RMSProp([np.zeros((1,) * 60, np.float32).view(Liar)]) for _ in range(50)]
    del optimizers
    w, v, g = np.zeros(100_000, np.float32), np.zeros(50, np.float32).view(Liar), np.ones(100_000, np.float32)
    with pytest.raises(ValueError, match="v: "):
        rmsfast.rmsprop_update(w, v, g)
    assert not w.any()
