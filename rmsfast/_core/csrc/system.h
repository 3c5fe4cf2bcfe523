/* What is asked of the system around OpenMP's runtime, which trusts it too much. */
#ifndef RMSFAST_SYSTEM_H
#define RMSFAST_SYSTEM_H

#ifdef _OPENMP
#include <omp.h>
#endif

#if defined(_OPENMP) && !defined(_WIN32)
#include <pthread.h>

static void *rmsfast_wait(void *gate)
{
    pthread_mutex_lock(gate);
    pthread_mutex_unlock(gate);
    return NULL;
}

/* Whether so many more threads can be there at once. Where they cannot (a limit on processes or on memory), the runtimes
   end the whole process. So it is tried before: not with a stack of OMP_STACKSIZE, and others may take the room. */
static int rmsfast_can_start(int count)
{
    enum { MOST = 1024 };
    pthread_t threads[MOST];
    pthread_mutex_t gate = PTHREAD_MUTEX_INITIALIZER;
    int started = 0;
    pthread_mutex_lock(&gate);
    while (started < count && started < MOST && pthread_create(&threads[started], NULL, rmsfast_wait, &gate) == 0)
        started++;
    pthread_mutex_unlock(&gate);
    for (int t = 0; t < started; t++)
        pthread_join(threads[t], NULL);
    return started >= count;
}

static void *rmsfast_ask_for_limit(void *limit)
{
    *(int *)limit = omp_get_max_threads();
    return NULL;
}

/* How many threads the runtime uses where nobody has called `omp_set_num_threads`, or 0 if that cannot be found out now.
   That call is for the thread that makes it, so a new one is asked. */
static int rmsfast_own_limit(void)
{
    pthread_t thread;
    int limit = 0;
    if (pthread_create(&thread, NULL, rmsfast_ask_for_limit, &limit) == 0)
        pthread_join(thread, NULL);
    return limit;
}

#else
static int rmsfast_can_start(int count) { return count >= 0; }
static int rmsfast_own_limit(void) { return 0; }
#endif

/* Of the calling thread: how many threads its last team had, which the runtime keeps for the next one, and whether a
   process that it forks now may have teams. */
#ifdef _MSC_VER
static __declspec(thread) int rmsfast_last_team, rmsfast_fork_is_safe;
#else
static _Thread_local int rmsfast_last_team, rmsfast_fork_is_safe;
#endif

/* Of all threads, a forked process has the one that forked. GNU's runtime believes there that the idle threads of that
   one are there still, and waits for them without end. Before a fork they can be sent home, whoever's work they did:
   rmsfast's, or that of another library on the same runtime. Releases before GCC 9 cannot, and none can from inside a
   parallel region. LLVM's and Intel's runtime, which may stand in for GNU's, begins anew in a forked process by itself.
   Returns whether the forked process may have teams of its own. */
#if !defined(_OPENMP) || !defined(__GNUC__) || defined(__clang__)
static int rmsfast_prepare_fork(void) { return 1; }

#elif defined(__ELF__)
#if __GNUC__ < 9
typedef int omp_pause_resource_t;
enum { omp_pause_soft = 1 };
#endif
extern int __kmpc_global_thread_num(void *) __attribute__((weak));

#ifdef __GLIBC__
/* By its name alone: a reference would also ask for the version of GCC 9's runtime, and none of this module could be loaded
   where an older one of the same name came first, such as that in PyTorch 2.5. */
#include <dlfcn.h>
static int rmsfast_pause(void)
{
    int (*pause)(omp_pause_resource_t);
    *(void **)&pause = dlsym(RTLD_DEFAULT, "omp_pause_resource_all");
    return pause != NULL && pause(omp_pause_soft) == 0;
}
#else
extern int omp_pause_resource_all(omp_pause_resource_t) __attribute__((weak));
static int rmsfast_pause(void) { return omp_pause_resource_all && omp_pause_resource_all(omp_pause_soft) == 0; }
#endif

static int rmsfast_prepare_fork(void) { return __kmpc_global_thread_num || rmsfast_pause(); }

#else
static int rmsfast_prepare_fork(void) { return omp_pause_resource_all(omp_pause_soft) == 0; }
#endif
#endif
