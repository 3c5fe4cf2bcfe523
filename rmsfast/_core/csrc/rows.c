/* For a gradient of some rows: which of them are the same, and their sums. */
#include <string.h>

#include "rmsfast.h"

#ifdef _MSC_VER
#pragma fp_contract(off) /* the other compilers are told by a switch */
#endif

/* Open addressing with multiplicative hashing (Knuth); the high bits of the product are the best mixed ones. A slot holds
   a place in `distinct`, plus one. */
static int32_t *slot_of(int32_t *table, int bits, const ptrdiff_t *distinct, ptrdiff_t row)
{
    const size_t mask = ((size_t)1 << bits) - 1;
    size_t slot = (size_t)((uint64_t)row * UINT64_C(0x9e3779b97f4a7c15) >> (64 - bits));

    while (table[slot] != 0 && distinct[table[slot] - 1] != row)
        slot = (slot + 1) & mask;
    return &table[slot];
}

ptrdiff_t rmsfast_distinct(ptrdiff_t *distinct, const char **grads, const ptrdiff_t *rows, ptrdiff_t n, ptrdiff_t limit,
                           const char *first, ptrdiff_t size, int32_t *table, int bits)
{
    ptrdiff_t count = 0, repeats = 0;

    for (ptrdiff_t i = 0; i < n; i++) {
        if (rows[i] < 0 || rows[i] >= limit)
            return -1 - i;
        int32_t *slot = slot_of(table, bits, distinct, rows[i]);
        if (*slot == 0) {
            distinct[count] = rows[i];
            grads[count] = first + i * size;
            *slot = (int32_t)++count;
        } else
            distinct[n - ++repeats] = i;
    }
    return count;
}

void rmsfast_sum_repeated(char *sums, ptrdiff_t *distinct, ptrdiff_t count, const char **grads, const ptrdiff_t *rows,
                          ptrdiff_t n, const char *first, ptrdiff_t size, int32_t *table, int bits, int is_float64)
{
    const char *const begin = sums;

    for (ptrdiff_t repeat = n - 1; repeat >= count; repeat--) {
        const ptrdiff_t i = distinct[repeat];
        const char **grad = &grads[*slot_of(table, bits, distinct, rows[i]) - 1];
        if (!(begin <= *grad && *grad < sums)) { /* the second of its kind */
            memcpy(sums, *grad, (size_t)size);
            *grad = sums;
            sums += size;
        }
        if (is_float64)
            for (ptrdiff_t j = 0; j < size / 8; j++)
                ((double *)*grad)[j] += ((const double *)(first + i * size))[j];
        else
            for (ptrdiff_t j = 0; j < size / 4; j++)
                ((float *)*grad)[j] += ((const float *)(first + i * size))[j];
    }
}
