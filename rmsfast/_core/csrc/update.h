/* The rule for numbers of type REAL with the square root SQRT (Tieleman & Hinton 2012, lecture 6.5; centered: Graves
   2013). stages.h includes this file once for each type. Every operation rounds once, in the order that reference.py has:
   hence the same bits. The last four arguments are constants wherever this is inlined, so that the compiler makes one loop
   for each combination, without conditions and without a stream of memory that it does not need. */

RMSFAST_INLINE void NAME(rule)(REAL *RMSFAST_RESTRICT w, REAL *RMSFAST_RESTRICT v, REAL *RMSFAST_RESTRICT m,
                               REAL *RMSFAST_RESTRICT b, const REAL *RMSFAST_RESTRICT g, ptrdiff_t n,
                               const rmsfast_scalars *scalars, const int centered, const int momentum,
                               const int changes_grad, const int decays)
{
    const SCALARS s = scalars->NAME(of);

    for (ptrdiff_t i = 0; i < n; i++) {
        REAL grad = g[i];
        if (changes_grad) {
            grad = s.factor * (s.scale * grad);
            grad = grad > s.limit ? s.limit : grad; /* a NaN stays NaN */
            grad = grad < -s.limit ? -s.limit : grad;
        }
        if (decays == RMSFAST_INTO_GRAD)
            grad = grad + s.decay * w[i];
        const REAL decayed = w[i] - (decays == RMSFAST_DECOUPLED ? s.decay * w[i] : 0);

        v[i] = s.beta * v[i] + s.one_minus_beta * (grad * grad);
        REAL variance = s.correction * v[i];
        if (centered) {
            m[i] = s.beta * m[i] + s.one_minus_beta * grad;
            const REAL mean = s.correction * m[i];
            variance = variance - mean * mean;
            variance = variance < 0 ? 0 : variance; /* a NaN stays NaN */
        }
        const REAL quotient = s.lr_of_quotient * grad / (SQRT(variance + s.eps_inside) + s.eps_outside);

        if (momentum)
            b[i] = s.mu * b[i] + quotient;
        if (momentum == RMSFAST_NO_MOMENTUM)
            w[i] = decayed - quotient;
        else if (momentum == RMSFAST_MOMENTUM)
            w[i] = decayed - s.lr_of_step * b[i];
        else
            w[i] = decayed - s.lr_of_step * (quotient + s.mu * b[i]);
    }
}

#define CASE(changes_grad, decays)                                                                                     \
    case (changes_grad) + 2 * (decays):                                                                                \
        NAME(rule)(w, v, m, b, g, n, scalars, centered, momentum, changes_grad, decays);                               \
        break;

RMSFAST_INLINE void NAME(choose_rule)(REAL *RMSFAST_RESTRICT w, REAL *RMSFAST_RESTRICT v, REAL *RMSFAST_RESTRICT m,
                                      REAL *RMSFAST_RESTRICT b, const REAL *RMSFAST_RESTRICT g, ptrdiff_t n,
                                      const rmsfast_scalars *scalars, const int centered, const int momentum)
{
    switch (scalars->NAME(of).changes_grad + 2 * scalars->NAME(of).decays) {
        CASE(0, 0)
        CASE(1, 0)
        CASE(0, RMSFAST_INTO_GRAD)
        CASE(1, RMSFAST_INTO_GRAD)
        CASE(0, RMSFAST_DECOUPLED)
        CASE(1, RMSFAST_DECOUPLED)
    }
}
#undef CASE

#define UPDATE(name, centered, momentum)                                                                               \
    static void name(void *w, void *v, void *m, void *b, const void *g, ptrdiff_t n, const rmsfast_scalars *scalars)   \
    {                                                                                                                  \
        NAME(choose_rule)(w, v, m, b, g, n, scalars, centered, momentum);                                                     \
    }
UPDATE(NAME(plain), 0, RMSFAST_NO_MOMENTUM)
UPDATE(NAME(with_momentum), 0, RMSFAST_MOMENTUM)
UPDATE(NAME(with_nesterov), 0, RMSFAST_NESTEROV)
UPDATE(NAME(centered), 1, RMSFAST_NO_MOMENTUM)
UPDATE(NAME(centered_with_momentum), 1, RMSFAST_MOMENTUM)
UPDATE(NAME(centered_with_nesterov), 1, RMSFAST_NESTEROV)
#undef UPDATE
