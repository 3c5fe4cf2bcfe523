"""An optimizer in a file: one .npz of NumPy's, without pickles, replaced at once, with a digest of what it holds."""

import contextlib
import errno
import hashlib
import json
import os
import secrets
import stat
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

import numpy as np

from rmsfast._kernel import STATE_NAMES

Array = np.ndarray[Any, np.dtype[Any]]

FORMAT = "rmsfast.RMSProp"
VERSION = 1
LONGEST_HEADER = 2000  # of an array in NumPy's format: 64 axes of the largest size

# Members: "header", JSON as bytes; "param_3" and "square_avg_3", and the other arrays of the fourth parameter;
# "digest".

# Of an OSError: a damaged offset in the file makes zipfile look for a place before its start, and bz2 has no number.
# Others come from the system, and say nothing about what is in the file.
SIGNS_OF_DAMAGE = (errno.EINVAL, None)


def write(path: str | os.PathLike[str], state_dict: dict[str, Any], params: list[Array], skipped_steps: int) -> None:
    """Write a state dict, the parameters and a count, and put the file in its place when it is on the disk."""
    header = {
        "format": FORMAT,
        "version": VERSION,
        "names": list(state_dict["state"]),
        "steps": [entry["step"] for entry in state_dict["state"].values()],
        "param_groups": state_dict["param_groups"],
        "skipped_steps": skipped_steps,
    }
    members: dict[str, Any] = {"header": np.frombuffer(json.dumps(header).encode(), np.uint8)}
    for i, (w, entry) in enumerate(zip(params, state_dict["state"].values(), strict=True)):
        members[f"param_{i}"] = w
        members |= {f"{name}_{i}": a for name, a in entry.items() if name != "step"}
    members["digest"] = digest_of(members)

    target = Path(os.path.realpath(path))  # behind a link, so that the link stays one
    temporary = target.with_name(f".rmsfast.{secrets.token_hex(8)}.tmp")  # the target's name may have any length
    kept = None
    with contextlib.suppress(FileNotFoundError):
        kept = stat.S_IMODE(mode_of_file(target))
    mode = 0o666 if kept is None else kept
    try:
        with open(temporary, "xb", opener=lambda name, flags: os.open(name, flags, mode)) as file:
            if kept is not None:
                temporary.chmod(kept)  # it was made without what the umask takes away
            np.savez(file, **members)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(target)
    except BaseException:
        with contextlib.suppress(OSError):  # as of a file system that is read-only: what went wrong first is said
            temporary.unlink()
        raise
    flush_folder(target.parent)


def mode_of_file(path: Path) -> int:
    """Return the mode of a regular file, or raise: a device stays one, and a pipe would be waited for."""
    mode = path.stat().st_mode
    if not stat.S_ISREG(mode):
        kind = errno.EISDIR if stat.S_ISDIR(mode) else errno.EINVAL
        raise OSError(kind, "not a regular file, expected one", str(path))
    return mode


def flush_folder(folder: Path) -> None:
    """Bring the names in a folder to the disk, where the system can.

    Where it cannot, as for a folder that we may write to and not read, a crash may bring back the file from before. The
    new one is in its place all the same: nothing failed.
    """
    if os.name == "posix":
        with contextlib.suppress(OSError):
            descriptor = os.open(folder, os.O_RDONLY)
            try:
                os.fsync(descriptor)
            finally:
                os.close(descriptor)


def read(path: str | os.PathLike[str]) -> tuple[dict[str, Any], dict[str | int, Array], int]:
    """Return what `write` was given, the parameters by name, or raise ValueError for a file of another kind."""
    mode_of_file(Path(path))
    with Path(path).open("rb") as file:
        try:
            members = read_members(file)
            header = read_json(members["header"])
            kind = header["format"], header["version"]
            content = unpack(header, members) if kind == (FORMAT, VERSION) else None
        except (MemoryError, SystemError):  # of Python, not of the file
            raise
        except Exception as error:  # zipfile, zlib and NumPy raise many kinds for damaged bytes
            if isinstance(error, OSError) and error.errno not in SIGNS_OF_DAMAGE:
                raise
            raise ValueError(f"{path}: damaged, or not written by RMSProp.save ({error})") from error
    if content is None:
        raise ValueError(f"{path}: {kind[0]!s:.60} of version {kind[1]!s:.60}, expected {FORMAT} of version {VERSION}")
    return content


def read_json(member: Array) -> Any:
    """Return what the bytes of a member say in JSON."""
    try:
        return json.loads(member.tobytes())
    except RecursionError as error:  # each version of Python says this in other words
        raise ValueError("its header is nested too deeply") from error


def unpack(header: dict[str, Any], members: dict[str, Array]) -> tuple[dict[str, Any], dict[str | int, Array], int]:
    """Return what `write` was given, the parameters by name, from what it wrote."""
    state: dict[str | int, dict[str, Any]] = {}
    params: dict[str | int, Array] = {}
    rest = {name: a for name, a in members.items() if name != "header"}
    for i, (name, step) in enumerate(zip(header["names"], header["steps"], strict=True)):
        if type(name) not in (str, int) or name in params:
            raise ValueError(f"a name {name!r:.60} that is none, or given twice")
        params[name] = rest.pop(f"param_{i}")
        arrays = {array: rest.pop(f"{array}_{i}") for array in STATE_NAMES if f"{array}_{i}" in rest}
        state[name] = {"step": step, **arrays}
    if rest:
        raise ValueError(f"{len(rest)} members that belong to no parameter")
    return {"state": state, "param_groups": header["param_groups"]}, params, header["skipped_steps"]


def read_members(file: IO[bytes]) -> dict[str, Array]:
    """Return the arrays of an .npz file by name, or raise if their digest is another than the one that is with them.

    Whoever made the file, its arrays take no more memory than it is large: nothing in it is compressed, and all members
    together are no larger than it is. Nothing is ever written under a member's name.
    """
    room = os.fstat(file.fileno()).st_size
    with zipfile.ZipFile(file) as archive:
        members: dict[str, Array] = {}
        for info in archive.infolist():
            name = info.filename.removesuffix(".npy")
            if name in members:
                raise ValueError(f"two members {name!r:.60}")
            if info.compress_type != zipfile.ZIP_STORED:
                raise ValueError(f"{name!r:.60} is compressed")
            room -= info.file_size
            if room < 0:
                raise ValueError("its members overlap")
            with archive.open(info) as member:
                members[name] = read_array(member, info.file_size)
    digest = members.pop("digest")
    if digest.tobytes() != digest_of(members).tobytes():
        raise ValueError("its digest does not fit its content")
    return members


def read_array(member: IO[bytes], size: int) -> Array:
    """Return the array in one member, of so many bytes, which are all that it has."""
    shape, fortran, dtype = read_header(member)
    given = size - member.tell()
    if dtype.kind not in "fcu" or dtype.itemsize * int(np.prod(shape, dtype=object)) != given:
        raise ValueError(f"an array of shape {shape} and dtype {dtype} in {given} bytes")
    array = np.empty(shape, dtype, order="F" if fortran else "C")
    flat = array.reshape(-1, order="A").view(np.uint8)
    for part in parts(flat):
        part[:] = np.frombuffer(member.read(len(part)), np.uint8)
    member.read(1)  # which there is none of, but at the end zipfile compares its checksum
    return array


def read_header(member: IO[bytes]) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Return what the header of an array says, with which the member begins.

    NumPy has Python parse it, and CPython 3.11.7 fails now and then where two threads parse at once: "AST constructor
    recursion depth mismatch". Then it is tried again.
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
    """Go through flat bytes in pieces that need little memory."""
    size = 1 << 24
    for start in range(0, len(flat), size):
        yield flat[start : start + size]
