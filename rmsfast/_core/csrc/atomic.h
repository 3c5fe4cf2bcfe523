/* A word or a pointer that several threads read and write without a lock. Who loads what another thread stored sees all
   that this thread did before. Nothing passes an exchange. */
#ifndef RMSFAST_ATOMIC_H
#define RMSFAST_ATOMIC_H

#include <stddef.h>

#if defined(_MSC_VER) && !defined(__clang__)
#include <intrin.h>

static __inline void *rmsfast_atomic_swap(void *volatile *place, void *value)
{
    return _InterlockedExchangePointer(place, value);
}

static __inline size_t rmsfast_atomic_exchange(size_t *place, size_t value)
{
    return (size_t)_InterlockedExchangePointer((void *volatile *)place, (void *)value);
}

static __inline void rmsfast_atomic_store(size_t *place, size_t value) { (void)rmsfast_atomic_exchange(place, value); }

static __inline size_t rmsfast_atomic_load(size_t *place)
{
    return (size_t)_InterlockedCompareExchangePointer((void *volatile *)place, NULL, NULL);
}

#else

static inline void *rmsfast_atomic_swap(void **place, void *value)
{
    return __atomic_exchange_n(place, value, __ATOMIC_SEQ_CST);
}

static inline size_t rmsfast_atomic_exchange(size_t *place, size_t value)
{
    return __atomic_exchange_n(place, value, __ATOMIC_SEQ_CST);
}

static inline void rmsfast_atomic_store(size_t *place, size_t value)
{
    __atomic_store_n(place, value, __ATOMIC_RELEASE);
}

static inline size_t rmsfast_atomic_load(size_t *place) { return __atomic_load_n(place, __ATOMIC_ACQUIRE); }

#endif
#endif
