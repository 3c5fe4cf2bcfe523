/* The stages for one instruction set. An isa_*.c file defines ISA, its name, and includes this; setup.py compiles each of
   those files with its instruction set's flags. */
#include <float.h>
#include <math.h>

#include "rmsfast.h"

#ifdef _MSC_VER
#pragma fp_contract(off) /* the other compilers are told by a switch */
#endif

#include "pack.h"
#include "root.h"

#define REAL float
#define SCALARS rmsfast_scalars_float
#define ABS fabsf
#define LARGEST FLT_MAX
#define NAME(stage) stage##_float32
#include "stages.h"

#define REAL double
#define SCALARS rmsfast_scalars_double
#define ABS fabs
#define LARGEST DBL_MAX
#define NAME(stage) stage##_float64
#include "stages.h"

#include "formats.h"

#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)
#define STRING_(x) #x
#define STRING(x) STRING_(x)

const rmsfast_isa JOIN(rmsfast_isa_, ISA) = {
    STRING(ISA),
    &storage_,
    {
        {&stages_divider_float32, &stages_divider_float64},
#if VECTOR_BITS
        {&stages_fma_float32, &stages_fma_float64},
        {&stages_mixed_float32, &stages_mixed_float64},
#endif
    },
};
