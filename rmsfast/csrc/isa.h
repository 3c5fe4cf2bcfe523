/* The functions of one instruction set. An isa_*.c file defines ISA, its name, and includes this; setup.py compiles each
   of those files with its instruction set's flags. */
#include <math.h>

#include "rmsfast.h"

#ifdef _MSC_VER
#pragma fp_contract(off) /* the other compilers are told by a switch */
#endif

#define REAL float
#define SQRT sqrtf
#define UPDATE update_float32
#include "update.h"
#undef REAL
#undef SQRT
#undef UPDATE

#define REAL double
#define SQRT sqrt
#define UPDATE update_float64
#include "update.h"
#undef REAL
#undef SQRT
#undef UPDATE

#define STRING_(x) #x
#define STRING(x) STRING_(x)
#define JOIN_(a, b) a##b
#define JOIN(a, b) JOIN_(a, b)

const rmsfast_isa JOIN(rmsfast_isa_, ISA) = {STRING(ISA), {update_float32, update_float64}};
