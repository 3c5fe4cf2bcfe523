/* The rule for numbers of type REAL (Tieleman & Hinton 2012, lecture 6.5; centered: Graves 2013). stages.h includes this
   file once for each type. Every operation rounds once, in the order that reference.py has: hence the same bits. The
   arguments that are `const int` are constants wherever this is inlined, so that the compiler makes one loop for each
   combination, without conditions and without a stream of memory that it does not need. */

#define PACK NAME(pack)
#define LOAD(x) NAME(load)((x) + i, whole, count)
#define STORE(x, pack) NAME(store)((x) + i, pack, whole, count)

/* The formula, for the pack that begins at element i. */
RMSFAST_INLINE void NAME(rule)(REAL *w, REAL *v, REAL *m, REAL *b, const REAL *g, ptrdiff_t i, const int whole,
                               int count, const SCALARS s, const int centered, const int momentum,
                               const int changes_grad, const int decays, const int changes_variance, const int by_fma)
{
    PACK grad = LOAD(g);
    if (changes_grad) {
        grad = s.factor * (s.scale * grad);
        grad = NAME(at_least)(NAME(at_most)(grad, s.limit), -s.limit);
    }
    PACK weight = LOAD(w);
    if (decays == RMSFAST_INTO_GRAD)
        grad = grad + s.decay * weight;
    if (decays == RMSFAST_DECOUPLED)
        weight = weight - s.decay * weight;

    const PACK square_avg = s.beta * LOAD(v) + s.one_minus_beta * (grad * grad);
    STORE(v, square_avg);
    PACK variance = square_avg;
    if (changes_variance)
        variance = s.correction * variance;
    if (centered) {
        PACK mean = s.beta * LOAD(m) + s.one_minus_beta * grad;
        STORE(m, mean);
        if (changes_variance)
            mean = s.correction * mean;
        variance = NAME(at_least)(variance - mean * mean, 0);
    }
    if (changes_variance)
        variance = variance + s.eps_inside;
    const PACK quotient = s.lr_of_quotient * grad / (NAME(root)(variance, by_fma) + s.eps_outside);

    if (momentum == RMSFAST_NO_MOMENTUM) {
        STORE(w, weight - quotient);
        return;
    }
    const PACK momentum_buffer = s.mu * LOAD(b) + quotient;
    STORE(b, momentum_buffer);
    if (momentum == RMSFAST_MOMENTUM)
        STORE(w, weight - s.lr_of_step * momentum_buffer);
    else
        STORE(w, weight - s.lr_of_step * (quotient + s.mu * momentum_buffer));
}

#undef PACK
#undef LOAD
#undef STORE

/* Begin to read what the loop needs 2 KiB later. The CPU foresees it too, but not as early: outside the cache a step takes a
   quarter less time with this. Only where a pack is a whole line of the cache. */
#if VECTOR_BITS == 512
#define AHEAD (ptrdiff_t)(2048 / sizeof(REAL))
#define FETCH                                                                                                          \
    if (i < n - AHEAD) {                                                                                               \
        RMSFAST_PREFETCH(w + i + AHEAD, 1);                                                                            \
        RMSFAST_PREFETCH(v + i + AHEAD, 1);                                                                            \
        RMSFAST_PREFETCH(g + i + AHEAD, 0);                                                                            \
        if (centered)                                                                                                  \
            RMSFAST_PREFETCH(m + i + AHEAD, 1);                                                                        \
        if (momentum)                                                                                                  \
            RMSFAST_PREFETCH(b + i + AHEAD, 1);                                                                        \
    }
#else
#define FETCH
#endif

#define RULE(whole, count, by_fma)                                                                                     \
    NAME(rule)                                                                                                         \
    (w, v, m, b, g, i, whole, count, s, centered, momentum, changes_grad, decays, changes_variance, by_fma)

/* All packs. With mixed roots the divider and the multipliers work at the same time, on packs that follow each other. What is
   left at the end goes to the function `divider`, which is the same update with the divider's roots. */
RMSFAST_INLINE void NAME(rules)(REAL *RMSFAST_RESTRICT w, REAL *RMSFAST_RESTRICT v, REAL *RMSFAST_RESTRICT m,
                                REAL *RMSFAST_RESTRICT b, const REAL *RMSFAST_RESTRICT g, ptrdiff_t n,
                                const rmsfast_scalars *scalars, const int root, const int centered, const int momentum,
                                const int changes_grad, const int decays, const int changes_variance,
                                const rmsfast_update divider)
{
    enum { LANES = NAME(LANES), MIXED = NAME(MIXED) };
    const SCALARS s = scalars->NAME(of);
    ptrdiff_t i = 0;

    if (root == RMSFAST_MIXED)
        while (i <= n - MIXED * LANES) {
            FETCH
            RULE(1, LANES, 1);
            i += LANES;
            for (int k = 1; k < MIXED; k++, i += LANES) {
                FETCH
                RULE(1, LANES, 0);
            }
        }
    else
        for (; i <= n - LANES; i += LANES) {
            FETCH
            RULE(1, LANES, root == RMSFAST_FMA);
        }
    if (LANES > 1 && i < n) {
        if (root == RMSFAST_DIVIDER)
            RULE(0, (int)(n - i), 0);
        else
            divider(w + i, v + i, centered ? m + i : m, momentum ? b + i : b, g + i, n - i, scalars);
    }
}
#undef RULE
#undef FETCH
#undef AHEAD

#define RULES(changes_grad, decays, changes_variance)                                                                  \
    NAME(rules)(w, v, m, b, g, n, scalars, root, centered, momentum, changes_grad, decays, changes_variance, divider)
#define CASE(changes_grad, decays)                                                                                     \
    case (changes_grad) + 2 * (decays):                                                                                \
        RULES(changes_grad, decays, 1);                                                                                \
        break;

/* With `more` settings than momentum and centered, of which the gradient's and the decay's have loops of their own. */
RMSFAST_INLINE void NAME(choose_rules)(REAL *RMSFAST_RESTRICT w, REAL *RMSFAST_RESTRICT v, REAL *RMSFAST_RESTRICT m,
                                       REAL *RMSFAST_RESTRICT b, const REAL *RMSFAST_RESTRICT g, ptrdiff_t n,
                                       const rmsfast_scalars *scalars, const int root, const int centered,
                                       const int momentum, const int more, const rmsfast_update divider)
{
    if (!more) {
        RULES(0, 0, 0);
        return;
    }
    switch (scalars->NAME(of).changes_grad + 2 * scalars->NAME(of).decays) {
        CASE(0, 0)
        CASE(1, 0)
        CASE(0, RMSFAST_INTO_GRAD)
        CASE(1, RMSFAST_INTO_GRAD)
        CASE(0, RMSFAST_DECOUPLED)
        CASE(1, RMSFAST_DECOUPLED)
    }
}
#undef RULES
#undef CASE

#define UPDATE(name, root, centered, momentum, more, divider)                                                          \
    static void name(void *w, void *v, void *m, void *b, const void *g, ptrdiff_t n, const rmsfast_scalars *scalars)   \
    {                                                                                                                  \
        NAME(choose_rules)(w, v, m, b, g, n, scalars, root, centered, momentum, more, divider);                        \
    }
/* Both functions of a rule, and their names, the one with more settings last. */
#define UPDATES(rule, name, root, centered, momentum)                                                                  \
    UPDATE(NAME(rule##_##name), root, centered, momentum, 0, NAME(rule##_divider))                                     \
    UPDATE(NAME(rule##_more_##name), root, centered, momentum, 1, NAME(rule##_more_divider))
#define NAMES(rule, name) {NAME(rule##_##name), NAME(rule##_more_##name)}

/* The stages with one kind of root. */
#define STAGES(name, root)                                                                                             \
    UPDATES(plain, name, root, 0, RMSFAST_NO_MOMENTUM)                                                                 \
    UPDATES(with_momentum, name, root, 0, RMSFAST_MOMENTUM)                                                            \
    UPDATES(with_nesterov, name, root, 0, RMSFAST_NESTEROV)                                                            \
    UPDATES(centered, name, root, 1, RMSFAST_NO_MOMENTUM)                                                              \
    UPDATES(centered_with_momentum, name, root, 1, RMSFAST_MOMENTUM)                                                   \
    UPDATES(centered_with_nesterov, name, root, 1, RMSFAST_NESTEROV)                                                   \
    static const rmsfast_stages NAME(stages_##name) = {                                                                \
        NAME(form),                                                                                                    \
        NAME(measure),                                                                                                 \
        NAME(settle),                                                                                                  \
        {{NAMES(plain, name), NAMES(with_momentum, name), NAMES(with_nesterov, name)},                                 \
         {NAMES(centered, name), NAMES(centered_with_momentum, name), NAMES(centered_with_nesterov, name)}},           \
    };
STAGES(divider, RMSFAST_DIVIDER)
#if VECTOR_BITS
STAGES(fma, RMSFAST_FMA)
STAGES(mixed, RMSFAST_MIXED)
#endif
#undef STAGES
#undef NAMES
#undef UPDATES
#undef UPDATE
