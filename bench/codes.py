"""What codes of 8 and 16 bits do to the averages of an optimizer: `python -m bench.codes`.

A simulation in NumPy. The averages of squares (v), or of gradients (m), run for 10 000 steps in float32 and in each
code beside it, on gradients whose size drifts over six decades. Printed are bias and spread of √v̂ ÷ √v, or of m̂ − m,
at the end. `--publish` puts the tables into docs/formats.md.
"""

import argparse
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import numpy as np

from bench.pages import DOCS, put


class Round(Protocol):
    """A code: the numbers that are read again of those that were stored."""

    def __call__(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray: ...


STEPS = 10_000
DECADES = 6  # over which the size of the gradients drifts
BETAS = 0.9, 0.99, 0.999
ELEMENTS = 4096
# How the size of all gradients moves, and how many decades lie between the sizes of the elements of a block.
FALLING, RISING = "falling", "rising"
SIGNAL = 0.3  # the mean of a gradient for m, in units of its noise, is up to so large, with either sign
ONE_BIT = np.uint32(1)


def bits_of(x: np.ndarray) -> np.ndarray:
    return x.view(np.uint32)


def value_of(bits: np.ndarray) -> np.ndarray:
    return bits.astype(np.uint32).view(np.float32)


def addend(shape, cut: int, rng: np.random.Generator | None) -> np.ndarray | np.uint32:
    """Return what to add before the lowest `cut` bits are cut off: random bits, or half a step for the nearest."""
    if rng is None:
        return np.uint32(1 << (cut - 1))
    return rng.integers(0, 1 << 32, shape, np.uint32) >> np.uint32(32 - cut)


@dataclass(frozen=True)
class Float8:
    """Ours: a float of 8 bits, and a power of two for each block, taken apart in integer operations.

    Without a sign, what is below the range becomes the smallest value, which is not zero. With one, it underflows
    gradually to zero.
    """

    exponent: int
    mantissa: int
    block: int
    stochastic: bool = True
    signed: bool = False

    def __call__(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        blocks = x.reshape(-1, self.block)
        size = np.abs(blocks) if self.signed else blocks
        bits = bits_of(size)
        cut = np.uint32(23 - self.mantissa)
        r = addend(bits.shape, int(cut), rng if self.stochastic else None)
        # Rounding up the largest element must not leave the range.
        top = (bits.max(axis=1, keepdims=True) + ((ONE_BIT << cut) - ONE_BIT)) >> np.uint32(23)
        base = np.maximum(top.astype(np.int32) - ((1 << self.exponent) - 1), 1)
        if self.signed:
            return np.copysign(self._gradual(size, bits, base + 1, r, cut), blocks).reshape(x.shape)
        origin = base << self.mantissa
        code = np.clip(((bits + r) >> cut).astype(np.int32) - origin, 0, 255)
        return value_of((code + origin) << np.int32(cut)).reshape(x.shape)

    def _gradual(self, size, bits, least, r, cut) -> np.ndarray:
        """Return the rounded sizes. Below 2^least they are multiples of one step, as after adding 2^least."""
        normal = value_of(((bits + r) >> cut) << cut)
        unit = value_of(least << 23)
        small = value_of(((bits_of(size + unit) + r) >> cut) << cut) - unit
        return np.where(size < unit, small, normal)


@dataclass(frozen=True)
class BFloat16:
    stochastic: bool = True

    def __call__(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        bits = bits_of(x)
        half = np.uint32(0x7FFF) + ((bits >> np.uint32(16)) & ONE_BIT)  # ties to even
        r = addend(bits.shape, 16, rng) if self.stochastic else half
        return value_of(((bits + r) >> np.uint32(16)) << np.uint32(16))


def dynamic_map(signed: bool) -> np.ndarray:
    """Return the 256 values of bitsandbytes' dynamic map (`functional.create_dynamic_map`, 7 exponent bits at most).

    Each of seven decades has twice as many values as the one below, at the centres of equal intervals of [0.1, 1].
    """
    values = []
    for i in range(7):
        edges = np.linspace(0.1, 1, 2 ** (i + (0 if signed else 1)) + 1)
        values.append(10.0 ** (i - 6) * (edges[:-1] + edges[1:]) / 2)
    positive = np.concatenate(values)
    if signed:
        return np.sort(np.concatenate([-positive, [0.0], positive, [1.0]])).astype(np.float32)
    return np.sort(np.concatenate([[0.0], positive, [1.0]])).astype(np.float32)


class DynamicMap:
    """bitsandbytes: the nearest of 256 values, times the largest size of a block of 256 (arXiv 2110.02861)."""

    block = 256

    def __init__(self, signed: bool) -> None:
        self.values = dynamic_map(signed)
        self.middles = (self.values[:-1] + self.values[1:]) / 2

    def __call__(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        blocks = x.reshape(-1, self.block)
        scale = np.abs(blocks).max(axis=1, keepdims=True)
        scaled = np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 0)
        return (self.values[np.searchsorted(self.middles, scaled)] * scale).reshape(x.shape)


@dataclass(frozen=True)
class Companding:
    """FlashOptim: 8-bit integers after a root (v) or softsign (m), a float16 scale for 32 (arXiv 2602.23349)."""

    signed: bool = False
    block = 32

    def __call__(self, x: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        blocks = x.reshape(-1, self.block)
        if not self.signed:
            blocks = np.sqrt(blocks)
        scale = np.abs(blocks).max(axis=1, keepdims=True).astype(np.float16).astype(np.float32)
        scaled = np.divide(blocks, scale, out=np.zeros_like(blocks), where=scale > 0)
        if not self.signed:
            code = np.minimum(np.rint(scaled * np.float32(255)), np.float32(255))
            return np.square(code / np.float32(255) * scale).reshape(x.shape)
        code = np.rint(2 * scaled / (1 + np.abs(scaled)) * np.float32(127)).clip(-127, 127) / np.float32(127)
        return (code / (2 - np.abs(code)) * scale).reshape(x.shape)


def float8_name(code: Float8) -> str:
    rounding = "stochastic" if code.stochastic else "nearest"
    sign = "sign + " if code.signed else ""
    return f"{sign}{code.exponent}+{code.mantissa} bits, blocks of {code.block}, {rounding}"


def floats(splits, blocks, signed: bool = False) -> dict[str, Round]:
    """Return our codes with these splits and blocks, and the first one with nearest rounding."""
    (e, m), block = splits[0], blocks[0]
    codes = [Float8(*split, block, signed=signed) for split in splits for block in blocks]
    codes.insert(len(blocks), Float8(e, m, block, stochastic=False, signed=signed))
    return {float8_name(code): code for code in codes}


def codes_of(state: str, blocks: list[int]) -> dict[str, Round]:
    sixteen: dict[str, Round] = {"bfloat16, stochastic": BFloat16(), "bfloat16, nearest": BFloat16(False)}
    if state == "m":
        ours = floats([(3, 4), (4, 3)], blocks, signed=True)
        return {
            **ours,
            **sixteen,
            "bitsandbytes, signed map": DynamicMap(True),
            "FlashOptim, softsign": Companding(signed=True),
        }
    return {
        **floats([(4, 4), (5, 3), (3, 5)], blocks),
        **sixteen,
        "bitsandbytes, signed map": DynamicMap(True),
        "bitsandbytes, unsigned map": DynamicMap(False),
        "FlashOptim, root": Companding(),
    }


@dataclass(frozen=True)
class Result:
    """Bias and spread, relative, and the part of the elements that became zero."""

    bias: float
    spread: float
    zeros: float

    def __str__(self) -> str:
        zeros = f", {self.zeros:.0%} zero" if self.zeros >= 0.005 else ""
        if abs(self.bias) >= 10 or self.spread >= 10:
            return f"×{1 + self.bias:,.0f} ± {self.spread:,.0f}{zeros}"
        return f"{100 * self.bias:+.1f} ± {100 * self.spread:.1f} %{zeros}"


def sizes(drift: str, step: int) -> np.float32:
    part = step / STEPS if drift == FALLING else 1 - step / STEPS
    return np.float32(10.0 ** (-DECADES * part))


def gradients(drift: str, width: float, signal: bool, seed: int):
    """Yield the gradients of each step: normal numbers, times each element's size, times the size of this step.

    For m, each element's gradient has a mean besides.
    """
    rng = np.random.default_rng(seed)
    own = (10.0 ** rng.uniform(-width, 0, ELEMENTS)).astype(np.float32)
    mean = rng.uniform(-SIGNAL, SIGNAL, ELEMENTS).astype(np.float32) if signal else np.float32(0)
    for step in range(STEPS):
        yield (rng.standard_normal(ELEMENTS, np.float32) + mean) * (own * sizes(drift, step))


def simulate(codes: dict[str, Round], case: "Case", beta: float, seed: int, advance) -> dict[str, "Result"]:
    """Return the result of each code in one case with one beta."""
    signed = case.state == "m"
    b, c = np.float32(beta), np.float32(1 - beta)
    exact = np.zeros(ELEMENTS, np.float32)
    stored = {name: np.zeros(ELEMENTS, np.float32) for name in codes}
    rngs = {name: np.random.Generator(np.random.SFC64(k)) for k, name in enumerate(codes)}
    for g in gradients(case.drift, case.width, signed, seed):
        term = c * g if signed else c * (g * g)
        exact = b * exact + term
        for name, code in codes.items():
            stored[name] = code(b * stored[name] + term, rngs[name])
        advance()
    return {name: compare(value, exact, signed) for name, value in stored.items()}


def compare(stored: np.ndarray, exact: np.ndarray, signed: bool) -> Result:
    """Return bias and spread of √v̂ ÷ √v; for m, of m̂ − m along m, in units of the mean size of its 256 neighbours."""
    zeros = float(np.mean((stored == 0) & (exact != 0)))
    if not signed:
        ratio = np.sqrt(stored.astype(float)) / np.sqrt(exact.astype(float))
        return Result(float(ratio.mean() - 1), float(ratio.std()), zeros)
    scale = np.sqrt(np.square(exact.astype(float)).reshape(-1, 256).mean(axis=1)).repeat(256)
    error = (stored - exact.astype(float)) / scale
    along = error * np.sign(exact)
    return Result(float(along.mean()), float(error.std()), zeros)


class Case(NamedTuple):
    state: str  # v or m
    drift: str
    width: float  # decades between the sizes of a block's elements

    def __str__(self) -> str:
        within = f"sizes within a block over {self.width:g} decades" if self.width else "one size within a block"
        return f"{self.state}, gradients {self.drift} over {DECADES} decades in {STEPS:,} steps, {within}"


CASES = [
    Case("v", RISING, 0),
    Case("v", FALLING, 0),
    Case("v", FALLING, 2),
    Case("v", FALLING, 4),
    Case("m", RISING, 2),
    Case("m", FALLING, 2),
]


def main() -> None:
    from rich.console import Console
    from rich.progress import Progress

    parser = argparse.ArgumentParser(prog="python -m bench.codes", description=__doc__)
    parser.add_argument("--blocks", default="64", help="elements in a block of ours (default %(default)s)")
    parser.add_argument("--seed", type=int, default=0, help="of the gradients (default %(default)s)")
    parser.add_argument("--publish", action="store_true", help="put the tables into docs/formats.md")
    options = parser.parse_args()
    blocks = [int(block) for block in options.blocks.split(",")]

    console = Console(highlight=False, width=120)
    tables = []
    with Progress(console=console, transient=True) as progress:
        task = progress.add_task("steps", total=len(CASES) * len(BETAS) * STEPS)
        for case in CASES:
            codes = codes_of(case.state, blocks)
            results = [simulate(codes, case, beta, options.seed, lambda: progress.advance(task)) for beta in BETAS]
            console.print(table_of(case, codes, results))
            tables.append(markdown_of(case, codes, results))
    if options.publish:
        put(DOCS / "formats.md", "python -m bench.codes", "\n".join(tables))
        console.print("written: docs/formats.md")


def table_of(case: Case, codes, results):
    from rich.table import Table

    table = Table("code", *(f"β = {beta}" for beta in BETAS), title=str(case))
    for name in codes:
        table.add_row(name, *(str(result[name]) for result in results))
    return table


def markdown_of(case: Case, codes, results) -> str:
    lines = [f"**{case}:**", "", f"| code | {' | '.join(f'β = {beta}' for beta in BETAS)} |", "|---|---:|---:|---:|"]
    lines += [f"| {name} | {' | '.join(str(result[name]) for result in results)} |" for name in codes]
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
