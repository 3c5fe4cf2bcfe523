/* What follows an update of numbers of type REAL, while they are still in L1: limits on the parameters, and their
   average. stages.h includes this file once for each type. Plain loops: the compiler makes vectors of them, and what takes
   the time is memory. */
static void NAME(settle)(void *w_, void *a_, ptrdiff_t n, const rmsfast_scalars *scalars)
{
    REAL *RMSFAST_RESTRICT w = w_;
    REAL *RMSFAST_RESTRICT a = a_;
    const SCALARS s = scalars->NAME(of);

    if (s.weight_limit != INFINITY)
        for (ptrdiff_t i = 0; i < n; i++) { /* a NaN stays a NaN, and a zero keeps its sign */
            const REAL x = w[i] > s.weight_limit ? s.weight_limit : w[i];
            w[i] = x < -s.weight_limit ? -s.weight_limit : x;
        }
    if (a != NULL)
        for (ptrdiff_t i = 0; i < n; i++)
            a[i] = s.ema_decay * a[i] + s.one_minus_ema_decay * w[i];
}
