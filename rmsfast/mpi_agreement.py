"""All ranks do the same, or raise the same error: one small all-reduce says whether they agree.

Every call of an optimizer that is divided among ranks begins here, with what the rank is about to do. So a rank whose
arguments are refused leaves no other one waiting.
"""

import builtins
import contextlib
import hashlib
import json
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from mpi4py import MPI

# What can differ between ranks, as text by the name that messages have for it.
Facts = Mapping[str, str]


class Agreement:
    """What the ranks of a communicator agree on, call by call."""

    def __init__(self, comm: MPI.Intracomm) -> None:
        self.comm: MPI.Intracomm = comm
        self.mine: np.ndarray[Any, np.dtype[np.int64]] = np.zeros(3, np.int64)
        self.most: np.ndarray[Any, np.dtype[np.int64]] = np.zeros(3, np.int64)

    def reach(self, call: str, content: bytes, facts: Callable[[], Facts], error: Exception | None = None) -> None:
        """Return if all ranks make the same call with the same content and none has an error, or raise on all.

        The facts say in words what the content is. They are asked for only where something differs.
        """
        digest = hashlib.blake2b(content, digest_size=8, key=call.encode()).digest()
        number = int.from_bytes(digest) >> 2
        self.mine[:] = error is not None, number, -number
        self.comm.Allreduce(self.mine, self.most, MPI.MAX)
        failed, most, least = self.most.tolist()
        if failed or most != -least:
            told = self.tell(call, {} if error else facts(), error)
            raise difference(told) from error

    def tell(self, call: str, facts: Facts, error: Exception | None) -> list[dict[str, Any]]:
        """Return what each rank has to say."""
        mine: dict[str, Any] = {"call": call, "facts": dict(facts), "error": None}
        if error is not None:
            mine["error"] = [type(error).__name__, str(error)]
        if isinstance(error, OSError) and error.errno is not None:
            mine["error"] = ["OSError", error.strerror, error.errno, str(error.filename)]
        text = np.frombuffer(json.dumps(mine).encode(), np.uint8)
        lengths = np.zeros(self.comm.size, np.int64)
        self.comm.Allgather(np.array([len(text)], np.int64), lengths)
        counts = lengths.tolist()
        texts = np.zeros(sum(counts), np.uint8)
        self.comm.Allgatherv([text, MPI.BYTE], [texts, counts, None, MPI.BYTE])
        return [json.loads(part.tobytes()) for part in np.split(texts, np.cumsum(lengths)[:-1])]


def difference(told: list[dict[str, Any]]) -> Exception:
    """Return the error that all ranks raise, from what each of them said."""
    calls = [each["call"] for each in told]
    for rank, call in enumerate(calls):
        if call != calls[0]:
            return RuntimeError(f"{call}: called on rank {rank}, expected {calls[0]}, which rank 0 called")
    errors = [each["error"] for each in told]
    first = next((error for error in errors if error), None)
    if first:
        ranks = [rank for rank, error in enumerate(errors) if error == first]
        where = "" if len(ranks) == len(told) else f" (on {ranks_in_words(ranks)})"
        if len(first) > 2:
            return OSError(first[2], first[1] + where, first[3])
        kind = getattr(builtins, first[0], None)
        if isinstance(kind, type) and issubclass(kind, Exception):
            with contextlib.suppress(TypeError):  # of those that are not made from one text, as an ExceptionGroup
                return kind(first[1] + where)
        return RuntimeError(f"{first[0]}: {first[1]}{where}")
    facts = [each["facts"] for each in told]
    labels = dict.fromkeys(label for each in facts for label in each)
    for label in labels:
        here = [each.get(label, "nothing") for each in facts]
        ranks = [rank for rank, text in enumerate(here) if text != here[0]]
        if ranks:
            return ValueError(
                f"{label}: {here[ranks[0]]} on {ranks_in_words([r for r in ranks if here[r] == here[ranks[0]]])}, "
                f"expected {here[0]}, as on rank 0"
            )
    return RuntimeError(f"{calls[0]}: the ranks differ, expected the same arguments on all of them")


def ranks_in_words(ranks: list[int]) -> str:
    """Return some ranks for a message."""
    listed = ", ".join(map(str, ranks[:8])) + ", …" * (len(ranks) > 8)
    return f"rank{'s' if len(ranks) > 1 else ''} {listed}"
