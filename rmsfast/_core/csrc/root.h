/* The square root of a pack, correctly rounded: by the CPU's divider, or by fused multiply-add from its estimate of 1/√v.
   Both give the same bits: docs/exactness.md has the proof, and tests/test_root.py carries it out.

   `refine` makes the root of v from any estimate whose relative error is within what the CPU's makers document, if v is
   zero or from LEAST to MOST. `is_usual` says whether that holds for all numbers of a pack: others go to the divider. Zeros
   do not, because they are common. */

#if VECTOR_BITS == 0

enum { MIXED_float32 = 1, MIXED_float64 = 1 };
RMSFAST_INLINE float root_float32(float v, const int by_fma) { return (void)by_fma, sqrtf(v); }
RMSFAST_INLINE double root_float64(double v, const int by_fma) { return (void)by_fma, sqrt(v); }

#else

/* As powers of two: between them 2·v is finite and the residual v - s·s no subnormal. AVX2 estimates in float32 alone. */
enum {
    LEAST_float32 = -100,
    MOST_float32 = 126,
    LEAST_float64 = VECTOR_BITS == 512 ? -960 : -100,
    MOST_float64 = VECTOR_BITS == 512 ? 1022 : 100
};
#define BITS_float32(exponent) ((127 + (exponent)) << 23)
#define BITS_float64(exponent) ((1023LL + (exponent)) << 52)
static const int32_t SPAN_float32 = (MOST_float32 - LEAST_float32) << 23;
static const int64_t SPAN_float64 = (MOST_float64 - LEAST_float64 + 0LL) << 52;

/* One of so many roots is by FMA where they are mixed. */
enum { MIXED_float32 = 3, MIXED_float64 = VECTOR_BITS == 512 ? 2 : 3 };

/* The estimate of a zero would be infinite. It is that of LEAST instead, and makes a zero. */

/* From h, an approximation of 1/(2·√v) that is off by its last rounding and little more. */
#define FINISH(type)                                                                                                   \
    RMSFAST_INLINE pack_##type finish_##type(pack_##type v, pack_##type h)                                             \
    {                                                                                                                  \
        const pack_##type s = (v + v) * h, residual = OP_##type(fnmadd)(s, s, v);                                      \
        return OP_##type(fmadd)(residual, h, s);                                                                       \
    }

#if VECTOR_BITS == 512

/* Both at most 2⁻¹⁴ off. */
RMSFAST_INLINE __m512 estimate_float32(__m512 v)
{
    const __m512 least = _mm512_castsi512_ps(_mm512_set1_epi32(BITS_float32(LEAST_float32)));
    return _mm512_rsqrt14_ps(_mm512_max_ps(v, least));
}

RMSFAST_INLINE __m512d estimate_float64(__m512d v)
{
    const __m512d least = _mm512_castsi512_pd(_mm512_set1_epi64(BITS_float64(LEAST_float64)));
    return _mm512_rsqrt14_pd(_mm512_max_pd(v, least));
}

RMSFAST_INLINE __m512 refine_float32(__m512 v, __m512 r)
{
    const __m512 half = _mm512_set1_ps(0.5f);
    __m512 s = v * r, h = half * r;
    const __m512 e = _mm512_fnmadd_ps(s, h, half);
    s = _mm512_fmadd_ps(s, e, s);
    h = _mm512_fmadd_ps(h, e, h);
    const __m512 residual = _mm512_fnmadd_ps(s, s, v);
    return _mm512_fmadd_ps(residual, h, s);
}

FINISH(float64)

RMSFAST_INLINE __m512d refine_float64(__m512d v, __m512d r)
{
    const __m512d half = _mm512_set1_pd(0.5);
    __m512d h = half * r;
    h = _mm512_fmadd_pd(h, _mm512_fnmadd_pd(v * r, h, half), h);
    h = _mm512_fmadd_pd(h, _mm512_fnmadd_pd((v + v) * h, h, half), h);
    return finish_float64(v, h);
}

/* As numbers without a sign, those above MOST and those below LEAST are above SPAN once LEAST is taken away. */
RMSFAST_INLINE int is_usual_float32(__m512 v)
{
    const __mmask16 nonzero = _mm512_cmp_ps_mask(v, _mm512_setzero_ps(), _CMP_NEQ_UQ);
    const __m512i bits = _mm512_sub_epi32(_mm512_castps_si512(v), _mm512_set1_epi32(BITS_float32(LEAST_float32)));
    return _mm512_mask_cmpgt_epu32_mask(nonzero, bits, _mm512_set1_epi32(SPAN_float32)) == 0;
}

RMSFAST_INLINE int is_usual_float64(__m512d v)
{
    const __mmask8 nonzero = _mm512_cmp_pd_mask(v, _mm512_setzero_pd(), _CMP_NEQ_UQ);
    const __m512i bits = _mm512_sub_epi64(_mm512_castpd_si512(v), _mm512_set1_epi64(BITS_float64(LEAST_float64)));
    return _mm512_mask_cmpgt_epu64_mask(nonzero, bits, _mm512_set1_epi64(SPAN_float64)) == 0;
}

#else

/* At most 1.5·2⁻¹² off, and that of float64 by the rounding of v to float32 besides. */
RMSFAST_INLINE __m256 estimate_float32(__m256 v)
{
    const __m256 least = _mm256_castsi256_ps(_mm256_set1_epi32(BITS_float32(LEAST_float32)));
    return _mm256_rsqrt_ps(_mm256_max_ps(v, least));
}

RMSFAST_INLINE __m256d estimate_float64(__m256d v)
{
    const __m256d least = _mm256_castsi256_pd(_mm256_set1_epi64x(BITS_float64(LEAST_float64)));
    return _mm256_cvtps_pd(_mm_rsqrt_ps(_mm256_cvtpd_ps(_mm256_max_pd(v, least))));
}

FINISH(float32)
FINISH(float64)

/* The first refinement is of the third order: h += h·e·(1 + 1.5·e). */
RMSFAST_INLINE __m256 refine_float32(__m256 v, __m256 r)
{
    const __m256 half = _mm256_set1_ps(0.5f), one = _mm256_set1_ps(1), more = _mm256_set1_ps(1.5f);
    __m256 h = half * r;
    const __m256 e = _mm256_fnmadd_ps(v * r, h, half);
    h = _mm256_fmadd_ps(h * e, _mm256_fmadd_ps(more, e, one), h);
    return finish_float32(v, h);
}

RMSFAST_INLINE __m256d refine_float64(__m256d v, __m256d r)
{
    const __m256d half = _mm256_set1_pd(0.5), one = _mm256_set1_pd(1), more = _mm256_set1_pd(1.5);
    __m256d h = half * r;
    const __m256d e = _mm256_fnmadd_pd(v * r, h, half);
    h = _mm256_fmadd_pd(h * e, _mm256_fmadd_pd(more, e, one), h);
    h = _mm256_fmadd_pd(h, _mm256_fnmadd_pd((v + v) * h, h, half), h);
    return finish_float64(v, h);
}

/* As numbers with a sign, those above MOST are the least once MOST is moved to the greatest. */
RMSFAST_INLINE int is_usual_float32(__m256 v)
{
    const __m256i zero = _mm256_castps_si256(_mm256_cmp_ps(v, _mm256_setzero_ps(), _CMP_EQ_OQ));
    const __m256i move = _mm256_set1_epi32(INT32_MAX - BITS_float32(MOST_float32));
    const __m256i bits = _mm256_add_epi32(_mm256_castps_si256(v), move);
    return _mm256_testc_si256(zero, _mm256_cmpgt_epi32(_mm256_set1_epi32(INT32_MAX - SPAN_float32), bits));
}

RMSFAST_INLINE int is_usual_float64(__m256d v)
{
    const __m256i zero = _mm256_castpd_si256(_mm256_cmp_pd(v, _mm256_setzero_pd(), _CMP_EQ_OQ));
    const __m256i move = _mm256_set1_epi64x(INT64_MAX - BITS_float64(MOST_float64));
    const __m256i bits = _mm256_add_epi64(_mm256_castpd_si256(v), move);
    return _mm256_testc_si256(zero, _mm256_cmpgt_epi64(_mm256_set1_epi64x(INT64_MAX - SPAN_float64), bits));
}

#endif

#define ROOT(type)                                                                                                     \
    RMSFAST_INLINE pack_##type root_##type(pack_##type v, const int by_fma)                                            \
    {                                                                                                                  \
        if (by_fma && __builtin_expect(is_usual_##type(v), 1))                                                         \
            return refine_##type(v, estimate_##type(v));                                                               \
        return OP_##type(sqrt)(v);                                                                                     \
    }
ROOT(float32)
ROOT(float64)
#undef ROOT
#undef FINISH

#endif
