/* For a gradient of some rows: which of them are the same. */
#include <stdint.h>

#include "rmsfast.h"

ptrdiff_t rmsfast_distinct(ptrdiff_t *numbers, const ptrdiff_t *indices, ptrdiff_t n, ptrdiff_t limit, ptrdiff_t *table,
                           size_t size)
{
    ptrdiff_t count = 0;

    for (ptrdiff_t i = 0; i < n; i++) {
        if (indices[i] < 0 || indices[i] >= limit)
            return -1 - i;
        /* Multiplicative hashing (Knuth); the high half of the product is the better mixed one. */
        size_t slot = (size_t)(((uint64_t)indices[i] * UINT64_C(0x9e3779b97f4a7c15)) >> 32) & (size - 1);
        while (table[slot] != 0 && indices[table[slot] - 1] != indices[i])
            slot = (slot + 1) & (size - 1);
        if (table[slot] == 0) {
            table[slot] = i + 1; /* where it first appears; 0 is an empty slot */
            numbers[i] = count++;
        } else
            numbers[i] = numbers[table[slot] - 1];
    }
    return count;
}
