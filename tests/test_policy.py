"""The thread policy: what it may decide, and how close it comes to the best constant team in the simulation."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench import policy as simulation
from rmsfast._core.threads import Policy

KIB, MIB = 1 << 10, 1 << 20
LIMIT = 1.10
# What stays above the limit, and why. None of it may grow.
ABOVE = {
    # 64 cores take 36 µs, and a lost try 3 ms or, one in a hundred, three times as much.
    ("one core busy for a while", 64): 1.20,
    ("one core busy for good", 64): 1.20,
    ("one core busy from the start", 64): 1.32,
    ("half of the cores busy", 64): 1.20,
    ("memory saturated by 8, one core busy", 16): 1.13,
    ("memory saturated by 8, one core busy", 64): 1.13,
    ("all cores busy from the start", 64): 1.11,
    ("all cores busy for good", 2): 1.11,
    ("all cores busy for good", 64): 1.11,
    # A window has room for four steps alone, and to climb again takes more while each new team settles for 10 ms.
    ("new threads settle for 10 ms, one core busy", 64): 2.2,
    # Two plans learn apart what is good for both: when one tries, the other loses, too.
    ("in turn 512 and 2048 KiB, from memory", 16): 1.22,
    ("in turn 512 and 2048 KiB, from memory", 64): 1.22,
    ("in turn 1024 and 4096 KiB, in the cache", 64): 1.13,
    ("in turn 512 and 32768 KiB, in the cache", 64): 1.16,
    ("in turn 512 and 32768 KiB, from memory", 64): 1.17,
    ("in turn 300 and 800 KiB, from memory", 16): 1.17,
    ("in turn 300 and 800 KiB, from memory", 64): 1.17,
}


# One run of each by default; all of the table's with -m slow.
SEEDS = [pytest.param([0], id="one run"), pytest.param(simulation.SEEDS, id="all runs", marks=pytest.mark.slow)]


@pytest.mark.parametrize("cores", simulation.CORES)
@pytest.mark.parametrize("scenario", simulation.SCENARIOS, ids=lambda scenario: scenario.name)
@pytest.mark.parametrize("seeds", SEEDS)
def test_no_window_is_much_slower_than_the_best_constant_team(scenario, cores, seeds):
    result = simulation.worst(scenario, cores, seeds)
    assert result.worst <= ABOVE.get((scenario.name, cores), LIMIT)
    if (scenario.name, cores) != ("new threads settle for 10 ms, one core busy", 64):
        assert result.back <= result.allowed


@pytest.mark.parametrize("cores", simulation.CORES)
@pytest.mark.parametrize("scenario, sizes", simulation.PAIRS, ids=[scenario.name for scenario, _ in simulation.PAIRS])
@pytest.mark.parametrize("seeds", SEEDS)
def test_two_plans_in_turn_find_a_good_pair(scenario, sizes, cores, seeds):
    assert simulation.worst(scenario, cores, seeds, sizes).worst <= ABOVE.get((scenario.name, cores), LIMIT)


def taught(seconds, steps=2000, sizes=(8 * MIB,), most=16, policy=None):
    """Return a policy after steps that took `seconds(threads, step)`, what each took, and the team sizes."""
    policy = policy or Policy()
    times, used, now, kept = [], [], 0.0, 1
    for step in range(steps):
        size = sizes[step % len(sizes)]
        threads = policy.decide(size, most)
        times.append(seconds(threads, step) * size / sizes[0])
        now += times[-1]
        policy.record(size, most, threads, times[-1], kept, now)
        kept = threads if threads > 1 else kept
        used.append(threads)
    return policy, times, used


def perfect(threads, step):
    return 1e-3 / threads


def test_small_steps_have_one_thread():
    policy, _, _ = taught(perfect)
    assert policy.decide(8 * MIB, 16) == 16
    assert policy.decide(256 * KIB - 1, 16) == 1
    assert policy.decide(256 * KIB, 16) == 4


def test_nothing_is_known_at_first():
    assert Policy().decide(1 << 40, 64) == 1


def test_deciding_changes_nothing():
    policy, _, _ = taught(perfect, 137)
    before = policy.look()
    assert len({policy.decide(8 * MIB, 16) for _ in range(10)}) == 1
    assert policy.look() == before


def test_the_same_times_lead_to_the_same_teams():
    def noisy(threads, step):
        return perfect(threads, step) * (1 + step * 7919 % 13 / 10)

    assert taught(noisy)[2] == taught(noisy)[2]


@given(
    st.lists(
        st.tuples(
            st.integers(1, 64 * MIB),
            st.sampled_from([1, 2, 3, 12, 16, 1024]),
            st.floats(0, 10),
            st.integers(1, 64),
        ),
        max_size=300,
    )
)
def test_no_decision_is_out_of_bounds(steps):
    policy, now = Policy(), 0.0
    for size, most, seconds, kept in steps:
        threads = policy.decide(size, most)
        assert threads == 1 or (threads <= most and threads * 64 * KIB <= size and size >= 256 * KIB)
        assert threads == most or threads & (threads - 1) == 0
        now += seconds
        policy.record(size, most, threads, seconds, kept, now)


@pytest.mark.parametrize("most", [2, 3, 6, 12, 16, 48, 1000])
def test_a_climb_is_short(most):
    _, _, used = taught(perfect, 120, sizes=(1 << 30,), most=most)
    assert used[100] == most


def test_one_step_that_stood_still_changes_nothing():
    policy, _, _ = taught(perfect, 1000)
    before = policy.look()
    policy.record(8 * MIB, 16, 16, 0.3, 16, 1.0)
    assert {**policy.look(), "stood_still": False} == before


def test_two_long_steps_in_a_row_are_no_chance():
    policy, _, _ = taught(perfect, 1000)
    for _ in range(2):
        policy.record(8 * MIB, 16, 16, 0.3, 16, 1.0)
    assert policy.decide(8 * MIB, 16) == 1


def test_a_team_that_is_mostly_fast_and_sometimes_very_slow_is_known_by_its_mean():
    slow = np.random.default_rng(5).random(6000) < 0.4

    def bimodal(threads, step):
        return 2e-3 if threads == 1 else 4e-3 if slow[step] else 1.2e-3

    _, times, _ = taught(bimodal, 6000, most=2)
    assert sum(times[100:]) < 1.05 * 5900 * 2e-3


def test_a_team_that_always_loses_is_tried_less_and_less():
    _, _, used = taught(lambda threads, step: 1e-3 if threads == 1 else 1.5e-3, 4000, most=2)
    tries = [step for step in range(1, 4000) if used[step] == 2 and used[step - 1] == 1]
    gaps = np.diff(tries)
    assert gaps[0] < 40 and gaps[-1] == 101 and all(np.diff(gaps[1:]) >= 0)


def test_a_dear_try_is_rare():
    _, _, used = taught(lambda threads, step: 1e-3 if threads == 1 else 41e-3, 8000, most=2)
    tries = [step for step in range(8000) if used[step] == 2 and step > 100]
    assert 7 <= len(tries) <= 10


def test_steps_of_other_sizes_within_a_factor_of_two_teach_the_same():
    sizes = tuple(8 * MIB + k * 7919 % 8 * MIB for k in range(8))
    _, times, _ = taught(lambda threads, step: 1e-3 / min(threads, 4) + threads * 1e-5, sizes=sizes)
    best = [(1e-3 / 4 + 4e-5) * sizes[step % 8] / sizes[0] for step in range(2000)]
    assert sum(times[100:]) < 1.05 * sum(best[100:])


def test_another_limit_keeps_what_is_known_of_the_sizes_that_stay():
    policy, _, _ = taught(perfect, 1000)
    assert taught(perfect, 20, most=6, policy=policy)[2][0] == 6
    _, _, used = taught(perfect, 120, most=16, policy=policy)
    assert used[0] <= 8 and used[-1] == 16
