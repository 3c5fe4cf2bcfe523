#define ISA avx2
#include "isa.h"
