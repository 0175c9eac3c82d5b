/* The few instructions that differ between CPUs, under one set of names.

   `vec` holds LANES floats. `decode` turns the 16 code bytes of an MXFP4 block into 32 floats:
   those of the 16 low halves (weights 0, 2, 4 ...), then those of the high ones (1, 3, 5 ...).
   No compiler at hand turns a table of 16 numbers into one shuffle by itself, and without that
   the decoder, not memory, sets the speed. `copy_block` looks 32 bfloat16 up, in order. */

#ifndef VECTORS_H
#define VECTORS_H

#include <stdint.h>
#include <stdlib.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* Memory, or NULL. It begins at a cache line: a vector that lies across two is loaded twice. */
INLINE void *take(int64_t bytes) { return aligned_alloc(64, (size_t)(bytes + 64) / 64 * 64); }

#define PORTABLE 0
#define NEON 1
#define AVX2 2
#define AVX512 3
#define AVX512_BF16 4 /* as AVX512, with another product for an x of bfloat16 */

#ifndef BODY
#if defined(__AVX512F__) && defined(__AVX512BW__) && defined(__AVX512BF16__)
#define BODY AVX512_BF16
#elif defined(__AVX512F__) && defined(__AVX512BW__)
#define BODY AVX512
#elif defined(__AVX2__) && defined(__FMA__)
#define BODY AVX2
#elif defined(__ARM_NEON) && defined(__aarch64__)
#define BODY NEON
#else
#define BODY PORTABLE
#endif
#endif

enum { BLOCK_BYTES = 16, BLOCK = 32, QUAD = 4 * BLOCK };

static const float VALUES[16] = {0.0f,  0.5f,  1.0f,  1.5f,  2.0f,  3.0f,  4.0f,  6.0f,
                                 -0.0f, -0.5f, -1.0f, -1.5f, -2.0f, -3.0f, -4.0f, -6.0f};

#if BODY == AVX512 || BODY == AVX512_BF16
#include <immintrin.h>
typedef __m512 vec;
enum { LANES = 16 };
INLINE vec splat(float x) { return _mm512_set1_ps(x); }
INLINE vec load(const void *p) { return _mm512_loadu_ps(p); }
INLINE vec load_bf16(const void *p) {
    return _mm512_castsi512_ps(
        _mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256(p)), 16));
}
INLINE vec fma_(vec a, vec b, vec c) { return _mm512_fmadd_ps(a, b, c); }
INLINE vec add(vec a, vec b) { return _mm512_add_ps(a, b); }
INLINE void store(float *p, vec v) { _mm512_storeu_ps(p, v); }
INLINE float sum(vec v) { return _mm512_reduce_add_ps(v); }
INLINE void decode(const uint8_t *bytes, vec *out) {
    vec table = load(VALUES); /* vpermps reads the low four bits of each lane */
    __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)bytes));
    out[0] = _mm512_permutexvar_ps(codes, table);
    out[1] = _mm512_permutexvar_ps(_mm512_srli_epi32(codes, 4), table);
}
INLINE void copy_block(const uint8_t *bytes, const uint16_t *table, uint16_t *out) {
    __m512i codes = _mm512_cvtepu8_epi32(_mm_loadu_si128((const void *)bytes));
    __m512i low = _mm512_and_si512(codes, _mm512_set1_epi32(0x0f));
    __m512i high = _mm512_slli_epi32(_mm512_and_si512(codes, _mm512_set1_epi32(0xf0)), 12);
    __m512i numbers = _mm512_castsi256_si512(_mm256_loadu_si256((const void *)table));
    __m512i pairs = _mm512_permutexvar_epi16(_mm512_or_si512(low, high), numbers);
    _mm512_storeu_si512((void *)out, pairs);
}

#elif BODY == AVX2
#include <immintrin.h>
typedef __m256 vec;
enum { LANES = 8 };
INLINE vec splat(float x) { return _mm256_set1_ps(x); }
INLINE vec load(const void *p) { return _mm256_loadu_ps(p); }
INLINE vec load_bf16(const void *p) {
    return _mm256_castsi256_ps(_mm256_slli_epi32(_mm256_cvtepu16_epi32(_mm_loadu_si128(p)), 16));
}
INLINE vec fma_(vec a, vec b, vec c) { return _mm256_fmadd_ps(a, b, c); }
INLINE vec add(vec a, vec b) { return _mm256_add_ps(a, b); }
INLINE void store(float *p, vec v) { _mm256_storeu_ps(p, v); }
INLINE float sum(vec v) {
    __m128 s = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    s = _mm_add_ps(s, _mm_movehl_ps(s, s));
    return _mm_cvtss_f32(_mm_add_ss(s, _mm_movehdup_ps(s)));
}
INLINE vec lookup(__m256i codes) { /* eight magnitudes by the low three bits, then the sign */
    __m256i sign = _mm256_slli_epi32(_mm256_and_si256(codes, _mm256_set1_epi32(8)), 28);
    vec magnitude = _mm256_permutevar8x32_ps(load(VALUES), codes);
    return _mm256_xor_ps(magnitude, _mm256_castsi256_ps(sign));
}
INLINE void decode(const uint8_t *bytes, vec *out) {
    for (int i = 0; i < 2; i++) {
        __m256i codes = _mm256_cvtepu8_epi32(_mm_loadl_epi64((const void *)(bytes + 8 * i)));
        out[i] = lookup(codes);
        out[2 + i] = lookup(_mm256_srli_epi32(codes, 4));
    }
}
INLINE void copy_block(const uint8_t *bytes, const uint16_t *table, uint16_t *out) {
    __m128i byte = _mm_set1_epi16(0xff), nibble = _mm_set1_epi8(0x0f);
    __m128i first = _mm_loadu_si128((const void *)table);
    __m128i last = _mm_loadu_si128((const void *)(table + 8));
    __m128i ends = _mm_packus_epi16(_mm_and_si128(first, byte), _mm_and_si128(last, byte));
    __m128i tops = _mm_packus_epi16(_mm_srli_epi16(first, 8), _mm_srli_epi16(last, 8));
    __m128i codes = _mm_loadu_si128((const void *)bytes);
    __m128i low = _mm_and_si128(codes, nibble);
    __m128i high = _mm_and_si128(_mm_srli_epi16(codes, 4), nibble);
    __m128i order[2] = {_mm_unpacklo_epi8(low, high), _mm_unpackhi_epi8(low, high)};
    for (int i = 0; i < 2; i++) {
        __m128i end = _mm_shuffle_epi8(ends, order[i]), top = _mm_shuffle_epi8(tops, order[i]);
        _mm_storeu_si128((void *)(out + 16 * i), _mm_unpacklo_epi8(end, top));
        _mm_storeu_si128((void *)(out + 16 * i + 8), _mm_unpackhi_epi8(end, top));
    }
}

#elif BODY == NEON
#include <arm_neon.h>
typedef float32x4_t vec;
enum { LANES = 4 };
INLINE vec splat(float x) { return vdupq_n_f32(x); }
INLINE vec load(const void *p) { return vreinterpretq_f32_u8(vld1q_u8(p)); }
INLINE vec load_bf16(const void *p) {
    return vreinterpretq_f32_u32(vshll_n_u16(vreinterpret_u16_u8(vld1_u8(p)), 16));
}
INLINE vec fma_(vec a, vec b, vec c) { return vfmaq_f32(c, a, b); }
INLINE vec add(vec a, vec b) { return vaddq_f32(a, b); }
INLINE void store(float *p, vec v) { vst1q_f32(p, v); }
INLINE float sum(vec v) { return vaddvq_f32(v); }
INLINE void widen(int8x16_t doubled, vec *out) { /* the 1: half of each, as a float */
    int16x8_t first = vmovl_s8(vget_low_s8(doubled)), last = vmovl_s8(vget_high_s8(doubled));
    out[0] = vcvtq_n_f32_s32(vmovl_s16(vget_low_s16(first)), 1);
    out[1] = vcvtq_n_f32_s32(vmovl_s16(vget_high_s16(first)), 1);
    out[2] = vcvtq_n_f32_s32(vmovl_s16(vget_low_s16(last)), 1);
    out[3] = vcvtq_n_f32_s32(vmovl_s16(vget_high_s16(last)), 1);
}
INLINE void decode(const uint8_t *bytes, vec *out) {
    static const int8_t DOUBLED[16] = {0, 1, 2, 3, 4, 6, 8, 12, 0, -1, -2, -3, -4, -6, -8, -12};
    int8x16_t table = vld1q_s8(DOUBLED);
    uint8x16_t codes = vld1q_u8(bytes);
    widen(vqtbl1q_s8(table, vandq_u8(codes, vdupq_n_u8(15))), out);
    widen(vqtbl1q_s8(table, vshrq_n_u8(codes, 4)), out + 4);
}
INLINE void copy_block(const uint8_t *bytes, const uint16_t *table, uint16_t *out) {
    uint8x16x2_t planes = vld2q_u8((const uint8_t *)table); /* low bytes, high bytes */
    uint8x16_t codes = vld1q_u8(bytes);
    uint8x16_t low = vandq_u8(codes, vdupq_n_u8(15)), high = vshrq_n_u8(codes, 4);
    uint8x16_t order[2] = {vzip1q_u8(low, high), vzip2q_u8(low, high)};
    for (int i = 0; i < 2; i++) {
        uint8x16x2_t pairs = {{vqtbl1q_u8(planes.val[0], order[i]),
                               vqtbl1q_u8(planes.val[1], order[i])}};
        vst2q_u8((uint8_t *)(out + 16 * i), pairs);
    }
}

#else
typedef struct { float at[8]; } vec;
enum { LANES = 8 };
INLINE vec splat(float x) { return (vec){{x, x, x, x, x, x, x, x}}; }
INLINE vec load(const void *p) {
    vec v;
    memcpy(&v, p, sizeof v);
    return v;
}
INLINE vec load_bf16(const void *p) {
    uint16_t halves[LANES];
    uint32_t words[LANES];
    memcpy(halves, p, sizeof halves);
    for (int i = 0; i < LANES; i++) words[i] = (uint32_t)halves[i] << 16;
    return load(words);
}
INLINE vec fma_(vec a, vec b, vec c) {
    for (int i = 0; i < LANES; i++) c.at[i] += a.at[i] * b.at[i];
    return c;
}
INLINE vec add(vec a, vec b) {
    for (int i = 0; i < LANES; i++) a.at[i] += b.at[i];
    return a;
}
INLINE void store(float *p, vec v) { memcpy(p, &v, sizeof v); }
INLINE float sum(vec v) {
    return ((v.at[0] + v.at[4]) + (v.at[2] + v.at[6])) +
           ((v.at[1] + v.at[5]) + (v.at[3] + v.at[7]));
}
INLINE void decode(const uint8_t *bytes, vec *out) {
    for (int i = 0; i < BLOCK_BYTES; i++) {
        out[i / LANES].at[i % LANES] = VALUES[bytes[i] & 15];
        out[(BLOCK_BYTES + i) / LANES].at[i % LANES] = VALUES[bytes[i] >> 4];
    }
}
INLINE void copy_block(const uint8_t *bytes, const uint16_t *table, uint16_t *out) {
    for (int i = 0; i < BLOCK_BYTES; i++) {
        out[2 * i] = table[bytes[i] & 15];
        out[2 * i + 1] = table[bytes[i] >> 4];
    }
}
#endif

#endif
