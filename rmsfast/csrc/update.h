/* The rule (Tieleman & Hinton 2012, lecture 6.5), for elements of type REAL with the square root SQRT. isa.h includes
   this file once for each type. Every operation rounds once, in the order that reference.py has: hence the same bits. */

static void UPDATE(void *w_, void *v_, const void *g_, ptrdiff_t n, const rmsfast_settings *settings)
{
    REAL *RMSFAST_RESTRICT w = w_;
    REAL *RMSFAST_RESTRICT v = v_;
    const REAL *RMSFAST_RESTRICT g = g_;
    const REAL lr = (REAL)settings->lr;
    const REAL beta = (REAL)settings->beta;
    const REAL one_minus_beta = (REAL)(1 - settings->beta);
    const REAL eps = (REAL)settings->eps;

    for (ptrdiff_t i = 0; i < n; i++) {
        v[i] = beta * v[i] + one_minus_beta * (g[i] * g[i]);
        w[i] = w[i] - lr * g[i] / (SQRT(v[i]) + eps);
    }
}
