/* What norms and `nonfinite` need to know about a gradient of numbers of type REAL. stages.h includes this file once for
   each type.

   The squares of a block are summed in LANES lanes, element i in lane i mod LANES, and these from left to right: an order
   that any vector width can follow. A sum of finite squares that is infinite or NaN shows an element to be counted, or
   else an overflow, which the caller meets by `shrink`, a power of two. It cannot happen to floats. */
static void NAME(measure)(rmsfast_block *blocks, const void *g_, ptrdiff_t n, double grad_scale, double shrink_)
{
    enum { LANES = 8 };
    const REAL *g = g_;
    const REAL scale = (REAL)grad_scale;
    const double shrink = sizeof(REAL) < sizeof(double) ? 1 : shrink_;

    for (; n > 0; n -= RMSFAST_BLOCK, g += RMSFAST_BLOCK, blocks++) {
        const ptrdiff_t size = n < RMSFAST_BLOCK ? n : RMSFAST_BLOCK;
        double lanes[LANES] = {0}, squares = 0;
        ptrdiff_t i, nonfinite = 0;

        for (i = 0; i + LANES <= size; i += LANES)
            for (int lane = 0; lane < LANES; lane++) {
                const double x = shrink * (REAL)(scale * g[i + lane]);
                lanes[lane] += x * x;
            }
        for (; i < size; i++) {
            const double x = shrink * (REAL)(scale * g[i]);
            lanes[i % LANES] += x * x;
        }
        for (int lane = 0; lane < LANES; lane++)
            squares += lanes[lane];
        if (!(squares <= DBL_MAX))
            for (i = 0; i < size; i++)
                nonfinite += !(ABS(g[i]) <= LARGEST);
        blocks->squares = squares;
        blocks->nonfinite = nonfinite;
    }
}
