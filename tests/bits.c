/* What the C of the kernel makes of some millions of numbers, as digests. tools/elsewhere.sh compares them between
   instruction sets, roots, processors and C libraries, where there is no Python to run the other tests. */
#include <math.h>
#include <stdio.h>
#include <string.h>

#include "rmsfast.h"

enum { N = 1023, ROWS = 300, WIDTH = 7 };

static uint64_t seed;

/* splitmix64 */
static uint64_t any(void)
{
    uint64_t z = seed += UINT64_C(0x9e3779b97f4a7c15);
    z = (z ^ z >> 30) * UINT64_C(0xbf58476d1ce4e5b9);
    z = (z ^ z >> 27) * UINT64_C(0x94d049bb133111eb);
    return z ^ z >> 31;
}

/* Numbers of many magnitudes; one in eight has random bits. */
static void fill(void *numbers, int n, int is_float64, int positive)
{
    for (int i = 0; i < n; i++) {
        const uint64_t bits = any();
        const int exponent = (int)(any() % 30) - 83;
        double x = ldexp((double)(int64_t)any(), exponent);
        if (positive)
            x = fabs(x);
        if (is_float64) {
            memcpy((double *)numbers + i, &x, sizeof x);
            if (bits % 8 == 0)
                memcpy((double *)numbers + i, &bits, sizeof bits);
        } else {
            const float y = (float)x;
            const uint32_t half = (uint32_t)(bits >> 32);
            memcpy((float *)numbers + i, &y, sizeof y);
            if (bits % 8 == 0)
                memcpy((float *)numbers + i, &half, sizeof half);
        }
    }
}

/* FNV-1a over values, in which the order of bytes has no part, and any NaN equals any NaN. */
static uint64_t add(uint64_t digest, uint64_t value) { return (digest ^ value) * UINT64_C(0x100000001b3); }

static uint64_t digest_of(uint64_t digest, const void *numbers, int n, int is_float64)
{
    for (int i = 0; i < n; i++) {
        uint64_t bits = 0;
        if (is_float64) {
            double x;
            memcpy(&x, (const double *)numbers + i, sizeof x);
            if (x == x)
                memcpy(&bits, &x, sizeof x);
            else
                bits = 1;
        } else {
            float x;
            uint32_t half = 1;
            memcpy(&x, (const float *)numbers + i, sizeof x);
            if (x == x)
                memcpy(&half, &x, sizeof x);
            bits = half;
        }
        digest = add(digest, bits);
    }
    return digest;
}

static double w[N], v[N], m[N], b[N], a[N], g[N];

static uint64_t update(const rmsfast_stages *stages, int is_float64, int centered, int momentum, int variant)
{
    static const double betas[] = {0.9, 0.99, 0.0, 1.0}, epsilons[] = {1e-8, 0.0, 1e-3};
    const rmsfast_settings settings = {
        .lr = 0.01,
        .beta = betas[variant % 4],
        .eps = epsilons[variant % 3],
        .momentum = momentum ? 0.9 : 0,
        .nesterov = momentum == RMSFAST_NESTEROV,
        .centered = centered,
        .weight_decay = variant & 2 ? 0.05 : 0,
        .decoupled_weight_decay = variant >> 2 & 1,
        .eps_inside_sqrt = variant >> 3 & 1,
        .lr_in_momentum = variant >> 4 & 1,
        .maximize = variant >> 5 & 1,
        .clip_value = variant & 1 ? 0.5 : INFINITY,
        .clip_norm = INFINITY,
        .clip_global_norm = INFINITY,
        .clip_weights = variant & 32 ? 1e-7 : INFINITY,
        .ema_decay = betas[(variant + 1) % 4],
    };
    rmsfast_scalars scalars;
    rmsfast_block block;
    uint64_t digest = 0;
    seed = (uint64_t)(1000 * variant + 100 * momentum + 10 * centered + is_float64);
    fill(w, N, is_float64, 0);
    fill(v, N, is_float64, 1);
    fill(m, N, is_float64, 0);
    fill(b, N, is_float64, 0);
    fill(a, N, is_float64, 0);
    for (int step = 1; step <= 3; step++) {
        fill(g, N, is_float64, 0);
        const double factor = variant & 4 ? 0.7 : 1, correction = variant & 16 ? 1 / 0.19 : 1;
        const int more = stages->form(&scalars, &settings, variant & 8 ? 0.3 : 1, factor, correction);
        stages->update[centered][momentum][more](w, v, centered ? m : NULL, momentum ? b : NULL, g, N, &scalars);
        stages->settle(w, a, N, &scalars);
        fill(g, N, is_float64, 1);
        stages->measure(&block, g, N, 0.3, step == 2 ? 0x1p-600 : 1);
        digest = digest_of(add(digest, (uint64_t)block.nonfinite), &block.squares, 1, 1);
    }
    digest = digest_of(digest_of(digest_of(digest, w, N, is_float64), v, N, is_float64), a, N, is_float64);
    return digest_of(digest_of(digest, m, N, is_float64), b, N, is_float64);
}

static uint64_t digest_of_bytes(uint64_t digest, const void *elements, int n, int format)
{
    for (int i = 0; i < n; i++) {
        uint16_t half;
        if (format == RMSFAST_UNSIGNED8 || format == RMSFAST_SIGNED8) {
            digest = add(digest, ((const uint8_t *)elements)[i]);
            continue;
        }
        memcpy(&half, (const uint16_t *)elements + i, sizeof half);
        if ((half & 0x7fff) > (format == RMSFAST_FLOAT16 || format == RMSFAST_MASTERED ? 0x7c00 : 0x7f80))
            half = 1; /* any NaN */
        digest = add(digest, half);
    }
    return digest;
}

/* Three steps on numbers that are stored in few bytes; the second is on a part, which begins and ends inside of blocks. */
static uint64_t stored(const rmsfast_isa *isa, int root, int of_w, int of_state, int of_grad, int draws, int rule)
{
    static double more[RMSFAST_COPY][N];
    static uint16_t copy[N];
    static float average[N];
    const rmsfast_stages *stages = isa->stages[root][RMSFAST_FLOAT32];
    const rmsfast_settings settings = {
        .lr = 0.01,
        .beta = 0.9,
        .eps = 1e-8,
        .momentum = rule / 2 ? 0.9 : 0,
        .clip_value = INFINITY,
        .clip_norm = INFINITY,
        .clip_global_norm = INFINITY,
        .clip_weights = draws ? 0.3 : INFINITY,
        .ema_decay = rule == 3 ? 0.9 : -1,
    };
    void *const data[RMSFAST_COPY] = {w, v, rule % 2 ? m : NULL, rule / 2 ? b : NULL};
    rmsfast_stored numbers[RMSFAST_KINDS] = {{.data = of_grad ? NULL : copy, .format = RMSFAST_BFLOAT16}};
    rmsfast_stored grad = {.data = g, .format = of_grad};
    rmsfast_scalars scalars;
    uint64_t digest = 0;
    numbers[RMSFAST_COPY] = numbers[0];
    numbers[RMSFAST_EMA].data = rule == 3 ? average : NULL;
    memset(average, 0, sizeof average);
    memset(more, 0, sizeof more);
    memset(copy, 0, sizeof copy);
    seed = (uint64_t)(of_w + 10 * of_state + 100 * of_grad + 1000 * draws + 10000 * rule);
    for (int k = 0; k < RMSFAST_COPY; k++) {
        const int of_average = of_state == RMSFAST_UNSIGNED8 && k > 1 ? RMSFAST_SIGNED8 : of_state;
        const int format = k == 0 ? of_w : data[k] == NULL ? RMSFAST_AS_THEY_ARE : of_average;
        numbers[k] = (rmsfast_stored){data[k], more[k], format, format && (k > 0 || draws), any(), 0};
        if (data[k] == NULL)
            continue;
        fill(g, N, 0, k == 1);
        if (format == RMSFAST_AS_THEY_ARE)
            memcpy(data[k], g, N * sizeof(float));
        else
            isa->storage->store[RMSFAST_NEAREST][format](data[k], more[k], 0, N, (const float *)g, NULL);
    }
    for (int step = 0; step < 3; step++) {
        const ptrdiff_t place = step == 1 ? 37 : 0, n = step == 1 ? 600 : N;
        static float grads[N];
        fill(grads, N, 0, 0);
        memcpy(g, grads, sizeof grads);
        if (of_grad != RMSFAST_AS_THEY_ARE)
            isa->storage->store[RMSFAST_NEAREST][of_grad](g, NULL, 0, N, grads, NULL);
        const int extra = stages->form(&scalars, &settings, 1, 1, 1);
        isa->storage->update(numbers, N, &grad, place, n, stages->update[rule % 2][rule / 2][extra],
                             draws || rule == 3 ? stages->settle : NULL, &scalars);
    }
    for (int k = 0; k < RMSFAST_COPY; k++)
        if (data[k] != NULL && numbers[k].format == RMSFAST_AS_THEY_ARE)
            digest = digest_of(digest, data[k], N, 0);
        else if (data[k] != NULL) {
            digest = digest_of_bytes(digest, data[k], N, numbers[k].format);
            digest = numbers[k].format == RMSFAST_MASTERED ? digest_of(digest, more[k], N, 0)
                     : numbers[k].format == RMSFAST_SPLIT  ? digest_of_bytes(digest, more[k], N, RMSFAST_SPLIT)
                                                           : digest_of_bytes(digest, more[k], N / 64 + 1, RMSFAST_SIGNED8);
        }
    return digest_of(digest_of_bytes(digest, copy, N, RMSFAST_BFLOAT16), average, N, 0);
}

static int all_stored(void)
{
    static const int of_parameters[] = {RMSFAST_AS_THEY_ARE, RMSFAST_FLOAT16, RMSFAST_BFLOAT16, RMSFAST_SPLIT, RMSFAST_MASTERED};
    static const int of_states[] = {RMSFAST_AS_THEY_ARE, RMSFAST_BFLOAT16, RMSFAST_UNSIGNED8};
    int different = 0;
    for (int p = 0; p < 5; p++)
        for (int s = 0; s < 3; s++)
            for (int of_grad = 0; of_grad <= RMSFAST_BFLOAT16; of_grad++)
                for (int draws = 0; draws < (of_parameters[p] == RMSFAST_FLOAT16 || of_parameters[p] == RMSFAST_BFLOAT16 ? 2 : 1); draws++)
                    for (int rule = 0; rule < 4; rule++) {
                        const uint64_t expected =
                            stored(rmsfast_usable_isa(0), RMSFAST_DIVIDER, of_parameters[p], of_states[s], of_grad, draws, rule);
                        for (int k = 0; rmsfast_usable_isa(k) != NULL; k++)
                            different += stored(rmsfast_usable_isa(k), RMSFAST_DIVIDER, of_parameters[p], of_states[s], of_grad,
                                                draws, rule) != expected;
                        printf("stored %d %d %d %d %d %016llx\n", p, s, of_grad, draws, rule, (unsigned long long)expected);
                    }
    return different;
}

/* Rows that repeat, and an array turned around and transposed. */
static uint64_t rows_and_strides(int is_float64)
{
    static double values[ROWS * WIDTH], sums[ROWS * WIDTH];
    static int32_t table[1024];
    static const char *grads[ROWS];
    ptrdiff_t rows[ROWS], distinct[ROWS];
    const ptrdiff_t size = is_float64 ? 8 : 4, shape[] = {ROWS, WIDTH}, strides[] = {-WIDTH * size, size};
    const char *const first = (const char *)values;
    seed = (uint64_t)is_float64;
    fill(values, ROWS * WIDTH, is_float64, 0);
    for (int i = 0; i < ROWS; i++)
        rows[i] = (ptrdiff_t)(any() % 100);
    memset(table, 0, sizeof table);
    const ptrdiff_t count = rmsfast_distinct(distinct, grads, rows, ROWS, 100, first, WIDTH * size, table, 10);
    rmsfast_sum_repeated((char *)sums, distinct, count, grads, rows, ROWS, first, WIDTH * size, table, 10, is_float64);
    uint64_t digest = add(0, (uint64_t)count);
    for (ptrdiff_t i = 0; i < count; i++)
        digest = digest_of(add(digest, (uint64_t)distinct[i]), grads[i], WIDTH, is_float64);
    for (int turned = 0; turned < 2; turned++) {
        const ptrdiff_t turned_shape[] = {shape[turned], shape[!turned]};
        const ptrdiff_t turned_strides[] = {strides[turned], strides[!turned]};
        rmsfast_gather(sums, first + (ROWS - 1) * WIDTH * size, 5, ROWS * WIDTH - 9, size, 2, turned_shape, turned_strides);
        digest = digest_of(digest, sums, ROWS * WIDTH - 9, is_float64);
    }
    for (int i = 0; i < 50; i++)
        digest = add(digest, (uint64_t)rmsfast_strides_into(i, i + 3, size, 2, shape, (ptrdiff_t[]){100, 16}, 1));
    return digest;
}

int main(void)
{
    int different = all_stored();
    for (int is_float64 = 0; is_float64 < 2; is_float64++) {
        printf("rows %d %016llx\n", is_float64, (unsigned long long)rows_and_strides(is_float64));
        for (int rule = 0; rule < 6; rule++)
            for (int variant = 0; variant < 64; variant++) {
                const uint64_t expected =
                    update(rmsfast_usable_isa(0)->stages[RMSFAST_DIVIDER][is_float64], is_float64, rule % 2, rule / 2, variant);
                for (int k = 0; rmsfast_usable_isa(k) != NULL; k++)
                    for (int root = 0; root < RMSFAST_ROOTS; root++) {
                        const rmsfast_stages *stages = rmsfast_usable_isa(k)->stages[root][is_float64];
                        if (stages != NULL)
                            different += update(stages, is_float64, rule % 2, rule / 2, variant) != expected;
                    }
                printf("update %d %d %d %016llx\n", is_float64, rule, variant, (unsigned long long)expected);
            }
    }
    fprintf(stderr, "instruction sets:");
    for (int k = 0; rmsfast_usable_isa(k) != NULL; k++)
        fprintf(stderr, rmsfast_usable_isa(k)->stages[RMSFAST_FMA][0] ? " %s (all roots)" : " %s", rmsfast_usable_isa(k)->name);
    fprintf(stderr, different ? ": %d differ\n" : "\n", different);
    return different != 0;
}
