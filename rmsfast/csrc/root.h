/* The square root of a pack, correctly rounded: by the CPU's divider, or from its estimate of 1/√v by fused multiply-add.
   Both give the same bits: docs/exactness.md has the proof, and tests/test_root.py carries it out.

   `refine` makes the root out of any estimate whose relative error is within what the CPU's makers document, if v is zero
   or from LEAST to MOST. Zeros are common, because gradients are; a pack with any other number goes to the divider. */

#if VECTOR_BITS == 0

enum { MIXED_float32 = 1, MIXED_float64 = 1 };
RMSFAST_INLINE float root_float32(float v, const int by_fma) { return (void)by_fma, sqrtf(v); }
RMSFAST_INLINE double root_float64(double v, const int by_fma) { return (void)by_fma, sqrt(v); }

#else

/* So that the residual v - s·s is no subnormal, and that 2·v is finite. AVX2's estimate takes a float. */
#define LEAST_float32 0x1p-100f
#define MOST_float32 0x1p126f
#define LEAST_float64 (VECTOR_BITS == 512 ? 0x1p-960 : 0x1p-100)
#define MOST_float64 (VECTOR_BITS == 512 ? 0x1p1022 : 0x1p100)

/* The same as bits: 2^n. */
#define BITS_float32(n) ((127 + (n)) << 23)
#define BITS_float64(n) ((1023LL + (n)) << 52)

#if VECTOR_BITS == 512

/* At most 2⁻¹⁴ off, both. */
RMSFAST_INLINE __m512 estimate_float32(__m512 v) { return _mm512_rsqrt14_ps(v); }
RMSFAST_INLINE __m512d estimate_float64(__m512d v) { return _mm512_rsqrt14_pd(v); }

RMSFAST_INLINE int in_range_float32(__m512 v)
{
    const __mmask16 nonzero = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NEQ_UQ);
    const __m512i above = _mm512_sub_epi32(_mm512_castps_si512(v), _mm512_set1_epi32(BITS_float32(-100)));
    return _mm512_mask_cmpgt_epu32_mask(nonzero, above, _mm512_set1_epi32(226 << 23)) == 0;
}

RMSFAST_INLINE int in_range_float64(__m512d v)
{
    const __mmask8 nonzero = _mm512_cmp_pd_mask(v, _mm512_setzero_pd(), _CMP_NEQ_UQ);
    const __m512i above = _mm512_sub_epi64(_mm512_castpd_si512(v), _mm512_set1_epi64(BITS_float64(-960)));
    return _mm512_mask_cmpgt_epu64_mask(nonzero, above, _mm512_set1_epi64(1982LL << 52)) == 0;
}

RMSFAST_INLINE __m512 refine_float32(__m512 v, __m512 r)
{
    const __m512 half = _mm512_set1_ps(0.5f);
    __m512 s = v * r, h = half * r; /* towards √v and 1/(2·√v) */
    const __m512 e = _mm512_fnmadd_ps(s, h, half);
    s = _mm512_fmadd_ps(s, e, s);
    h = _mm512_fmadd_ps(h, e, h);
    const __m512 residual = _mm512_fnmadd_ps(s, s, v);
    return _mm512_fmadd_ps(residual, h, s);
}

RMSFAST_INLINE __m512d refine_float64(__m512d v, __m512d r)
{
    const __m512d half = _mm512_set1_pd(0.5), twice = v + v;
    __m512d h = half * r;
    h = _mm512_fmadd_pd(h, _mm512_fnmadd_pd(v * r, h, half), h);
    h = _mm512_fmadd_pd(h, _mm512_fnmadd_pd(twice * h, h, half), h);
    const __m512d s = twice * h, residual = _mm512_fnmadd_pd(s, s, v);
    return _mm512_fmadd_pd(residual, h, s);
}

#else

/* At most 1.5·2⁻¹² off; that of float64 has the rounding of v to float32 besides, at most 2⁻²⁵ of r. */
RMSFAST_INLINE __m256 estimate_float32(__m256 v) { return _mm256_rsqrt_ps(v); }
RMSFAST_INLINE __m256d estimate_float64(__m256d v) { return _mm256_cvtps_pd(_mm_rsqrt_ps(_mm256_cvtpd_ps(v))); }

/* A comparison without a sign is one with a sign, both sides moved by half of all numbers. */
RMSFAST_INLINE int in_range_float32(__m256 v)
{
    const __m256i zero = _mm256_castps_si256(_mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_EQ_OQ));
    const __m256i moved = _mm256_add_epi32(_mm256_castps_si256(v), _mm256_set1_epi32(INT32_MAX - BITS_float32(126)));
    return _mm256_testc_si256(zero, _mm256_cmpgt_epi32(_mm256_set1_epi32(INT32_MAX - (226 << 23)), moved));
}

RMSFAST_INLINE int in_range_float64(__m256d v)
{
    const __m256i zero = _mm256_castpd_si256(_mm256_cmp_pd(v, _mm256_setzero_pd(), _CMP_EQ_OQ));
    const __m256i moved = _mm256_add_epi64(_mm256_castpd_si256(v), _mm256_set1_epi64x(INT64_MAX - BITS_float64(100)));
    return _mm256_testc_si256(zero, _mm256_cmpgt_epi64(_mm256_set1_epi64x(INT64_MAX - (200LL << 52)), moved));
}

RMSFAST_INLINE __m256 refine_float32(__m256 v, __m256 r)
{
    const __m256 half = _mm256_set1_ps(0.5f), one = _mm256_set1_ps(1), more = _mm256_set1_ps(1.5f);
    __m256 h = half * r; /* towards 1/(2·√v) */
    const __m256 e = _mm256_fnmadd_ps(v * r, h, half);
    h = _mm256_fmadd_ps(h * e, _mm256_fmadd_ps(more, e, one), h);
    const __m256 s = (v + v) * h, residual = _mm256_fnmadd_ps(s, s, v);
    return _mm256_fmadd_ps(residual, h, s);
}

RMSFAST_INLINE __m256d refine_float64(__m256d v, __m256d r)
{
    const __m256d half = _mm256_set1_pd(0.5), one = _mm256_set1_pd(1), more = _mm256_set1_pd(1.5), twice = v + v;
    __m256d h = half * r;
    const __m256d e = _mm256_fnmadd_pd(v * r, h, half);
    h = _mm256_fmadd_pd(h * e, _mm256_fmadd_pd(more, e, one), h);
    h = _mm256_fmadd_pd(h, _mm256_fnmadd_pd(twice * h, h, half), h);
    const __m256d s = twice * h, residual = _mm256_fnmadd_pd(s, s, v);
    return _mm256_fmadd_pd(residual, h, s);
}

#endif

/* One of so many roots is by FMA where they are mixed. */
enum { MIXED_float32 = 3, MIXED_float64 = VECTOR_BITS == 512 ? 2 : 3 };

#define ROOT(type)                                                                                                     \
    RMSFAST_INLINE pack_##type root_##type(pack_##type v, const int by_fma)                                            \
    {                                                                                                                  \
        if (by_fma && __builtin_expect(in_range_##type(v), 1))                                                         \
            return refine_##type(v, estimate_##type(OP_##type(max)(v, OP_##type(set1)(LEAST_##type))));                \
        return OP_##type(sqrt)(v);                                                                                     \
    }
ROOT(float32)
ROOT(float64)
#undef ROOT

#endif
