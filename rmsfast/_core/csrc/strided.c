/* For a gradient that does not lie in memory as its parameter does: to copy its elements, and to set them to zero. */
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
        FOR_EACH_ITEM(2, memcpy(out + 2 * i, g + stride * i, 2))
        FOR_EACH_ITEM(4, memcpy(out + 4 * i, g + stride * i, 4))
        FOR_EACH_ITEM(8, memcpy(out + 8 * i, g + stride * i, 8))
        FOR_EACH_ITEM(16, memcpy(out + 16 * i, g + stride * i, 16))
    }
}

static void zero_run(char *g, ptrdiff_t n, ptrdiff_t itemsize, ptrdiff_t stride)
{
    switch (itemsize) {
        FOR_EACH_ITEM(2, memset(g + stride * i, 0, 2))
        FOR_EACH_ITEM(4, memset(g + stride * i, 0, 4))
        FOR_EACH_ITEM(8, memset(g + stride * i, 0, 8))
        FOR_EACH_ITEM(16, memset(g + stride * i, 0, 16))
    }
}

/* Go through n elements in runs along the last axis. Copy them to `out`, or set them to zero if it is NULL. */
static void walk(char *out, char *g, ptrdiff_t start, ptrdiff_t n, ptrdiff_t itemsize, int ndim, const ptrdiff_t *shape,
                 const ptrdiff_t *strides)
{
    ptrdiff_t index[MAX_NDIM];
    ptrdiff_t offset = 0;
    const int last = ndim - 1;

    for (int axis = last; axis >= 0; axis--) {
        index[axis] = start % shape[axis];
        start /= shape[axis];
        offset += index[axis] * strides[axis];
    }
    while (n > 0) {
        ptrdiff_t run = ndim > 0 ? shape[last] - index[last] : 1;
        const ptrdiff_t stride = ndim > 0 ? strides[last] : 0;
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
        index[last] += run;
        offset += run * stride;
        for (int axis = last; axis > 0 && index[axis] == shape[axis]; axis--) {
            index[axis] = 0;
            offset -= shape[axis] * strides[axis];
            index[axis - 1]++;
            offset += strides[axis - 1];
        }
    }
}

void rmsfast_gather(void *out, const char *g, ptrdiff_t start, ptrdiff_t n, ptrdiff_t itemsize, int ndim,
                    const ptrdiff_t *shape, const ptrdiff_t *strides)
{
    walk(out, (char *)g, start, n, itemsize, ndim, shape, strides);
}

void rmsfast_zero(char *g, ptrdiff_t start, ptrdiff_t n, ptrdiff_t itemsize, int ndim, const ptrdiff_t *shape,
                  const ptrdiff_t *strides)
{
    walk(NULL, g, start, n, itemsize, ndim, shape, strides);
}
