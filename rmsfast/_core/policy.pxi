# The size of a team: `decide` says it, `record` learns it from what steps took. A part of threads.pyx.
#
# Steps use one team size, `home`. From time to time they try the next larger and smaller one, and the calling thread
# alone.
# a) The total counts, so a size is known by the mean of its times: a size that is sometimes slow is as bad as its mean.
# b) A try is a few steps. If they are faster, home moves there, and the next size is tried at once.
# c) A lost try is repeated after so many steps that its price is a small part of their time.
# d) Home is left when it has lost a few steps' worth against the best other size: at once if one step takes forty times
#    as long, after a hundred steps if each loses a tenth.
# e) The runtime keeps the threads of the last team. A change of size pays for those that it makes. What two plans in turn
#    cost each other belongs to their steps: the larger team pays as it makes threads, the smaller one if that goes on.

from libc.limits cimport LLONG_MAX
from libc.math cimport INFINITY


cdef enum:
    LARGER, SMALLER, ALONE, DIRECTIONS

# Fewer bytes have no team, and no thread works on less: a start costs 1 to 50 µs, and 64 KiB take 5 to 10.
cdef size_t LEAST_BYTES = 1 << 18
cdef size_t BYTES_PER_THREAD = 1 << 16
# The first times of a size can be far too long: cold caches, new pages. The least of so many counts, unless they cost
# more than so many steps.
cdef int FIRST_STEPS = 4
cdef double DEAREST_START = 100
# The part of a new time in a size's mean. A try has few steps, and its mean may be old.
cdef double WEIGHT_AT_HOME = 1 / 16., WEIGHT_OF_TRY = 1 / 2.
# A longer time counts as so many times the mean. If it comes often, the mean grows and lets it in.
cdef double LONGEST = 3
# A longer step stood still, as when the process was stopped, and does not count. Two in a row do.
cdef double STOOD_STILL_SECONDS = 0.1, STOOD_STILL_FACTOR = 20

# A try is won below WIN times the pace at home after TRY_STEPS steps. A clear case needs fewer.
cdef int TRY_STEPS = 4
cdef double WIN = 0.97, CLEAR_WIN = 0.8, CLEAR_LOSS = 1.3
# Home is left for a size that is faster by this margin once it has lost so many of that size's steps.
cdef double MARGIN = 1.03, PATIENCE = 8
# A new home is on trial for so many steps: the size before it is still known well enough to go back to.
cdef int ON_TRIAL = 200
# A team that lost less than so many steps alone looks at a neighbour first. Alone, a large team's step takes long, too.
cdef double WORTH_A_LOOK = 4

# The part of the time that tries may cost. Alone, all of it is for a team. In a team most of it is for the next larger
# one, which may have been spoiled by others who are gone. That a smaller one is better shows at home, too.
cdef double BUDGET = 0.05, BUDGET_UP = 0.045, BUDGET_DOWN = 0.005
# A cheap try is made once in so many steps, so that a change for the better is seen soon.
cdef long long LONGEST_CHEAP_GAP = 100
# A first loss may be chance, so it is checked after as many steps as it cost. Two dearer ones would be too much for
# 2 000 steps: the check waits for so many.
cdef double CHEAP = 50
cdef long long LONGEST_FIRST_GAP = 2000

# New threads begin on the core of the one that makes them, and find their own within this time. A slow step does not
# count until then, if it took no longer than threads on one core do: so many times the thread alone.
cdef double SETTLING_SECONDS = 1e-2, SHARED_CORE = 2
# A size that has lost before is judged by the step that makes its threads if each takes so many times the usual.
cdef double DEAR_TO_MAKE = 4
# If another plan lets the threads go that a try makes, it has so many steps to try the larger team as well.
cdef int STEPS_TO_FOLLOW = 8
# This plan's smaller team lets threads go, and another plan may have to make them again. For so many steps the other plan
# can still change its size. After them, each such thread adds SECONDS_TO_MAKE to the time of this plan's steps.
cdef int STEPS_TO_REPLY = 32
cdef double SECONDS_TO_MAKE = 15e-6
# A clock may show no time between two calls.
cdef double LEAST_SECONDS = 1e-9


cdef inline int threads_of(int size, int most) noexcept nogil:
    return min(1 << size, most)


cdef inline int allowed(int size, size_t bytes, int most) noexcept nogil:
    """The largest size up to this one that has work for each thread."""
    while size > 0 and threads_of(size, most) * BYTES_PER_THREAD > bytes:
        size -= 1
    return size


cdef int decide(const Learned *learned, size_t bytes, int most) noexcept nogil:
    """How many threads, of `most`, the next step on so many bytes gets."""
    if bytes < LEAST_BYTES:
        return 1
    return threads_of(allowed(learned.at, bytes, most), most)


cdef void record(Learned *learned, size_t bytes, int most, int threads, double seconds, int kept,
                 double now) noexcept nogil:
    """Learn that a step took so many seconds until `now`.

    kept: the threads that the last team of any plan had. The step made those that it lacked, and let the others go.
    """
    cdef double pace = max(seconds, LEAST_SECONDS) / bytes
    cdef Size *home
    cdef bint changed
    if bytes < LEAST_BYTES:
        return
    if bytes != learned.bytes or most != learned.most:
        limit(learned, bytes, most)
    if threads != threads_of(learned.at, most):     # this step could not have what was decided
        return
    if seconds > STOOD_STILL_SECONDS and not learned.stood_still and stands_out(learned, pace):
        learned.stood_still = True
        return
    learned.stood_still = False
    learned.step += 1
    changed = learned.was != learned.at
    learned.was = learned.at
    home = &learned.sizes[learned.home]
    meet(learned, threads, 1 if kept == learned.team else kept, changed)
    if learned.hosted > STEPS_TO_REPLY:
        pace += (kept - threads) * SECONDS_TO_MAKE / bytes
    if not counts(learned, pace, seconds, threads - kept, changed, now):
        spend(learned, pace)
    else:
        learn(&learned.sizes[learned.at], pace, WEIGHT_AT_HOME if learned.at == learned.home else WEIGHT_OF_TRY)
        if learned.at != learned.home:
            judge(learned, pace)
            return
        if learned.stay < ON_TRIAL:
            learned.stay += 1
            if learned.stay == ON_TRIAL:
                home.retry.losses = 0
                learned.origin = learned.home
        if learned.home == 0:   # the thread alone waits for nobody: one long step is chance
            pace = min(pace, LONGEST * home.pace)
        learned.regret += pace - MARGIN * learned.rival
        learned.regretted += 1
        if learned.regret <= 0:
            learned.regret = 0
            learned.regretted = 0
        elif learned.regret > PATIENCE * learned.rival:
            leave(learned)
            return
    if learned.step >= learned.due and learned.at == learned.home and home.steps >= FIRST_STEPS:
        try_another(learned)


cdef void meet(Learned *learned, int threads, int others, bint changed) noexcept nogil:
    """Note how many threads another plan's team left to this step; 1: none did."""
    if others != learned.others:
        learned.others = others
        if others > threads_of(learned.home, learned.most) and retry(learned, LARGER).price < CHEAP:
            retry(learned, LARGER).due = learned.step   # the threads are there
        look_round(learned)
    if threads > 1:
        learned.team = threads
    if changed or threads == 1 or threads >= others:
        learned.hosted = 0
        learned.owed = 0
    else:
        learned.hosted += 1
        if learned.hosted <= STEPS_TO_REPLY:
            learned.owed += (others - threads) * SECONDS_TO_MAKE / learned.bytes


cdef bint counts(Learned *learned, double pace, double seconds, int made, bint changed, double now) noexcept nogil:
    """Whether a step says something about its size, and not about threads that it has just made."""
    cdef const Size *size = &learned.sizes[learned.at]
    cdef double home = learned.sizes[learned.home].pace, each
    cdef bint larger = learned.at > learned.home
    if made > 0 and changed:
        each = (pace - home) / made
        if learned.making == 0 or each < learned.making:
            learned.making = max(each, 0)
        learned.settled = now + SETTLING_SECONDS
        learned.toll = 0
        if not larger or size.retry.losses == 0 or each <= DEAR_TO_MAKE * learned.making:
            return False
    if made > 0 and larger and learned.waited < STEPS_TO_FOLLOW:
        learned.waited += 1
        return False
    return (made > 0 or learned.at == 0 or learned.at < learned.home or now - seconds >= learned.settled
            or pace <= home or pace >= SHARED_CORE * learned.sizes[0].pace and not (larger and size.retry.losses == 0))


cdef bint stands_out(const Learned *learned, double pace) noexcept nogil:
    cdef const Size *size = &learned.sizes[learned.at]
    if size.steps == 0:
        size = &learned.sizes[0]
    return size.steps > 0 and pace > STOOD_STILL_FACTOR * size.pace


cdef void learn(Size *size, double pace, double weight) noexcept nogil:
    if size.steps < FIRST_STEPS:
        size.pace = pace if size.steps == 0 else min(size.pace, pace)
        size.steps += 1
    else:
        size.pace += weight * (min(pace, LONGEST * size.pace) - size.pace)
        size.steps = FIRST_STEPS + 1


cdef void limit(Learned *learned, size_t bytes, int most) noexcept nogil:
    """Note how large teams may be. What is known of a size with another number of threads is forgotten."""
    cdef bint changed = most != learned.most
    cdef int size
    for size in range(SIZES):
        if threads_of(size, most) != threads_of(size, learned.most):
            memset(&learned.sizes[size], 0, sizeof(Size))
    learned.bytes = bytes
    learned.most = most
    learned.top = 0
    while threads_of(learned.top, most) < most:
        learned.top += 1
    learned.top = allowed(learned.top, bytes, most)
    if changed or max(learned.home, learned.at) > learned.top:
        move(learned, min(learned.home, learned.top))
    look_round(learned)


cdef int other(const Learned *learned, int direction) noexcept nogil:
    """The size to try in a direction, which are: the larger, the smaller, the thread alone. None: home."""
    cdef int size = learned.home + 1
    if direction == LARGER:
        while threads_of(size, learned.most) < min(learned.others, learned.most):
            size += 1
        return min(size, learned.top)
    return max(learned.home - 1, 0) if direction == SMALLER or learned.home == 1 else 0


cdef Retry *retry(Learned *learned, int direction) noexcept nogil:
    if direction == LARGER:
        return &learned.sizes[other(learned, LARGER)].retry
    return &learned.smaller if direction == SMALLER else &learned.alone


cdef void look_round(Learned *learned) noexcept nogil:
    """Find the best other size, and when the next try is due."""
    cdef int direction, size
    learned.rival = INFINITY
    learned.due = LLONG_MAX
    for direction in range(DIRECTIONS):
        size = other(learned, direction)
        if size != learned.home:
            learned.due = min(learned.due, retry(learned, direction).due)
            if learned.sizes[size].steps > 0:
                learned.rival = min(learned.rival, learned.sizes[size].pace)


cdef void try_another(Learned *learned) noexcept nogil:
    cdef int direction
    for direction in range(DIRECTIONS):
        if other(learned, direction) != learned.home and retry(learned, direction).due <= learned.step:
            learned.direction = direction
            learned.at = other(learned, direction)
            break
    learned.spent = learned.tried = 0
    learned.tries = 0
    learned.waited = 0


cdef void judge(Learned *learned, double pace) noexcept nogil:
    """End the try under way if it is won or lost."""
    cdef const Size *size = &learned.sizes[learned.at]
    cdef double home = learned.sizes[learned.home].pace, ratio
    learned.spent += pace - home
    learned.tried += pace
    learned.tries += 1
    ratio = learned.tried / learned.tries / home
    if size.steps <= FIRST_STEPS:
        if size.steps < FIRST_STEPS and learned.tried < (learned.tries + DEAREST_START) * home:
            return
        ratio = size.pace / home
    if learned.tries >= 2 and ratio < CLEAR_WIN or learned.tries >= TRY_STEPS and ratio < WIN:
        win(learned, ratio * home)
    elif learned.tries >= TRY_STEPS or ratio > CLEAR_LOSS:
        learned.sizes[learned.at].pace = max(size.pace, min(ratio, CLEAR_LOSS) * home)
        learned.at = learned.home
        lose(learned, learned.direction, learned.spent / home)


cdef void win(Learned *learned, double pace) noexcept nogil:
    """Move to the size that was tried, and try the next one in this direction soon."""
    cdef int origin = learned.home, direction = learned.direction
    learned.sizes[learned.at].pace = pace
    move(learned, learned.at)
    learned.origin = origin
    if origin > learned.home + 1:       # what is known of the sizes between is old
        learned.sizes[learned.home + 1].pace = max(learned.sizes[learned.home + 1].pace, CLEAR_LOSS * pace)
    elif direction != ALONE and (learned.sizes[learned.home].retry.losses > 0
                                 or learned.sizes[other(learned, direction)].steps == 0
                                 or learned.sizes[other(learned, direction)].pace < pace):
        retry(learned, direction).due = learned.step
    look_round(learned)


cdef void move(Learned *learned, int home) noexcept nogil:
    """Let this be the size in use. Smaller ones are tried when that can be afforded."""
    cdef int direction
    cdef double pace = learned.sizes[home].pace, price
    cdef const Size *size
    learned.home = learned.at = learned.origin = home
    learned.direction = -1
    learned.regret = 0
    learned.regretted = 0
    learned.stay = 0
    for direction in range(SMALLER, DIRECTIONS):
        size = &learned.sizes[other(learned, direction)]
        price = 0
        if pace > 0 and size.steps > 0:
            price = max(0, (size.pace + (learned.toll if direction == SMALLER else 0)) / pace - 1)
        memset(retry(learned, direction), 0, sizeof(Retry))
        retry(learned, direction).due = learned.step + max(FIRST_STEPS, <long long>(price / BUDGET_DOWN))


cdef void leave(Learned *learned) noexcept nogil:
    """Move away from a size that has lost too much."""
    cdef int left = learned.home, to = 0, direction
    cdef double pace = MARGIN * learned.rival + learned.regret / learned.regretted, alone = learned.sizes[0].pace
    cdef double cost = learned.regret + learned.owed
    if left > 0 and pace > alone and (
            cost > WORTH_A_LOOK * alone or learned.stay < ON_TRIAL and learned.origin == left):
        to = 0
    elif learned.origin != left:
        to = learned.origin
    else:
        for direction in range(DIRECTIONS):
            if other(learned, direction) != left and learned.sizes[other(learned, direction)].pace == learned.rival:
                to = other(learned, direction)
    learned.sizes[left].pace = max(learned.sizes[left].pace, CLEAR_LOSS * learned.sizes[to].pace)
    move(learned, to)
    if left > to:
        learned.sizes[other(learned, LARGER)].pace = max(
            learned.sizes[other(learned, LARGER)].pace, CLEAR_LOSS * learned.sizes[to].pace)
        lose(learned, LARGER, cost / learned.sizes[to].pace)
    look_round(learned)


cdef void lose(Learned *learned, int direction, double price) noexcept nogil:
    """Put down that a try in this direction was lost, or a stay."""
    cdef Retry *lost = retry(learned, direction)
    learned.direction = direction
    lost.losses = min(lost.losses + 1, 20)
    lost.old_price = lost.price
    lost.price = max(price, 0)
    lost.lost = learned.step
    put_off(learned, direction)


cdef void put_off(Learned *learned, int direction) noexcept nogil:
    """Let a size wait until another lost try is a small part of the time."""
    cdef Retry *lost = retry(learned, direction)
    cdef double budget = BUDGET_DOWN if direction != LARGER else BUDGET_UP if learned.home > 0 else BUDGET
    cdef double price = lost.price, gap
    if lost.losses > 1:
        price = min(price, lost.old_price)
        gap = max(min(<double>(1 << lost.losses), LONGEST_CHEAP_GAP), price / budget)
    elif price < CHEAP:
        gap = price + 1
    else:
        gap = min(price / budget, LONGEST_FIRST_GAP)
    lost.due = lost.lost + <long long>gap
    look_round(learned)


cdef void spend(Learned *learned, double pace) noexcept nogil:
    """Put down what a change of size costs beside its steps: as the price of the try under way, or of the last."""
    cdef double home = learned.sizes[learned.home].pace
    if home == 0:
        return
    learned.spent += max(0, pace - home)
    learned.toll += max(0, pace - home)
    if learned.at == learned.home and learned.direction >= 0:
        retry(learned, learned.direction).price += max(0, pace - home) / home
        put_off(learned, learned.direction)


@cython.final
cdef class Policy:
    """What one kind of work of one plan has learned, for Python: the simulation and the tests."""
    cdef Learned learned

    def decide(self, size_t size, int most):
        return decide(&self.learned, size, most)

    def record(self, size_t size, int most, int threads, double seconds, int kept=1, double now=0):
        record(&self.learned, size, most, threads, seconds, kept, now)

    def look(self):
        return self.learned
