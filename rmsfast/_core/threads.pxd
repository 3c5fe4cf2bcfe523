"""How many threads a step gets, and what a fork does to them."""

from cpython.pythread cimport PyThread_type_lock


cdef enum:
    SIZES = 11      # of teams: 1, 2, 4, …, 512, and at last `most`, which is at most 1024


cdef struct Retry:
    # When a size is tried again that lost its last tries.
    int losses          # in a row, as far as that matters
    double price        # of the last try, in steps at the size in use, …
    double old_price    # … and of the one before
    long long lost      # the step of the last try
    long long due       # the step from which on the next may begin


cdef struct Size:
    # What is known of one team size.
    double pace         # mean seconds per byte
    int steps           # measured, as far as that matters; 0: nothing is known
    Retry retry         # from the next smaller size


cdef struct Learned:
    # What one kind of work of one plan has learned. All zeros: nothing.
    Size sizes[SIZES]
    Retry smaller, alone    # the retries of the next smaller size, and of the thread alone, from `home`
    long long step
    long long due       # the step at which the next try may begin
    double settled      # the time at which the threads made last have found their cores
    double rival        # the pace of the best other size
    double regret       # seconds per byte that the last steps lost against `rival`, …
    double spent        # what the try under way, or the last move, has cost
    double tried        # the sum of the paces in the try under way
    double toll         # seconds per byte that steps with new threads took longer, after the last change that made some
    double making       # the least that a new thread cost, in seconds per byte
    size_t bytes        # of the last step
    int most            # that the last step was allowed
    int top             # the largest size that the last step was allowed
    double owed         # seconds per byte of making threads that another plan's steps paid so far, …
    int hosted          # … and how many steps these are
    int waited          # steps of the try under way in which another plan could follow
    int team            # threads of this plan's last team
    int others          # threads that another plan's team left to the last step; 1: none
    int regretted       # … and how many steps these are
    int tries           # steps of the try under way
    int home            # the size in use
    int at              # the size of the next step: `home`, or that of a try
    int was             # the size of the last step
    int origin          # the size in use before `home`, which a try left; else `home`
    int direction       # of the try under way or the last: 0 larger, 1 smaller, 2 alone; -1: none since the last move
    int stay            # steps since `home` changed, as far as that matters
    bint stood_still    # the last step did


cdef struct Tuning:
    size_t smallest_work        # bytes of a step below which it stays on the calling thread
    size_t bytes_to_release_gil # a step on so many bytes lets other Python threads run
    int cores                   # that this process may use; 0: not counted yet
    int forced                  # the team that each step gets, whatever was measured; 0: none. For tests
    double seconds_to_inherit   # until another Python thread may have teams

cdef Tuning tuning

cdef int decide(const Learned *learned, size_t bytes, int most) noexcept nogil
cdef void record(Learned *learned, size_t bytes, int most, int threads, double seconds, int kept,
                 double now) noexcept nogil

cdef int as_threads(value) except -1
cdef int most_threads(int wanted) except -1
cdef int team_for(const Learned *learned, size_t length, int *most, int *kept) noexcept
cdef double clock() noexcept nogil


cdef class Lock:
    cdef PyThread_type_lock lock
    cdef size_t owner           # the thread that holds the lock, or 0. Who reads its own number here wrote it last
    cdef size_t forks           # that had led to the process in which the lock was made
    cdef bint acquire(self) except -1
    cdef bint renew(self, size_t me, size_t *left_behind) except -1
    cdef int wait(self) except -1
    cdef void release(self) noexcept
