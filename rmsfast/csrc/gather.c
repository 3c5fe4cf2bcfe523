/* The stage that brings in a gradient which does not lie in memory as its parameter does. */
#include <string.h>

#include "rmsfast.h"

enum { MAX_NDIM = 64 }; /* NumPy 2's own */

/* memcpy of a constant size is one load that needs no alignment. */
static void copy_strided(char *out, const char *g, ptrdiff_t n, ptrdiff_t itemsize, ptrdiff_t stride)
{
    if (itemsize == 4)
        for (ptrdiff_t i = 0; i < n; i++)
            memcpy(out + 4 * i, g + stride * i, 4);
    else
        for (ptrdiff_t i = 0; i < n; i++)
            memcpy(out + 8 * i, g + stride * i, 8);
}

void rmsfast_gather(void *out_, const char *g, ptrdiff_t start, ptrdiff_t n, ptrdiff_t itemsize, int ndim,
                    const ptrdiff_t *shape, const ptrdiff_t *strides, int fortran)
{
    char *out = out_;
    ptrdiff_t index[MAX_NDIM];
    ptrdiff_t offset = 0;
    const int fastest = fortran ? 0 : ndim - 1, slowest = fortran ? ndim - 1 : 0, next = fortran ? 1 : -1;

    if (ndim == 0) {
        memcpy(out, g, (size_t)(n * itemsize));
        return;
    }
    for (int k = 0, axis = fastest; k < ndim; k++, axis += next) {
        index[axis] = start % shape[axis];
        start /= shape[axis];
        offset += index[axis] * strides[axis];
    }
    while (n > 0) {
        ptrdiff_t run = shape[fastest] - index[fastest];
        if (run > n)
            run = n;
        copy_strided(out, g + offset, run, itemsize, strides[fastest]);
        out += run * itemsize;
        n -= run;
        index[fastest] += run;
        offset += run * strides[fastest];
        for (int axis = fastest; index[axis] == shape[axis] && axis != slowest;) {
            index[axis] = 0;
            offset -= shape[axis] * strides[axis];
            axis += next;
            index[axis]++;
            offset += strides[axis];
        }
    }
}
