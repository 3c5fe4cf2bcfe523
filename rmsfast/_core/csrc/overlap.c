/* Whether a strided array has an element in some stretch of memory. */
#include <stdint.h>

#include "rmsfast.h"

/* Whether first <= base + (a sum of index times stride over the axes not in `done`) <= last for some indices. Strides
   count as positive. The axes are taken from the largest stride to the smallest; where each stride is larger than all
   that the smaller ones reach together, as in every array whose elements do not overlap, no axis leaves more than two
   indices to look at. `budget` bounds the search for arrays that fold over themselves: when it is used up, the answer is
   yes. */
static int search(ptrdiff_t base, ptrdiff_t first, ptrdiff_t last, int ndim, const ptrdiff_t *shape,
                  const ptrdiff_t *strides, ptrdiff_t unit, uint64_t done, int *budget)
{
    ptrdiff_t reach = 0, largest = 0;
    int axis = -1;

    if (base > last)
        return 0;
    if (base >= first || --*budget < 0)
        return 1;
    for (int k = 0; k < ndim; k++) {
        const ptrdiff_t stride = unit * (strides[k] < 0 ? -strides[k] : strides[k]);
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
        if (search(base + i * largest, first, last, ndim, shape, strides, unit, done | (uint64_t)1 << axis,
                   budget))
            return 1;
    return 0;
}

int rmsfast_strides_into(ptrdiff_t start, ptrdiff_t stop, ptrdiff_t itemsize, int ndim, const ptrdiff_t *shape,
                         const ptrdiff_t *strides, ptrdiff_t unit)
{
    int budget = 10000;
    return search(0, start - itemsize + 1, stop - 1, ndim, shape, strides, unit, 0, &budget);
}
