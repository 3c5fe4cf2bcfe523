/* For a gradient that does not lie in memory as its parameter does: to copy its elements, to set them to zero, and the
   question whether it has one in some stretch of memory. */
#include <stdint.h>
#include <string.h>

#include "rmsfast.h"

enum { MAX_NDIM = 64 }; /* NumPy 2's own */

/* memcpy of a constant size is one load or store that needs no alignment. The items of complex128 have 16 bytes. */
#define FOR_EACH_ITEM(size, ...)                                                                                       \
    case size:                                                                                                         \
        for (ptrdiff_t i = 0; i < n; i++)                                                                              \
            __VA_ARGS__;                                                                                               \
        break;

static void copy_run(char *out, const char *g, ptrdiff_t n, ptrdiff_t itemsize, ptrdiff_t stride)
{
    switch (itemsize) {
        FOR_EACH_ITEM(4, memcpy(out + 4 * i, g + stride * i, 4))
        FOR_EACH_ITEM(8, memcpy(out + 8 * i, g + stride * i, 8))
        FOR_EACH_ITEM(16, memcpy(out + 16 * i, g + stride * i, 16))
    }
}

static void zero_run(char *g, ptrdiff_t n, ptrdiff_t itemsize, ptrdiff_t stride)
{
    switch (itemsize) {
        FOR_EACH_ITEM(4, memset(g + stride * i, 0, 4))
        FOR_EACH_ITEM(8, memset(g + stride * i, 0, 8))
        FOR_EACH_ITEM(16, memset(g + stride * i, 0, 16))
    }
}

/* Go through n elements in runs along the axis that moves fastest; copy them to `out`, or set them to zero if it is
   NULL. */
static void walk(char *out, char *g, ptrdiff_t start, ptrdiff_t n, ptrdiff_t itemsize, int ndim, const ptrdiff_t *shape,
                 const ptrdiff_t *strides, int fortran)
{
    ptrdiff_t index[MAX_NDIM];
    ptrdiff_t offset = 0;
    const int fastest = fortran ? 0 : ndim - 1, slowest = fortran ? ndim - 1 : 0, next = fortran ? 1 : -1;

    for (int k = 0, axis = fastest; k < ndim; k++, axis += next) {
        index[axis] = start % shape[axis];
        start /= shape[axis];
        offset += index[axis] * strides[axis];
    }
    while (n > 0) {
        ptrdiff_t run = ndim > 0 ? shape[fastest] - index[fastest] : 1;
        const ptrdiff_t stride = ndim > 0 ? strides[fastest] : 0;
        if (run > n)
            run = n;
        if (out != NULL) {
            copy_run(out, g + offset, run, itemsize, stride);
            out += run * itemsize;
        } else
            zero_run(g + offset, run, itemsize, stride);
        n -= run;
        if (n == 0)
            break;
        index[fastest] += run;
        offset += run * stride;
        for (int axis = fastest; index[axis] == shape[axis] && axis != slowest;) {
            index[axis] = 0;
            offset -= shape[axis] * strides[axis];
            axis += next;
            index[axis]++;
            offset += strides[axis];
        }
    }
}

void rmsfast_gather(void *out, const char *g, ptrdiff_t start, ptrdiff_t n, ptrdiff_t itemsize, int ndim,
                    const ptrdiff_t *shape, const ptrdiff_t *strides, int fortran)
{
    walk(out, (char *)g, start, n, itemsize, ndim, shape, strides, fortran);
}

void rmsfast_zero(char *g, ptrdiff_t start, ptrdiff_t n, ptrdiff_t itemsize, int ndim, const ptrdiff_t *shape,
                  const ptrdiff_t *strides, int fortran)
{
    walk(NULL, g, start, n, itemsize, ndim, shape, strides, fortran);
}

/* Whether first <= base + (a sum of index times stride over the axes not in `done`) <= last for some indices. Strides
   count as positive. The axes are taken from the largest stride to the smallest; where each stride is larger than all
   that the smaller ones reach together, as in every array whose elements do not overlap, no axis leaves more than two
   indices to look at. `budget` bounds the search for arrays that fold over themselves: when it is used up, the answer is
   yes. */
static int search(ptrdiff_t base, ptrdiff_t first, ptrdiff_t last, int ndim, const ptrdiff_t *shape,
                  const ptrdiff_t *strides, uint64_t done, int *budget)
{
    ptrdiff_t reach = 0, largest = 0;
    int axis = -1;

    if (base > last)
        return 0;
    if (base >= first || --*budget < 0)
        return 1;
    for (int k = 0; k < ndim; k++) {
        const ptrdiff_t stride = strides[k] < 0 ? -strides[k] : strides[k];
        if (done >> k & 1 || shape[k] < 2)
            continue;
        reach += stride * (shape[k] - 1);
        if (stride > largest) {
            largest = stride;
            axis = k;
        }
    }
    if (axis < 0 || base + reach < first)
        return 0;

    const ptrdiff_t rest = reach - largest * (shape[axis] - 1);
    const ptrdiff_t missing = first - rest - base; /* what this axis has to add at least */
    const ptrdiff_t from = missing > 0 ? (missing + largest - 1) / largest : 0;
    const ptrdiff_t most = (last - base) / largest;
    const ptrdiff_t to = most < shape[axis] - 1 ? most : shape[axis] - 1;
    for (ptrdiff_t i = to; i >= from; i--)
        if (search(base + i * largest, first, last, ndim, shape, strides, done | (uint64_t)1 << axis, budget))
            return 1;
    return 0;
}

int rmsfast_strides_into(ptrdiff_t start, ptrdiff_t stop, ptrdiff_t itemsize, int ndim, const ptrdiff_t *shape,
                         const ptrdiff_t *strides)
{
    int budget = 10000;
    return search(0, start - itemsize + 1, stop - 1, ndim, shape, strides, 0, &budget);
}
