"""save and load: the run goes on with the same bits, and a file that is damaged or does not fit changes nothing."""

import errno
import io
import json
import os
import stat
import subprocess
import sys
import tracemalloc
import warnings
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
from helpers import assert_same_bits, fleeting

import rmsfast
from rmsfast import checkpoint

# np.load, beside which no other thread may have Python parse: CPython 3.11.7 fails it now and then.
parses_headers = pytest.mark.thread_unsafe(reason="np.load has Python parse headers")

SETTINGS = dict(momentum=0.9, centered=True, bias_correction=True, weight_decay=0.01, clip_global_norm=5.0)


def schedule(step):
    return 0.1 / (1 + step)


def make(cls=rmsfast.RMSProp, lr=0.05):
    params = {
        "w": np.asfortranarray(np.linspace(-1, 1, 12).reshape(3, 4)),
        "é/../x": np.ones(5, np.float32),
        "z": np.full((2, 1), 1 - 1j),
        "": np.zeros((0, 3)),
    }
    opt = cls(
        [{"params": {"w": params["w"]}, "lr": lr}, {"params": {k: params[k] for k in list(params)[1:]}}], **SETTINGS
    )
    return opt, params


def train(opt, params, steps):
    for step in steps:
        rng = np.random.default_rng(step)
        opt.step({name: (rng.standard_normal(w.shape) * (1 + w)).astype(w.dtype) for name, w in params.items()})


def assert_same(first, second):
    (opt, params), (other, other_params) = first, second
    for name, w in params.items():
        assert_same_numbers(other_params[name], w)
        assert other.state[name]["step"] == opt.state[name]["step"]
        for array in list(opt.state[name])[1:]:
            assert_same_numbers(other.state[name][array], opt.state[name][array])
    assert [dict(g)["lr"] for g in other.param_groups] == [dict(g)["lr"] for g in opt.param_groups]


def assert_same_numbers(actual, expected):
    assert actual.dtype == expected.dtype
    assert_same_bits(*[np.ascontiguousarray(a).reshape(-1).view(a.real.dtype) for a in (actual, expected)])


def test_a_run_goes_on_in_another_process(tmp_path):
    whole = make(lr=schedule)
    train(*whole, range(10))

    first = make(lr=schedule)
    train(*first, range(5))
    first[0].param_groups[1]["eps"] = 1e-8
    first[0].save(tmp_path / "run.npz")
    program = f"""
import sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from test_checkpoint import make, schedule, train
opt, params = make(lr=schedule)
opt.load({str(tmp_path / "run.npz")!r})
train(opt, params, range(5, 10))
opt.save({str(tmp_path / "end.npz")!r})
"""
    subprocess.run([sys.executable, "-P", "-c", program], check=True)
    second = make(lr=schedule)
    second[0].load(str(tmp_path / "end.npz"))
    assert_same(whole, second)
    train(*whole, [10])
    train(*second, [10])
    assert_same(whole, second)


def test_all_settings_are_in_the_file(tmp_path):
    opt, _ = make()
    opt.param_groups[0].update(
        lr=0.3, beta=0.5, eps=np.inf, momentum=0.1, clip_global_norm=None, clip_value=0.1, nonfinite="skip"
    )
    opt.step({**dict.fromkeys(opt.state), "w": np.full((3, 4), np.nan)})
    opt.save(tmp_path / "run.npz")
    other, _ = make()
    other.load(tmp_path / "run.npz")
    for group, expected in zip(other.param_groups, opt.param_groups, strict=True):
        assert {k: v for k, v in group.items() if k != "params"} == {k: v for k, v in expected.items() if k != "params"}
    assert other.skipped_steps == 1


@parses_headers
def test_the_file_is_one_of_numpys(tmp_path):
    opt, params = make()
    train(opt, params, range(2))
    opt.save(tmp_path / "run")
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
    with np.load(tmp_path / "run", allow_pickle=False) as file:
        assert_same_bits(file["param_0"], params["w"])
        assert_same_bits(file["square_avg_1"], opt.state["é/../x"]["square_avg"])
        header = json.loads(file["header"].tobytes())
    assert header["version"] == 1
    assert header["names"] == list(params)


def small_run():
    w = np.ones(3, np.float32)
    opt = rmsfast.RMSProp([w], momentum=0.5)
    opt.step([np.ones(3, np.float32)])
    return opt, w


@pytest.mark.thread_unsafe(reason="loads thousands of files")
def test_every_flipped_bit_is_refused_or_changes_nothing(tmp_path):
    opt, w = small_run()
    path = tmp_path / "run.npz"
    opt.save(path)
    content = path.read_bytes()
    expected = w.copy(), opt.state_dict()
    refused = 0
    for position in range(len(content)):
        damaged = bytearray(content)
        damaged[position] ^= 1 << position % 8
        path.write_bytes(damaged)
        other = rmsfast.RMSProp([np.zeros(3, np.float32)])
        try:
            other.load(path)
        except ValueError as error:
            refused += 1
            assert "damaged" in str(error)
            assert list(other.state[0]) == ["step", "square_avg"]
            assert not other.param_groups[0]["params"][0].any()
        else:
            assert_same_bits(other.param_groups[0]["params"][0], expected[0])
            state = other.state_dict()
            assert state["param_groups"] == expected[1]["param_groups"]
            assert state["state"][0]["step"] == 1
            for name in "square_avg", "momentum_buffer":
                assert_same_bits(state["state"][0][name], expected[1]["state"][0][name])
    assert refused > 0.8 * len(content)


@parses_headers
def test_arrays_in_each_others_place_are_refused(tmp_path):
    """Each member is whole, and all are there: the digest alone tells."""
    opt, w = small_run()
    path = tmp_path / "run.npz"
    opt.save(path)
    with np.load(path) as file:
        members = {name: file[name] for name in file.files}
    members["param_0"], members["square_avg_0"] = members["square_avg_0"], members["param_0"]
    np.savez(path, **members)
    before = w.copy()
    with pytest.raises(ValueError, match="damaged, .*its digest does not match its content"):
        opt.load(path)
    assert_same_bits(w, before)


def test_every_shortened_file_is_refused(tmp_path):
    opt, _ = small_run()
    path = tmp_path / "run.npz"
    opt.save(path)
    content = path.read_bytes()
    other, w = small_run()
    before = w.copy()
    for length in [*range(0, len(content), 7), len(content) - 1]:
        path.write_bytes(content[:length])
        with pytest.raises(ValueError, match=r"run.npz: damaged, expected a file from RMSProp.save"):
            other.load(path)
    assert_same_bits(w, before)


def members_in(path):
    with path.open("rb") as file:
        return checkpoint.read_members(file)


def rewrite(path, change):
    """Change the members of a file, and make its digest fit again."""
    members = members_in(path)
    header = json.loads(members["header"].tobytes())
    change(header, members)
    members["header"] = np.frombuffer(json.dumps(header).encode(), np.uint8)
    np.savez(path, **members, digest=checkpoint.digest_of(members))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        (lambda header, members: header.update(version=2), ValueError, "rmsfast.RMSProp of version 2, expected"),
        (lambda header, members: header.update(format="x"), ValueError, "x of version 1, expected rmsfast.RMSProp"),
        (lambda header, members: header.pop("steps"), ValueError, "damaged, expected a file from RMSProp.save"),
        (lambda header, members: members.pop("param_0"), ValueError, "damaged, expected a file from RMSProp.save"),
        (
            lambda header, members: members.pop("square_avg_0"),
            ValueError,
            "state[0]: 'square_avg' is missing, expected it",
        ),
        (lambda header, members: header.update(steps=[-1]), ValueError, "state[0]['step']: -1, expected a count"),
        (
            lambda header, members: header["param_groups"][0].update(lr=-1),
            ValueError,
            "param_groups[0]['lr']: -1, expected a number",
        ),
    ],
)
def test_files_with_other_content(tmp_path, change, error, message):
    opt, w = small_run()
    opt.save(tmp_path / "run.npz")
    rewrite(tmp_path / "run.npz", change)
    before = w.copy(), opt.state_dict()
    with pytest.raises(error) as caught:
        opt.load(tmp_path / "run.npz")
    assert message in str(caught.value)
    assert_same_bits(w, before[0])
    assert_same_bits(opt.state[0]["square_avg"], before[1]["state"][0]["square_avg"])
    assert opt.lr == 1e-3


@pytest.mark.parametrize(
    ("params", "error", "message"),
    [
        ([np.ones(4, np.float32)], ValueError, "state[0]['square_avg']: shape (3,), expected (4,)"),
        ([np.ones(3)], TypeError, "state[0]['square_avg']: dtype float32, expected float64"),
        ([np.ones(3, np.float32), np.ones(1)], ValueError, "param_groups[0]['params']: [0], expected [0, 1]"),
        ({"a": np.ones(3, np.float32)}, ValueError, "param_groups[0]['params']: [0], expected ['a']"),
    ],
)
def test_files_of_another_optimizer(tmp_path, params, error, message):
    opt, _ = small_run()
    opt.save(tmp_path / "run.npz")
    other = rmsfast.RMSProp(params)
    with pytest.raises(error) as caught:
        other.load(tmp_path / "run.npz")
    assert message in str(caught.value)
    for group in other.param_groups:
        for w in group["params"]:
            assert (w == 1).all()


def test_parameters_that_do_not_fit_their_state(tmp_path):
    opt, w = small_run()
    opt.save(tmp_path / "run.npz")
    rewrite(tmp_path / "run.npz", lambda header, members: members.update(param_0=np.ones(4, np.float32)))
    with pytest.raises(ValueError, match=r"params\[0\]: shape \(4,\), expected \(3,\)"):
        opt.load(tmp_path / "run.npz")
    assert w[0] != 1


@pytest.mark.parametrize("change", [lambda w: w.setflags(write=False), lambda w: setattr(w, "shape", (4,))])
@pytest.mark.filterwarnings("ignore:Setting the .* on a NumPy array has been deprecated:DeprecationWarning")
def test_a_parameter_that_changed_is_refused_before_anything_is_loaded(tmp_path, change):
    """The last of them; also if the file fits what it is now."""
    params = [np.ones(3), np.ones((2, 2))]
    opt = rmsfast.RMSProp(params)
    opt.step([np.ones(3), np.ones((2, 2))])
    change(params[1])
    before = [w.copy() for w in params], opt.state_dict()
    saved = rmsfast.RMSProp([np.zeros_like(w) for w in params], lr=0.5)
    saved.save(tmp_path / "run.npz")
    for load, source in (opt.load, tmp_path / "run.npz"), (opt.load_state_dict, saved.state_dict()):
        with pytest.raises(ValueError, match=r"params\[1\]: resized or changed after it was given to the optimizer"):
            load(source)
        assert opt.lr == 1e-3
        for i, entry in before[1]["state"].items():
            assert_same_bits(params[i], before[0][i])
            assert opt.state[i]["step"] == 1
            assert_same_bits(opt.state[i]["square_avg"], entry["square_avg"])


def test_other_files(tmp_path):
    opt, _ = small_run()
    with pytest.raises(FileNotFoundError):
        opt.load(tmp_path / "none.npz")
    np.savez(tmp_path / "other.npz", a=np.ones(3))
    np.savez(tmp_path / "object.npz", a=np.array([{}]))
    (tmp_path / "text.npz").write_text("no archive")
    with zipfile.ZipFile(tmp_path / "zip.npz", "w") as archive:
        archive.writestr("header", "no array")
    for name in "other", "object", "text", "zip":
        with pytest.raises(ValueError, match=f"{name}.npz: damaged, expected a file from RMSProp.save"):
            opt.load(tmp_path / f"{name}.npz")


@pytest.mark.parametrize("error", [MemoryError("no memory"), OSError(errno.EIO, "Input/output error"), SystemError()])
def test_a_file_that_cannot_be_read_is_not_called_damaged(tmp_path, monkeypatch, error):
    opt, _ = small_run()
    opt.save(tmp_path / "run.npz")

    def fail(*args):
        raise error

    monkeypatch.setattr(checkpoint, "read_array", fail)
    with pytest.raises(type(error)) as caught:
        opt.load(tmp_path / "run.npz")
    assert caught.value is error


@pytest.mark.parametrize("failures", [1, 5, 10**9])
def test_a_header_that_python_fails_to_parse_is_read_again(tmp_path, monkeypatch, failures):
    """As CPython 3.11.7 does where two threads parse at once."""
    opt, w = small_run()
    opt.save(tmp_path / "run.npz")
    expected = w.copy()
    w[:] = 0
    read, left = np.lib.format.read_array_header_1_0, iter(range(failures))

    def fail(member, **kwargs):
        header = read(member, **kwargs)
        if next(left, None) is not None:
            raise SystemError("AST constructor recursion depth mismatch")
        return header

    monkeypatch.setattr(np.lib.format, "read_array_header_1_0", fail)
    if failures > 1000:
        with pytest.raises(SystemError):
            opt.load(tmp_path / "run.npz")
        assert not w.any()
    else:
        opt.load(tmp_path / "run.npz")
        assert_same_bits(w, expected)


def test_a_header_that_promises_too_much_makes_no_array(tmp_path):
    """Of a shape for which no memory could be found."""
    opt, _ = small_run()
    opt.save(tmp_path / "run.npz")
    path = tmp_path / "run.npz"
    content = path.read_bytes()
    promising = content.replace(b"(3,), }" + 12 * b" ", b"(3000000000000,), }")
    assert promising != content
    path.write_bytes(promising)
    with pytest.raises(ValueError, match="damaged"):
        opt.load(path)


def test_a_save_that_fails_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    opt, _ = small_run()
    path = tmp_path / "run.npz"
    opt.save(path)
    before = path.read_bytes()
    opt.step([np.ones(3, np.float32)])

    def fail(file, *args, **kwargs):
        if not isinstance(file, int):
            file.write(b"half of a fi")
        raise OSError("no space left on device")

    for module, broken in (np, "savez"), (os, "fsync"):
        with monkeypatch.context() as patch:
            patch.setattr(module, broken, fail)
            with pytest.raises(OSError, match="no space"):
                opt.save(path)
        assert path.read_bytes() == before
        assert list(tmp_path.iterdir()) == [path]

    def refuse(*args, **kwargs):
        raise PermissionError("not even that")

    monkeypatch.setattr(np, "savez", fail)
    monkeypatch.setattr(Path, "unlink", refuse)
    with pytest.raises(OSError, match="no space"):  # which went wrong first
        opt.save(path)


def test_the_new_file_is_on_the_disk_before_it_takes_the_old_ones_place(tmp_path, monkeypatch):
    opt, _ = small_run()
    calls = []
    fsync, replace = os.fsync, os.replace
    monkeypatch.setattr(os, "fsync", lambda *args: calls.append("fsync") or fsync(*args))
    monkeypatch.setattr(os, "replace", lambda *args: calls.append("replace") or replace(*args))
    opt.save(tmp_path / "run.npz")
    assert calls[:2] == ["fsync", "replace"]


def test_a_file_that_is_in_its_place_is_saved(tmp_path, monkeypatch):
    """Also if the folder cannot be opened, as one that is there to be written to only."""
    opt, _ = small_run()

    def refuse(*args):
        raise PermissionError(13, "Permission denied")

    system_open = os.open
    monkeypatch.setattr(os, "open", lambda path, *args: (refuse if path == tmp_path else system_open)(path, *args))
    opt.save(tmp_path / "run.npz")
    opt.load(tmp_path / "run.npz")


@pytest.mark.skipif(os.name != "posix", reason="links and permissions of POSIX")
def test_links_and_permissions(tmp_path):
    opt, _ = small_run()
    (tmp_path / "kept").mkdir()
    (tmp_path / "link.npz").symlink_to(tmp_path / "kept" / "run.npz")
    opt.save(tmp_path / "link.npz")
    assert (tmp_path / "link.npz").is_symlink()
    assert (tmp_path / "kept" / "run.npz").is_file()
    plain = tmp_path / "plain"
    plain.touch()
    assert (tmp_path / "kept" / "run.npz").stat().st_mode == plain.stat().st_mode


@pytest.mark.skipif(os.name != "posix", reason="permissions of POSIX")
@pytest.mark.parametrize("mode", [0o600, 0o664, 0o400])
def test_a_file_that_is_replaced_keeps_its_permissions(tmp_path, monkeypatch, mode):
    """Before anything is in it."""
    opt, _ = small_run()
    path = tmp_path / "run.npz"
    opt.save(path)
    path.chmod(mode)
    modes = []
    savez = np.savez
    monkeypatch.setattr(
        np, "savez", lambda file, **members: modes.append(os.fstat(file.fileno()).st_mode) or savez(file, **members)
    )
    opt.save(path)
    modes.append(path.stat().st_mode)
    assert [stat.S_IMODE(each) for each in modes] == [mode, mode]


@pytest.mark.skipif(os.name != "posix", reason="names of POSIX")
def test_a_folder_that_is_not_there(tmp_path):
    opt, _ = small_run()
    with pytest.raises(FileNotFoundError, match="no such folder, expected one that is there: make it first") as caught:
        opt.save(tmp_path / "runs" / "run.npz")
    assert caught.value.filename == str(tmp_path / "runs")


def test_the_longest_name(tmp_path):
    opt, _ = small_run()
    path = tmp_path / f"{'x' * 251}.npz"
    opt.save(path)
    opt.load(path)
    assert list(tmp_path.iterdir()) == [path]


def test_saving_needs_little_memory_beside_the_state(tmp_path):
    """And reads what a file of many megabytes holds in pieces."""
    rng = np.random.default_rng(0)
    w = fleeting(rng, 6_000_000, np.float32)
    opt = rmsfast.RMSProp([w])
    opt.step([w + 1])
    opt.save(tmp_path / "run.npz")
    other = np.zeros(6_000_000, np.float32)
    twin = rmsfast.RMSProp([other])
    twin.load(tmp_path / "run.npz")
    assert_same_bits(other, w)
    assert_same_bits(twin.state[0]["square_avg"], opt.state[0]["square_avg"])


# ---- Files that someone made to do harm ----


def members_of(path):
    with zipfile.ZipFile(path) as archive:
        return [(info.filename, archive.read(info)) for info in archive.infolist()]


def with_a_digest(members):
    """The content of a file with other members than `save` writes, and a digest that fits."""
    file = io.BytesIO()
    np.savez(file, **members, digest=checkpoint.digest_of(members))
    return file.getvalue()


class Bomb:
    """Runs a command when it is read from a pickle."""

    def __reduce__(self):
        return os.mkdir, ("executed",)


def inflated(path):
    """A bomb: a parameter of zeros, a thousand times as large as the file."""
    file = io.BytesIO()
    np.savez_compressed(file, param_0=np.zeros(10_000_000, np.float32))
    return file.getvalue()


def compressed(path):
    """Which would take memory that no size in the file tells."""
    file = io.BytesIO()
    np.savez_compressed(file, **members_in(path))
    return file.getvalue()


def nested(path):
    """A bomb without compression: each member is the next one whole, behind a header of its own."""
    whole, places = io.BytesIO(), []
    np.save(whole, np.zeros(100_000, np.uint8))
    content = whole.getvalue()
    for i in reversed(range(200)):
        info = zipfile.ZipInfo(f"param_{i}.npy")
        info.CRC, info.file_size, info.compress_size = zlib.crc32(content), len(content), len(content)
        content = info.FileHeader() + content
        places.append((info, len(content)))
        header = io.BytesIO()
        np.lib.format.write_array_header_1_0(header, dict(descr="|u1", fortran_order=False, shape=(len(content),)))
        content = header.getvalue() + content
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("header.npy", content)
        for info, from_its_end in places:
            info.header_offset = file.tell() - from_its_end
            archive.filelist.append(info)
    return file.getvalue()


def renamed(name):
    """One member under another name."""

    def content(path):
        file = io.BytesIO()
        with zipfile.ZipFile(file, "w") as archive:
            for old, data in members_of(path):
                archive.writestr(name if old == "param_0.npy" else old, data)
        return file.getvalue()

    return content


def twice(path):
    file = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(file, "w") as archive:
        warnings.simplefilter("ignore")  # zipfile's, of the name
        for old, data in members_of(path) + members_of(path)[1:2]:
            archive.writestr(old, data)
    return file.getvalue()


def pickled(path):
    file = io.BytesIO()
    np.savez(file, header=np.array([Bomb()], object), digest=np.zeros(32, np.uint8))
    return file.getvalue()


def changed(**header):
    """A header with other parts, and what fits them."""

    def content(path):
        rewrite(path, lambda old, members: old.update(header))
        return path.read_bytes()

    return content


def promising(dtype, n):
    """One array of n elements of a dtype, and four bytes for it."""

    def content(path):
        file, array = io.BytesIO(), io.BytesIO()
        np.lib.format.write_array_header_1_0(array, dict(descr=dtype, fortran_order=False, shape=(n,)))
        with zipfile.ZipFile(file, "w") as archive:
            archive.writestr("param_0.npy", array.getvalue() + bytes(4))
        return file.getvalue()

    return content


def deep(path):
    return with_a_digest({**members_in(path), "header": np.frombuffer(b"[" * 100_000, np.uint8)})


def surplus(path):
    return with_a_digest({**members_in(path), "param_1": np.ones(3)})


def same_name(path):
    def change(header, members):
        header.update(names=[0, 0], steps=[1, 1])
        members.update(param_1=members["param_0"])

    rewrite(path, change)
    return path.read_bytes()


HOSTILE = {
    "a bomb": (inflated, "is compressed"),
    "compression": (compressed, "is compressed"),
    "members inside of each other": (nested, "verlap"),  # newer Pythons see it themselves: "Overlapped entries"
    "an absolute path": (renamed("/executed"), "digest"),
    "a way out of the folder": (renamed("../executed"), "digest"),
    "a member twice": (twice, "there are two members 'param_0'"),
    "a pickled object": (pickled, "dtype object"),
    "a header without end": (deep, "(its header is nested too deeply)"),
    "a parameter too many": (surplus, "belong to no parameter"),
    "a name twice": (same_name, "the name 0 is of a wrong type, or there twice"),
    "a negative count": (changed(skipped_steps=-1), "skipped_steps: -1, expected a count"),
    "a count that is none": (changed(skipped_steps="1"), "skipped_steps: '1', expected an integer"),
    "a count beyond all": (changed(skipped_steps=2**63), "skipped_steps: 9223372036854775808, expected a count"),
    "a number of steps beyond all": (changed(steps=[2**63]), "state[0]['step']: 9223372036854775808, expected a count"),
    "a name that is none": (changed(names=[{"a": 1}]), "the name {'a': 1} is of a wrong type"),
    "a name that equals another": (changed(names=[False]), "the name False is of a wrong type"),
    "a long name": (changed(names=["x" * 100_000]), "state['xxxx"),
    "a long setting": (changed(param_groups=[{"params": [0], "x" * 100_000: 1}]), "param_groups[0]['xxxx"),
    "arrays of nothing": (promising("|S0", 10**12), "an array of shape (1000000000000,) and dtype"),
    "arrays of text": (promising("<U1", 1), "and dtype <U1 in 4 bytes"),
    "a header without an end": (promising("-" * 9000, 1), "Header info length"),
    "no groups": (changed(param_groups=None), "state_dict['param_groups']: NoneType, expected a list"),
    "groups of another kind": (changed(param_groups=[[1]]), "param_groups[0]: list, expected a mapping"),
    "a setting of another kind": (changed(param_groups=[{"params": [0], "lr": {"a": []}}]), "param_groups[0]['lr']"),
}


@pytest.mark.thread_unsafe(reason="tracemalloc counts the whole process")
@pytest.mark.parametrize(("content", "message"), HOSTILE.values(), ids=HOSTILE)
def test_hostile_files_are_refused_and_nothing_in_them_is_executed(tmp_path, content, message):
    opt, w = small_run()
    path = tmp_path / "run.npz"
    opt.save(path)
    path.write_bytes(content(path))
    before = w.copy(), opt.state_dict()
    tracemalloc.start()
    try:
        with pytest.raises((ValueError, TypeError)) as caught:
            opt.load(path)
        assert tracemalloc.get_traced_memory()[1] < 10_000_000
    finally:
        tracemalloc.stop()
    assert message in str(caught.value)
    assert len(str(caught.value)) < 500
    assert_same_bits(w, before[0])
    assert_same_bits(opt.state[0]["square_avg"], before[1]["state"][0]["square_avg"])
    assert opt.state_dict()["param_groups"] == before[1]["param_groups"]
    assert list(tmp_path.iterdir()) == [path]
    assert not Path("executed").exists()
    assert not Path("/executed").exists()


# ---- Disks and folders ----


@pytest.mark.skipif(os.name != "posix", reason="files of POSIX")
def test_what_is_no_file_is_not_replaced(tmp_path):
    opt, _ = small_run()
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("/dev/zero")
    (tmp_path / "loop").symlink_to("loop")
    for path, error in {
        tmp_path: IsADirectoryError,
        tmp_path / "pipe": OSError,
        tmp_path / "link": OSError,
        Path("/dev/null"): OSError,
    }.items():
        kind = path.stat().st_mode
        for call in opt.save, opt.load:
            with pytest.raises(error, match="not a regular file, expected one"):
                call(path)
        assert path.stat().st_mode == kind
    with pytest.raises(OSError, match="symbolic links"):
        opt.save(tmp_path / "loop")
    assert {path.name for path in tmp_path.iterdir()} == {"pipe", "link", "loop"}


def test_parameters_go_by_their_names(tmp_path):
    """Also in a file that has them in another order than the optimizer."""
    params = {"a": np.full(3, 1.0), "b": np.full(3, 2.0)}
    opt = rmsfast.RMSProp(params)
    opt.step({"a": np.ones(3), "b": 2 * np.ones(3)})
    expected = {name: w.copy() for name, w in params.items()}
    path = tmp_path / "run.npz"
    opt.save(path)

    def turn(header, members):
        header["names"] = ["b", "a"]
        for array in "param", "square_avg":
            members[f"{array}_0"], members[f"{array}_1"] = members[f"{array}_1"], members[f"{array}_0"]

    rewrite(path, turn)
    opt.step({"a": np.ones(3), "b": np.ones(3)})
    opt.load(path)
    for name, w in params.items():
        assert_same_bits(w, expected[name])


def test_what_is_saved_is_of_one_moment(tmp_path, monkeypatch):
    """A step that is skipped and a setting that changes while the file is written are not in it."""
    w = np.ones(3)
    opt = rmsfast.RMSProp(w, nonfinite="skip", lr=0.5)
    write = checkpoint.write

    def change(*args):
        opt.step(np.full(3, np.nan))
        opt.lr = 0.25
        write(*args)

    monkeypatch.setattr(checkpoint, "write", change)
    opt.save(tmp_path / "run.npz")
    opt.load(tmp_path / "run.npz")
    assert opt.skipped_steps == 0
    assert opt.lr == 0.5


# Run as root of a namespace, where it can be mounted: $1 is the folder, $2 Python, $3 a program.
ON_A_SMALL_DISK = 'mount -t tmpfs -o size=200k none "$1" && exec "$2" -P -c "$3" "$1"'

FULL_DISK = """
import os, sys
import numpy as np
import rmsfast

def opt(n):
    w = np.ones(n, np.float32)
    opt = rmsfast.RMSProp(w)
    opt.step(w.copy())
    return opt
folder = sys.argv[1]
path = os.path.join(folder, "run.npz")
small, large = opt(1000), opt(100_000)
small.save(path)
before = open(path, "rb").read()
def refused(opt):
    try:
        opt.save(path)
    except OSError as error:
        print(error.strerror, open(path, "rb").read() == before, os.listdir(folder))
refused(large)
os.system(f"mount -o remount,ro {folder}")
refused(small)
small.load(path)
"""


def test_a_full_disk_and_one_that_is_read_only_keep_the_old_file(tmp_path):
    folder = tmp_path / "disk"
    folder.mkdir()
    in_a_namespace = ["unshare", "--mount", "--map-root-user", "sh", "-c"]
    try:
        subprocess.run([*in_a_namespace, 'mount -t tmpfs none "$0"', folder], check=True, capture_output=True)
    except (OSError, subprocess.CalledProcessError):
        pytest.skip("this system lets us mount no disk")
    result = subprocess.run(
        [*in_a_namespace, ON_A_SMALL_DISK, "sh", folder, sys.executable, FULL_DISK],
        capture_output=True,
        text=True,
        check=True,
    )
    assert result.stdout.splitlines() == [
        "No space left on device True ['run.npz']",
        "Read-only file system True ['run.npz']",
    ]


KILLED_WHILE_SAVING = """
import os, random, signal, sys, time
import numpy as np
import rmsfast

path, times = sys.argv[1], int(sys.argv[2])
random.seed(0)

def make():
    params = [np.zeros(20_000), np.zeros(30, np.float32)]
    return rmsfast.RMSProp(params, lr=1.0, beta=0.0, eps=0.0), params     # a step takes 1 from each parameter

def save_for_ever(ready):
    opt, params = make()
    opt.load(path)
    os.write(ready, b"!")
    while True:
        opt.step([np.ones_like(w) for w in params])
        opt.save(path)

opt, _ = make()
opt.save(path)
start = time.perf_counter()
for _ in range(3):
    opt.save(path)
most = time.perf_counter() - start
last = saved = 0
for _ in range(times):
    ready, begun = os.pipe()
    pid = os.fork()
    if pid == 0:
        save_for_ever(begun)
    os.read(ready, 1)
    time.sleep(random.uniform(0, most))
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    os.close(ready), os.close(begun)
    opt, params = make()
    opt.load(path)
    steps = opt.state[0]["step"]
    assert opt.state[1]["step"] == steps >= last
    for w in params:
        assert (w == -steps).all(), (steps, w)
    saved += steps > last
    last = steps
leftovers = [name for name in os.listdir(os.path.dirname(path)) if name != os.path.basename(path)]
assert all(name.startswith(".rmsfast.") and name.endswith(".tmp") for name in leftovers)
print(saved, len(leftovers))
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
def test_a_process_killed_while_it_saves_leaves_the_old_file_or_the_new_one(tmp_path):
    """300 times at a random moment: some before it has saved once, some in the middle of a file, which stays beside."""
    program = [sys.executable, "-P", "-c", KILLED_WHILE_SAVING, tmp_path / "run.npz", "300"]
    result = subprocess.run(program, capture_output=True, text=True, timeout=300)
    assert result.returncode == 0, result.stderr
    saved, interrupted = map(int, result.stdout.split())
    assert saved > 10
    assert interrupted > 10


# ---- Resuming: schedules, settings, and what a run needs beside ----

OWN = schedule
OURS = rmsfast.schedules.cosine(0.1, 100)


def with_rate(lr):
    opt = rmsfast.RMSProp({"w": np.ones(3)}, lr=lr)
    opt.step({"w": np.ones(3)})
    return opt


KEEPS = r"set it to the .* before you load, or load with settings=False to keep the settings that are here$"


@pytest.mark.parametrize("name", ["lr", "beta"])
@pytest.mark.parametrize(
    ("saved", "here", "message"),
    [
        (0.5, OWN, r": 0.5, expected a function of your own, as this optimizer has <function schedule at .*>: "),
        (0.5, OURS, r": 0.5, expected a schedule, as this optimizer has cosine\(start=0.1, steps=100, end=0.0\): "),
        (OURS, OWN, r": cosine\(.*\), expected a function of your own, as this optimizer has <function schedule at"),
        (OWN, 0.25, ": saved while it was a function of your own, .*, expected a function here, too, .* has 0.25: "),
    ],
)
def test_a_number_and_a_schedule_never_take_each_others_place(tmp_path, name, saved, here, message):
    make = lambda value: rmsfast.RMSProp({"w": np.ones(3)}, **{name: value}, eps=0.5)  # noqa: E731
    opt = make(saved)
    opt.step({"w": np.ones(3)})
    opt.save(tmp_path / "run.npz", extra="beside")
    for load, source in ("load", tmp_path / "run.npz"), ("load_state_dict", opt.state_dict()):
        other = make(here)
        before = other.param_groups[0]["params"][0].copy(), other.state_dict()
        with pytest.raises(ValueError, match=rf"^param_groups\[0\]\['{name}'\]{message}.*{KEEPS}"):
            getattr(other, load)(source)
        assert_same_bits(other.param_groups[0]["params"][0], before[0])
        assert not other.state["w"]["square_avg"].any()
        assert other.steps == 0

        other.eps = 0.125
        assert getattr(other, load)(source, settings=False) == ("beside" if load == "load" else None)
        assert getattr(other, name) == here
        assert other.eps == 0.125
        assert other.steps == 1
        assert_same_bits(other.state["w"]["square_avg"], opt.state["w"]["square_avg"])
        if load == "load":
            assert_same_bits(other.param_groups[0]["params"][0], opt.param_groups[0]["params"][0])


def test_what_fits_is_loaded(tmp_path):
    """A number in the place of a number; a schedule of ours in the place of either; the user's own stays."""
    for saved, here, after in (
        (0.5, 0.25, 0.5),
        (OURS, 0.25, OURS),
        (OURS, rmsfast.schedules.linear(1.0, 3), OURS),
        (OWN, OWN, OWN),
        (OWN, OURS, OURS),
    ):
        with_rate(saved).save(tmp_path / "run.npz")
        other = with_rate(here)
        other.load(tmp_path / "run.npz")
        assert other.lr == after


def test_state_that_only_the_settings_here_need_begins_with_zeros(tmp_path):
    opt = with_rate(0.5)
    opt.save(tmp_path / "run.npz")
    other = rmsfast.RMSProp({"w": np.ones(3)}, momentum=0.5, centered=True)
    other.step({"w": np.full(3, 9.0)})
    other.load(tmp_path / "run.npz", settings=False)
    assert (other.momentum, other.centered) == (0.5, True)
    assert not other.state["w"]["momentum_buffer"].any()
    assert not other.state["w"]["grad_avg"].any()
    opt.param_groups[0].update(momentum=0.5, centered=True, lr=1e-3)
    for each in opt, other:
        each.step({"w": np.ones(3)})
    assert_same_bits(other.param_groups[0]["params"][0], opt.param_groups[0]["params"][0])


@pytest.mark.parametrize("settings", [1, None, "no", 0.0])
def test_settings_is_a_switch(tmp_path, settings):
    opt = with_rate(0.5)
    opt.save(tmp_path / "run.npz")
    for load, source in (opt.load, tmp_path / "run.npz"), (opt.load_state_dict, opt.state_dict()):
        with pytest.raises(TypeError, match=rf"^settings: {settings!r}, expected False or True"):
            load(source, settings=settings)


@pytest.mark.parametrize("generator", ["PCG64", "MT19937", "Philox", "SFC64"])
def test_what_a_run_needs_beside_is_kept(tmp_path, generator):
    rng = np.random.Generator(getattr(np.random, generator)(7))
    rng.integers(10)  # half of a number is left over
    opt = with_rate(0.5)
    extra = {"epoch": 3, "rng": rng.bit_generator.state, "best": np.float32(0.5), "order": (2, 0, 1), "none": None}
    extra |= {"losses": np.array([0.5, np.inf]), "text": "é\ud800", "ok": np.True_}
    opt.save(tmp_path / "run.npz", extra=extra)
    loaded = opt.load(tmp_path / "run.npz")
    twin = np.random.Generator(getattr(np.random, generator)())
    twin.bit_generator.state = loaded.pop("rng")
    assert rng.integers(1000, size=9).tolist() == twin.integers(1000, size=9).tolist()
    assert loaded == {
        "epoch": 3,
        "best": 0.5,
        "order": [2, 0, 1],
        "none": None,
        "losses": [0.5, np.inf],
        "text": "é\ud800",
        "ok": True,
    }
    opt.save(tmp_path / "run.npz")
    assert opt.load(tmp_path / "run.npz") is None


endless: list = []
endless.append(endless)


@pytest.mark.parametrize(
    ("extra", "error", "message"),
    [
        (
            {"rng": np.random.default_rng(0)},
            TypeError,
            "extra['rng']: Generator, expected None, a bool, a number, a str",
        ),
        ({"rng": np.random.default_rng(0)}, TypeError, "such: give its .bit_generator.state"),
        ({"a": [1, {1, 2}]}, TypeError, "extra['a'][1]: set, expected None"),
        ({"losses": {0: 0.5}}, TypeError, "extra['losses']: 0 as a key, expected a str, because JSON has no other"),
        (b"bytes", TypeError, "extra: bytes, expected None"),
        (np.array([1j]), TypeError, "extra: ndarray, expected None"),
        (np.array([None]), TypeError, "extra: ndarray, expected None"),
        (endless, ValueError, "[0]: nested more than 100 deep, expected less"),
    ],
)
def test_what_a_file_cannot_keep_is_refused(tmp_path, extra, error, message):
    opt = with_rate(0.5)
    opt.save(tmp_path / "run.npz")
    before = (tmp_path / "run.npz").read_bytes()
    with pytest.raises(error) as caught:
        opt.save(tmp_path / "run.npz", extra=extra)
    assert message in str(caught.value)
    assert (tmp_path / "run.npz").read_bytes() == before


@pytest.mark.parametrize(
    ("lr", "message"),
    [
        ({"schedule": "cosine", "start": -1, "steps": 5, "end": 0}, "damaged, .* .start: -1, expected a finite number"),
        ({"schedule": "cosine", "start": 1}, "damaged"),
        ({"schedule": "os.system", "start": 1}, "damaged, .*expected a number or one of the schedules linear, "),
        ({}, "damaged, .*expected a number or one of the schedules linear, "),
        ({"schedule": "warmup", "steps": 1, "then": {"schedule": "warmup", "steps": 1, "then": 1}}, "damaged"),
        ({"schedule": ["linear"]}, "damaged, .*expected a number or one of the schedules linear, "),
    ],
)
def test_hostile_schedules_are_refused(tmp_path, lr, message):
    opt = with_rate(0.5)
    opt.save(tmp_path / "run.npz")
    rewrite(tmp_path / "run.npz", lambda header, members: header["param_groups"][0].update(lr=lr))
    with pytest.raises(ValueError, match=message):
        opt.load(tmp_path / "run.npz")
    assert opt.lr == 0.5
