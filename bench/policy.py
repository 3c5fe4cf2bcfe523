"""The thread policy in machines that are made up: scenarios with costs and a clock of their own.

`python -m bench.policy` prints the table of docs/performance.md. tests/test_policy.py holds each scenario to it.
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, field, replace
from itertools import pairwise

import numpy as np

from rmsfast._core.threads import Policy

STEPS = 18_000
WINDOW = 2_000
FIRST = 100  # steps in which the policy may try what it likes
MAKE_A_THREAD = 15e-6
STOP = 0.3
# One step that takes as long as so many of the best size's is left out of a window: whoever tries at all pays for it.
DEAR = 100
SEEDS = range(3)
QUANTUM = 3e-3  # a thread waits so long for a core that another program keeps busy
CORES = [2, 16, 64]


@dataclass(frozen=True)
class Others:
    """What other programs do from a step on, until the next entry."""

    step: int
    busy: float = 0  # cores that another program keeps busy; a part of all below 1, as 0.5
    spinning: float = 1  # teams take so many times as long as the thread alone
    slower: float = 1  # every size takes so many times as long


@dataclass(frozen=True)
class Scenario:
    name: str
    work: float = 1e-3  # seconds alone
    start: float = 5e-6  # of a team
    saturated: int = 1024  # threads that use all of the memory's bandwidth
    others: tuple[Others, ...] = (Others(0),)
    size: int = 8 << 20  # bytes
    stops: tuple[int, ...] = ()
    bad_first: float = 1  # the first three times of each size are so many times too long
    made_extra: float = 0  # what a step takes longer that makes threads, beside 15 µs for each
    settling: float = 0  # seconds in which a team with new threads is no faster than the thread alone


def sizes_of(most: int, size: int) -> list[int]:
    """Return the team sizes: no thread works on less than 64 KiB."""
    return [1, *sorted(k for k in {2**k for k in range(1, most.bit_length())} | {most} if k << 16 <= size)]


def noise(rng: np.random.Generator, steps: int) -> np.ndarray:
    """5 % of noise, and every hundredth step takes several times as long."""
    return np.exp(rng.normal(0, 0.05, steps)) * (1 + (rng.random(steps) < 0.01) * rng.exponential(2, steps))


def costs(scenario: Scenario, cores: int, rng: np.random.Generator, steps: int = STEPS) -> np.ndarray:
    """Return what each size would take in each step, the same chance for all sizes."""
    found = []
    chance, share = noise(rng, steps), rng.random(steps)
    for threads in sizes_of(cores, scenario.size):
        alone = scenario.work
        quiet = alone / min(threads, scenario.saturated) + (threads > 1) * (scenario.start + threads * 5e-8)
        seconds = np.full(steps, quiet)
        for others in scenario.others:
            busy = min(cores, int(others.busy) if others.busy >= 1 else int(others.busy * cores))
            rest = slice(others.step, None)
            seconds[rest] = quiet * others.slower
            if others.spinning > 1 and threads > 1:
                seconds[rest] = alone * others.spinning * others.slower
            if threads > 1 and threads > cores - busy:
                seconds[rest] += (share[rest] < 0.6) * QUANTUM
            elif busy >= cores - 1 and busy:
                seconds[rest] *= np.where(share[rest] < 0.3, 1.5, 1) if busy < cores else 1
                seconds[rest] += (share[rest] < 0.3) * QUANTUM if busy == cores else 0
        found.append(seconds * chance)
    return np.array(found)


@dataclass
class Machine:
    """A clock, and the threads that the runtime keeps: those of the last team."""

    scenario: Scenario
    now: float = 0
    kept: int = 1
    settled: float = 0
    times: dict[int, int] = field(default_factory=dict)

    def step(self, policy: Policy, size: int, most: int, seconds, alone: float, stopped: bool) -> tuple[float, int]:
        """Let the policy take a step; return what it took, without the time for which the process was stopped."""
        scenario = self.scenario
        threads = policy.decide(size, most)
        took = seconds[threads]
        kept = self.kept
        if self.now < self.settled and threads > 1:
            took = max(took, alone)
        if threads > kept:
            took += (threads - kept) * MAKE_A_THREAD + scenario.made_extra
            self.settled = self.now + scenario.settling
        if threads > 1:
            self.kept = threads
        if scenario.bad_first > 1:
            seen = self.times[threads] = self.times.get(threads, 0) + 1
            if seen <= 3:
                took *= scenario.bad_first
        measured = took + STOP * stopped
        self.now += measured
        policy.record(size, most, threads, measured, kept, self.now)
        return took, threads


@dataclass
class Result:
    worst: float  # time of the worst window, in those of the best constant size
    back: int  # steps until the policy was back at the best, the longest of all changes; 0 without
    allowed: int  # as many as these may be


def run(scenario: Scenario, cores: int, seed: int) -> Result:
    rng = np.random.default_rng(seed)
    matrix = costs(scenario, cores, rng)
    sizes = sizes_of(cores, scenario.size)
    machine, policy = Machine(scenario), Policy()
    took, used = [], []
    stops = set(scenario.stops)
    for step, column in enumerate(matrix.T.tolist()):
        seconds, threads = machine.step(
            policy, scenario.size, cores, dict(zip(sizes, column, strict=True)), column[0], step in stops
        )
        took.append(seconds)
        used.append(threads)
    return measure(scenario, matrix, np.array(took), np.array(used))


def price_of_a_try(took, used) -> float:
    """Return what the dearest of the last two tries of a larger team cost, in steps at the size in use."""
    home = int(np.bincount(used[-500:]).argmax())
    step = took[-500:][used[-500:] == home].mean()
    starts = np.flatnonzero((used[1:] > home) & (used[:-1] <= home)) + 1
    prices = [0.0]
    for start in starts[-2:]:
        rest = used[start:] <= home
        stop = start + (int(rest.argmax()) if rest.any() else len(rest))
        prices.append(float((took[start:stop] - step).sum() / step))
    return max(prices)


def measure(scenario: Scenario, matrix, took, used) -> Result:
    total = np.concatenate([[0], np.cumsum(took)])
    totals = np.concatenate([np.zeros((len(matrix), 1)), np.cumsum(matrix, axis=1)], axis=1)
    changes = [others.step for others in scenario.others] + [len(took)]
    worst, back, allowed = 0.0, 0, 200
    for (first, last), others in zip(pairwise(changes), scenario.others, strict=True):
        start = max(first, FIRST)
        if first > 0 and others == Others(first):  # the others have gone
            best = int((totals[:, last] - totals[:, first]).argmin())
            near = np.arange(first, last - 100)
            fine = (total[near + 100] - total[near]) <= 1.1 * (totals[best, near + 100] - totals[best, near])
            back = int(fine.argmax()) if fine.any() else last - first
            price = price_of_a_try(took[FIRST:first], used[FIRST:first])
            allowed = int(max(200, price / 0.05))
            start = first + allowed
        starts = np.arange(start, last - WINDOW + 1, 50)
        if len(starts):
            best = (totals[:, starts + WINDOW] - totals[:, starts]).min(axis=0)
            slowest = np.lib.stride_tricks.sliding_window_view(took, WINDOW)[starts].max(axis=1)
            dear = slowest > DEAR * best / WINDOW
            ratios = (total[starts + WINDOW] - total[starts] - np.where(dear, slowest, 0)) / best
            worst = max(worst, float(ratios.max()))
    return Result(worst, back, allowed)


def run_pair(scenario: Scenario, bytes_of_two: tuple[int, int], cores: int, seed: int) -> Result:
    """Two plans in turn; what they share is the machine's threads. Compare with the best pair of constant sizes."""
    rng = np.random.default_rng(seed)
    rounds = STEPS // 2
    sizes = [sizes_of(cores, b) for b in bytes_of_two]
    machine = Machine(scenario)
    policies = Policy(), Policy()
    matrices = [
        costs(replace(scenario, work=scenario.work * b / (1 << 20), size=b), cores, rng, rounds) for b in bytes_of_two
    ]
    columns = [matrix.T.tolist() for matrix in matrices]
    took, used = [], []
    for step in range(rounds):
        both = 0.0
        for policy, b, of_b, column in zip(policies, bytes_of_two, sizes, columns, strict=True):
            seconds, threads = machine.step(
                policy, b, cores, dict(zip(of_b, column[step], strict=True)), column[step][0], False
            )
            both += seconds
            used.append(threads)
        took.append(both)
    pairs = np.array(
        [
            one + two + MAKE_A_THREAD * (abs(i - j) if i > 1 and j > 1 else 0)
            for i, one in zip(sizes[0], matrices[0], strict=True)
            for j, two in zip(sizes[1], matrices[1], strict=True)
        ]
    )
    return measure(scenario, pairs, np.array(took), np.array(used))


def for_a_while(**others) -> tuple[Others, ...]:
    return Others(0), Others(2500, **others), Others(5500)


def for_good(**others) -> tuple[Others, ...]:
    return Others(0), Others(2500, **others)


SMALL = {"work": 4e-5, "size": 1 << 19}
SCENARIOS = [
    Scenario("quiet"),
    *(Scenario(f"start {us} µs, large work", start=us * 1e-6) for us in (1, 5, 50)),
    *(Scenario(f"start {us} µs, small work", start=us * 1e-6, **SMALL) for us in (1, 5, 50)),
    Scenario("quiet, huge work", work=0.05, size=400 << 20),
    Scenario("one core busy for a while", others=for_a_while(busy=1)),
    Scenario("one core busy for good", others=for_good(busy=1)),
    Scenario("one core busy from the start", others=(Others(0, busy=1), Others(5500))),
    Scenario("one core busy, small work", others=for_a_while(busy=1), **SMALL),
    Scenario("all cores busy for a while", others=for_a_while(busy=1024)),
    Scenario("all cores busy for good", others=for_good(busy=1024)),
    Scenario("all cores busy from the start", others=(Others(0, busy=1024), Others(5500))),
    Scenario("half of the cores busy", others=for_a_while(busy=0.5)),
    *(
        Scenario(
            f"spinning threads, {factor} times, {name}", work=0.02 / factor, size=(200 << 20) // factor, others=others
        )
        for factor in (40, 150, 500)
        for name, others in (
            ("for a while", for_a_while(spinning=factor)),
            ("for good", for_good(spinning=factor)),
            ("from the start", (Others(0, spinning=factor), Others(5500))),
        )
    ),
    Scenario("memory saturated by 8 threads", saturated=8),
    Scenario("memory saturated by 8, start 50 µs", saturated=8, start=5e-5),
    Scenario("memory saturated by 8, one core busy", saturated=8, others=for_a_while(busy=1)),
    Scenario("stopped in team steps", stops=(5, 50, *range(700, STEPS, 700))),
    Scenario("stopped in steps alone", stops=(1, 5, 50, *range(700, STEPS, 700)), start=5e-5, **SMALL),
    Scenario("first times 20 times too long", bad_first=20),
    Scenario("first times 20 times too long, small work", bad_first=20, **SMALL),
    Scenario("three times slower, then as before", others=for_a_while(slower=3)),
    Scenario("three times faster, then as before", others=for_a_while(slower=1 / 3)),
    Scenario("new threads settle for 10 ms", settling=0.01),
    Scenario("new threads settle for 10 ms, one core busy", settling=0.01, others=for_a_while(busy=1)),
    Scenario("making threads takes 10 ms", made_extra=0.01),
]
KIB, MIB = 1 << 10, 1 << 20
PAIRS = [
    (Scenario(f"in turn {a >> 10} and {b >> 10} KiB, {name}", work=work, start=start), (a, b))
    for a, b in ((512 * KIB, 2 * MIB), (MIB, 4 * MIB), (512 * KIB, 32 * MIB), (300 * KIB, 800 * KIB))
    for name, work, start in (("in the cache", 1e-4, 5e-6), ("from memory", 5e-4, 5e-6))
]


def worst(scenario: Scenario, cores: int, seeds, bytes_of_two: tuple[int, int] | None = None) -> Result:
    """Return the worst of some runs: the worst window, and the slowest way back beside what is allowed."""
    results = [
        run(scenario, cores, seed) if bytes_of_two is None else run_pair(scenario, bytes_of_two, cores, seed)
        for seed in seeds
    ]
    slowest = max(results, key=lambda result: result.back / result.allowed)
    return Result(max(result.worst for result in results), slowest.back, slowest.allowed)


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    parser = argparse.ArgumentParser(prog="python -m bench.policy", description=__doc__)
    parser.add_argument("--seeds", type=int, default=len(SEEDS), help="runs of each (default %(default)s)")
    options = parser.parse_args()
    table = Table("scenario", *(f"{cores} cores" for cores in CORES))
    for scenario, bytes_of_two in [*((scenario, None) for scenario in SCENARIOS), *PAIRS]:
        cells = []
        for cores in CORES:
            result = worst(scenario, cores, range(options.seeds), bytes_of_two)
            back = f", back after {result.back} (of {result.allowed})" if result.back else ""
            cells.append(f"{result.worst:.2f}{back}")
        table.add_row(scenario.name, *cells)
    Console(highlight=False, width=150).print(table)


if __name__ == "__main__":
    main()
