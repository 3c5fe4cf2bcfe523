"""An optimizer in a file: an .npz file without pickles, with a digest of its content, replaced in one operation."""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import stat
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import IO, Any

import numpy as np

from rmsfast._core.plan import STATE_NAMES
from rmsfast.schedules import as_plain, from_plain
from rmsfast.settings import SCHEDULED

Array = np.ndarray[Any, np.dtype[Any]]

FORMAT = "rmsfast.RMSProp"
VERSION = 1
DEEPEST = 100  # of what the user adds, a list in a list
LONGEST_HEADER = 2000  # of an array in NumPy's format: enough for 64 axes of the largest size

# The members of a file: "header", JSON as bytes; "param_3", "square_avg_3" and the other arrays of the fourth
# parameter, those of bfloat16 as uint16; "digest".

# An OSError with one of these numbers means that the file is damaged: a wrong offset makes zipfile seek before the
# start of the file, and an error from bz2 has no number. Any other comes from the system, and says nothing about the
# content.
SIGNS_OF_DAMAGE = (errno.EINVAL, None)


def write(
    path: str | os.PathLike[str], state_dict: dict[str, Any], params: list[Array], skipped_steps: int, extra: Any
) -> None:
    """Write a state dict, the parameters, a count and what the user adds to a new file.

    Once it is on the disk, it replaces the old one.
    """
    header = {
        "format": FORMAT,
        "version": VERSION,
        "names": list(state_dict["state"]),
        "steps": [entry["step"] for entry in state_dict["state"].values()],
        "param_groups": state_dict["param_groups"],
        "skipped_steps": skipped_steps,
        "extra": extra,
    }
    text = json.dumps(header, default=as_plain)
    members: dict[str, Any] = {"header": np.frombuffer(text.encode(), np.uint8)}
    for i, (w, entry) in enumerate(zip(params, state_dict["state"].values(), strict=True)):
        members[f"param_{i}"] = as_saved(w)
        members |= {f"{name}_{i}": as_saved(a) for name, a in entry.items() if name != "step"}
    members["digest"] = digest_of(members)

    target = Path(os.path.realpath(path))  # where a link leads, so that the link stays a link
    temporary = target.with_name(
        f".rmsfast.{secrets.token_hex(8)}.tmp"
    )  # independent of the target's name, which may be long
    if not target.parent.exists():
        raise FileNotFoundError(
            errno.ENOENT, "no such folder, expected one that is there: make it first", str(target.parent)
        )
    kept = None
    with contextlib.suppress(FileNotFoundError):
        kept = stat.S_IMODE(mode_of_file(target))
    mode = 0o666 if kept is None else kept
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            if kept is not None:
                temporary.chmod(kept)  # because the umask removed some permissions
            np.savez(file, **members)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):  # as on a read-only file system: the first error is the one to report
            temporary.unlink()
        raise
    flush_folder(target.parent)


def as_saved(array: Array) -> Array:
    """Return an array as the file has it. NumPy's format knows no bfloat16, so these are saved as their 16 bits."""
    return array.view(np.uint16) if array.dtype.name == "bfloat16" else array


def as_json(label: str, value: Any, depth: int = 0) -> Any:
    """Return what the user adds to a file as JSON can hold it: numbers and arrays of NumPy as Python's. Or raise."""
    if isinstance(value, (np.generic, np.ndarray)) and value.dtype.kind in "biufU":
        value = value.tolist()
    if value is None or isinstance(value, (str, int, float)):
        return value
    if depth > DEEPEST:
        raise ValueError(f"{label}: nested more than {DEEPEST} deep, expected less")
    if isinstance(value, Mapping):
        for key in value:
            if not isinstance(key, str):
                raise TypeError(f"{label}: {key!r:.60} as a key, expected a str, because JSON has no other")
        return {key: as_json(f"{label}[{key!r}]", part, depth + 1) for key, part in value.items()}
    if isinstance(value, (list, tuple)):
        return [as_json(f"{label}[{i}]", part, depth + 1) for i, part in enumerate(value)]
    state = ": give its .bit_generator.state" if isinstance(value, np.random.Generator) else ""
    raise TypeError(
        f"{label}: {type(value).__name__}, expected None, a bool, a number, a str, or a list or mapping of such{state}"
    )


def mode_of_file(path: Path) -> int:
    """Return the mode of a regular file, or raise: a device must not be replaced, and a pipe would block."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(kind, "not a regular file, expected one", str(path))
    return mode


def flush_folder(folder: Path) -> None:
    """Write the names in a folder to the disk, if the system can.

    It cannot if we may write to the folder but not read it. Then the old file may be back after a crash. That is no
    error, because the new file is in its place.
    """
    if os.name == "posix":
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str | int, Array], int, Any]:
    """Return the arguments of `write`, the parameters by name. Raise ValueError for a file of another kind."""
    mode_of_file(Path(path))
    with Path(path).open("rb") as file:
        try:
            members = read_members(file)
            header = read_json(members["header"])
            kind = header["format"], header["version"]
            content = unpack(header, members) if kind == (FORMAT, VERSION) else None
        except (MemoryError, SystemError):  # these come from Python, not from the file
            raise
        except Exception as error:  # zipfile, zlib and NumPy raise many types for damaged bytes
            if isinstance(error, OSError) and error.errno not in SIGNS_OF_DAMAGE:
                raise
            raise ValueError(f"{path}: damaged, expected a file from RMSProp.save ({error})") from error
    if content is None:
        raise ValueError(f"{path}: {kind[0]!s:.60} of version {kind[1]!s:.60}, expected {FORMAT} of version {VERSION}")
    return content


def read_json(member: Array) -> Any:
    """Return what the bytes of a member say in JSON."""
    try:
        return json.loads(member.tobytes())
    except RecursionError as error:  # each version of Python says this in other words
        raise ValueError("its header is nested too deeply") from error


def unpack(
    header: dict[str, Any], members: dict[str, Array]
) -> tuple[dict[str, Any], dict[str | int, Array], int, Any]:
    """Return the arguments of `write`, the parameters by name, from the members that it wrote."""
    state: dict[str | int, dict[str, Any]] = {}
    params: dict[str | int, Array] = {}
    rest = {name: a for name, a in members.items() if name != "header"}
    for i, (name, step) in enumerate(zip(header["names"], header["steps"], strict=True)):
        if type(name) not in (str, int) or name in params:
            raise ValueError(f"the name {name!r:.60} is of a wrong type, or there twice")
        params[name] = rest.pop(f"param_{i}")
        arrays = {array: rest.pop(f"{array}_{i}") for array in STATE_NAMES if f"{array}_{i}" in rest}
        state[name] = {"step": step, **arrays}
    if rest:
        raise ValueError(f"{len(rest)} members belong to no parameter")
    groups = header["param_groups"]
    for i, group in enumerate(groups if isinstance(groups, list) else ()):
        for name in SCHEDULED:
            if isinstance(group, dict) and name in group:
                group[name] = from_plain(f"param_groups[{i}][{name!r}]", group[name])
    return {"state": state, "param_groups": groups}, params, header["skipped_steps"], header.get("extra")


def read_members(file: IO[bytes]) -> dict[str, Array]:
    """Return the arrays of an .npz file by name, or raise if they do not match the digest in the file.

    The arrays of any file, also a hostile one, take no more memory than the file's size: no member may be compressed,
    and the members together may not be larger than the file. No member's name is used as the name of a file.
    """
    room = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        members: dict[str, Array] = {}
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name in members:
                raise ValueError(f"there are two members {name!r:.60}")
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{name!r:.60} is compressed")
            room -= info.file_size
            if room < 0:
                raise ValueError("its members overlap")
            with archive.open(info) as member:
                members[name] = read_array(member, info.file_size)
    digest = members.pop("digest")
    if digest.tobytes() != digest_of(members).tobytes():
        raise ValueError("its digest does not match its content")
    return members


def read_array(member: IO[bytes], size: int) -> Array:
    """Return the array in one member, which has this size in bytes."""
    shape, fortran, dtype = read_header(member)
    given = size - member.tell()
    if dtype.kind not in "fcui" or dtype.itemsize * int(np.prod(shape, dtype=object)) != given:
        raise ValueError(f"an array of shape {shape} and dtype {dtype} in {given} bytes")
    array = np.empty(shape, dtype, order="F" if fortran else "C")
    flat = array.reshape(-1, order="A").view(np.uint8)
    for part in parts(flat):
        part[:] = np.frombuffer(member.read(len(part)), np.uint8)
    member.read(1)  # there is nothing more to read, but at the end zipfile compares the checksum
    return array


def read_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return what the header of an array says, at the start of a member.

    NumPy lets Python parse the header. CPython 3.11.7 sometimes fails when two threads parse at the same time ("AST
    constructor recursion depth mismatch"). So a SystemError leads to another try.
    """
    version = np.lib.format.read_magic(member)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    start, attempts = member.tell(), 100
    while True:
        try:
            return read(member, max_header_size=LONGEST_HEADER)
        except SystemError:
            attempts -= 1
            if attempts == 0:
                raise
            member.seek(start)


def digest_of(members: dict[str, Array]) -> Array:
    """Return the SHA-256 of the names, dtypes, shapes and bytes of arrays, as bytes."""
    digest = hashlib.sha256()
    for name, a in members.items():
        fortran = a.flags.f_contiguous and not a.flags.c_contiguous
        digest.update(repr((name, a.dtype.str, a.shape, fortran)).encode())
        for part in parts(a.reshape(-1, order="A").view(np.uint8)):
            digest.update(part.data)
    return np.frombuffer(digest.digest(), np.uint8)


def parts(flat: Array) -> Iterator[Array]:
    """Yield flat bytes in pieces, so that little memory is needed at a time."""
    size = 1 << 24
    for start in range(0, len(flat), size):
        yield flat[start : start + size]
