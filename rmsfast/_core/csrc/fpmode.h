/* The thread's floating-point mode: rmsfast computes in the default one (round to nearest, subnormals kept) whatever
   the caller has set, and gives the caller's back. */
#ifndef RMSFAST_FPMODE_H
#define RMSFAST_FPMODE_H

#if defined(__SSE2__) || defined(_M_X64)
#include <xmmintrin.h>
typedef unsigned rmsfast_fpmode;

/* All exceptions masked, round to nearest, no flush-to-zero. The low six bits are status flags. To write the register
   costs more than to read it, so it is written only where that changes something. */
enum { RMSFAST_FPMODE_DEFAULT = 0x1f80, RMSFAST_FPMODE_STATUS = 0x3f };

static inline rmsfast_fpmode rmsfast_fpmode_enter(void)
{
    const rmsfast_fpmode old = _mm_getcsr();
    if ((old & ~(unsigned)RMSFAST_FPMODE_STATUS) != RMSFAST_FPMODE_DEFAULT)
        _mm_setcsr(RMSFAST_FPMODE_DEFAULT);
    return old;
}

static inline void rmsfast_fpmode_leave(rmsfast_fpmode old)
{
    if ((old & ~(unsigned)RMSFAST_FPMODE_STATUS) != RMSFAST_FPMODE_DEFAULT)
        _mm_setcsr(old);
}

#elif defined(__aarch64__)
#include <stdint.h>
typedef uint64_t rmsfast_fpmode;

static inline rmsfast_fpmode rmsfast_fpmode_enter(void)
{
    rmsfast_fpmode old;
    __asm__ volatile("mrs %0, fpcr" : "=r"(old));
    if (old != 0)
        __asm__ volatile("msr fpcr, %0" : : "r"((uint64_t)0));
    return old;
}

static inline void rmsfast_fpmode_leave(rmsfast_fpmode old)
{
    if (old != 0)
        __asm__ volatile("msr fpcr, %0" : : "r"(old));
}

#else
#include <fenv.h>
typedef fenv_t rmsfast_fpmode;

static inline rmsfast_fpmode rmsfast_fpmode_enter(void)
{
    rmsfast_fpmode old;
    fegetenv(&old);
    fesetenv(FE_DFL_ENV);
    return old;
}

static inline void rmsfast_fpmode_leave(rmsfast_fpmode old) { fesetenv(&old); }

#endif
#endif
