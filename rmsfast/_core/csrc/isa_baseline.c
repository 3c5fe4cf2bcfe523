/* The floor of the platform's ABI: SSE2 on x86-64, NEON on arm64. */
#define ISA baseline
#include "isa.h"
