#define ISA avx2
#define VECTOR_BITS 256
#include "isa.h"
