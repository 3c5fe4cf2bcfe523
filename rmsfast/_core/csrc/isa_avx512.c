#define ISA avx512
#define VECTOR_BITS 512
#include "isa.h"
