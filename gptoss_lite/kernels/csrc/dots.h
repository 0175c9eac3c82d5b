/* Dot products of matrix rows with one x: dense, and MXFP4. Sums are float32. */

#ifndef DOTS_H
#define DOTS_H

#include "vectors.h"

INLINE vec load_weights(const char *row, int64_t i, int bf16) {
    return bf16 ? load_bf16(row + 2 * i) : load(row + 4 * i);
}

INLINE float as_float(uint32_t bits) {
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

INLINE float number_at(const void *numbers, int64_t i, int bf16) {
    uint16_t half;
    if (!bf16) {
        float value;
        memcpy(&value, (const char *)numbers + 4 * i, 4);
        return value;
    }
    memcpy(&half, (const char *)numbers + 2 * i, 2);
    return as_float((uint32_t)half << 16);
}

INLINE uint16_t round_bf16(float value) { /* to the nearest, of two equally near to the even one */
    uint32_t bits;
    memcpy(&bits, &value, 4);
    if (value != value) return 0x7fc0;
    return (uint16_t)((bits + 0x7fff + (bits >> 16 & 1)) >> 16);
}

INLINE void put_number(void *numbers, int64_t i, int bf16, float value) {
    uint16_t half = round_bf16(value);
    memcpy((char *)numbers + (bf16 ? 2 : 4) * i, bf16 ? (void *)&half : (void *)&value, bf16 ? 2 : 4);
}

INLINE void as_floats(const void *numbers, int64_t n, int bf16, float *out) {
    for (int64_t i = 0; i < n; i++) out[i] = number_at(numbers, i, bf16);
}

/* Two rows at once: they share the loads of x, and memory is read at two places, which hides more
   of its latency. Two sums a row, because one addition must wait for the one before it. */
INLINE void dot_dense(const char *a, const char *b, int bf16, const float *x, int64_t width,
                      float out[2]) {
    vec a0 = splat(0), a1 = a0, b0 = a0, b1 = a0;
    int64_t i = 0;
    for (; i + 2 * LANES <= width; i += 2 * LANES) {
        vec x0 = load(x + i), x1 = load(x + i + LANES);
        a0 = fma_(load_weights(a, i, bf16), x0, a0);
        a1 = fma_(load_weights(a, i + LANES, bf16), x1, a1);
        b0 = fma_(load_weights(b, i, bf16), x0, b0);
        b1 = fma_(load_weights(b, i + LANES, bf16), x1, b1);
    }
    out[0] = sum(add(a0, a1));
    out[1] = sum(add(b0, b1));
    for (; i < width; i++) {
        out[0] += number_at(a, i, bf16) * x[i];
        out[1] += number_at(b, i, bf16) * x[i];
    }
}

#if BODY == AVX512_BF16
INLINE __m512bh load_halves(const void *numbers, int64_t i, __mmask32 there) {
    return (__m512bh)_mm512_maskz_loadu_epi16(there, (const uint16_t *)numbers + i);
}

/* The same for an x of bfloat16, with a third of the instructions. vdpbf16ps adds the products of
   two neighbours to each lane; their sums are float32, but it takes numbers below 1e-38 for zero. */
INLINE void dot_halves(const char *a, const char *b, const uint16_t *x, int64_t width,
                       float out[2]) {
    vec sums[2] = {splat(0), splat(0)};
    for (int64_t i = 0; i < width; i += 2 * LANES) { /* a mask ends the last one with its row */
        __mmask32 there = width - i < 2 * LANES ? (1u << (width - i)) - 1 : ~0u;
        __m512bh numbers = load_halves(x, i, there);
        sums[0] = _mm512_dpbf16_ps(sums[0], load_halves(a, i, there), numbers);
        sums[1] = _mm512_dpbf16_ps(sums[1], load_halves(b, i, there), numbers);
    }
    for (int r = 0; r < 2; r++) out[r] = sum(sums[r]);
}
#else
INLINE void dot_halves(const char *a, const char *b, const uint16_t *x, int64_t width,
                       float out[2]) {
    (void)a, (void)b, (void)x, (void)width;
    out[0] = out[1] = __builtin_nanf(""); /* never asked for */
}
#endif

/* Asked for this early, bytes arrive from memory in time: decoding keeps the CPU too busy to look
   that far ahead by itself. They are read once (the 0). Past the matrix's end this does nothing. */
enum { AHEAD = 2048 };
INLINE void fetch(const uint8_t *bytes) { __builtin_prefetch(bytes + AHEAD, 0, 0); }

typedef struct { /* of a packed matrix */
    const uint8_t *bytes, *scales;
    int64_t at; /* its number in the output */
} Row;

/* x holds each block's even numbers before its odd ones, as `decode` does. The scale is a power of
   two, so multiplying the block's sum with it rounds no more than multiplying each weight. */
INLINE vec add_block(const uint8_t *bytes, float scale, const float *x, vec total) {
    vec weights[BLOCK / LANES], block = splat(0);
    fetch(bytes);
    decode(bytes, weights);
    for (int i = 0; i < BLOCK / LANES; i++) block = fma_(weights[i], load(x + LANES * i), block);
    return fma_(block, splat(scale), total);
}

INLINE float dot_mxfp4(const uint8_t *bytes, const uint8_t *scales, const float *scale_of,
                       const float *x, int64_t groups) {
    vec s0 = splat(0), s1 = s0;
    int64_t g = 0;
    for (; g + 2 <= groups; g += 2) {
        s0 = add_block(bytes + BLOCK_BYTES * g, scale_of[scales[g]], x + BLOCK * g, s0);
        s1 = add_block(bytes + BLOCK_BYTES * (g + 1), scale_of[scales[g + 1]],
                       x + BLOCK * (g + 1), s1);
    }
    if (g < groups) s0 = add_block(bytes + BLOCK_BYTES * g, scale_of[scales[g]], x + BLOCK * g, s0);
    return sum(s0) + sum(s1);
}

enum { TOGETHER = 4 }; /* rows of x that share what is decoded: what fits into registers */

#if BODY == AVX512_BF16
/* Keeps a vector in its register. Compilers load what they have read once more instead, several
   times here, and this CPU loads but one vector a cycle. */
INLINE __m512i kept(__m512i v) {
    __asm__("" : "+v"(v));
    return v;
}

/* Four blocks at once, for an x of bfloat16: half the instructions. A word of 16 bits is four
   codes. vpermw looks up the lowest (it reads five bits, so its table of 32 repeats the 16), and
   a shift brings the next one down. vdpbf16ps adds the products of two words to each lane, so
   lanes 0 to 3 belong to the first block, 4 to 7 to the second, and so on; their sums are float32,
   but it takes numbers below 1e-38 for zero. x holds, of each 128 numbers, every fourth. */
INLINE void add_quads(const __m512i codes[2], const vec scales[2], __m512i table, int n,
                      const uint16_t *const x[], int64_t at, vec total[][2]) {
    __m512i weights[4][2];
    for (int k = 0; k < 4; k++)
        for (int r = 0; r < 2; r++)
            weights[k][r] = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes[r], 4 * k), table);
    for (int t = 0; t < n; t++) {
        vec sums[2] = {splat(0), splat(0)};
        for (int k = 0; k < 4; k++) {
            __m512i numbers = kept(_mm512_loadu_si512((const void *)(x[t] + at + 32 * k)));
            for (int r = 0; r < 2; r++)
                sums[r] = _mm512_dpbf16_ps(sums[r], (__m512bh)weights[k][r], (__m512bh)numbers);
        }
        for (int r = 0; r < 2; r++) total[t][r] = fma_(sums[r], scales[r], total[t][r]);
    }
}

/* Up to 16 scales: a byte is the exponent of a float32, but 0 is 2^-127 and 255 is NaN. */
INLINE vec load_scales(const uint8_t *scales, __mmask16 there) {
    __m512i bytes = _mm512_maskz_cvtepu8_epi32(there, _mm_maskz_loadu_epi8(there, scales));
    __m512i bits = _mm512_max_epu32(_mm512_slli_epi32(bytes, 23), _mm512_set1_epi32(1 << 22));
    __mmask16 nan = _mm512_cmpeq_epi32_mask(bytes, _mm512_set1_epi32(255));
    return _mm512_castsi512_ps(_mm512_mask_set1_epi32(bits, nan, 0x7fc00000));
}

INLINE __mmask16 first_lanes(int64_t n) { return (__mmask16)((1u << n) - 1); }

INLINE void dot_quads(const Row rows[2], int n, const uint16_t *const x[], int64_t groups,
                      float out[][2]) {
    const __m512i each = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    const __m512i table = kept(_mm512_broadcast_i64x4(
        _mm256_setr_epi16(0, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0, (short)0x8000,
                          (short)0xbf00, (short)0xbf80, (short)0xbfc0, (short)0xc000,
                          (short)0xc040, (short)0xc080, (short)0xc0c0)));
    vec total[TOGETHER][2], scales[2], sixteen[2];
    for (int t = 0; t < n; t++) total[t][0] = total[t][1] = splat(0);
    __m512i codes[2];
    int64_t g = 0;
    for (; g + 16 <= groups; g += 16) {
        for (int r = 0; r < 2; r++) sixteen[r] = load_scales(rows[r].scales + g, first_lanes(16));
        for (int q = 0; q < 4; q++) {
            __m512i chosen = _mm512_add_epi32(each, _mm512_set1_epi32(4 * q));
            for (int r = 0; r < 2; r++) {
                const uint8_t *here = rows[r].bytes + BLOCK_BYTES * (g + 4 * q);
                fetch(here);
                codes[r] = kept(_mm512_loadu_si512((const void *)here));
                scales[r] = _mm512_permutexvar_ps(chosen, sixteen[r]);
            }
            add_quads(codes, scales, table, n, x, BLOCK * g + QUAD * q, total);
        }
    }
    for (; g < groups; g += 4) { /* masks keep the last one from reading past the row */
        int64_t left = groups - g < 4 ? groups - g : 4;
        for (int r = 0; r < 2; r++) {
            const uint8_t *here = rows[r].bytes + BLOCK_BYTES * g;
            fetch(here);
            codes[r] = _mm512_maskz_loadu_epi32(first_lanes(4 * left), here);
            scales[r] =
                _mm512_permutexvar_ps(each, load_scales(rows[r].scales + g, first_lanes(left)));
        }
        add_quads(codes, scales, table, n, x, BLOCK * g, total);
    }
    for (int t = 0; t < n; t++)
        for (int r = 0; r < 2; r++) out[t][r] = sum(total[t][r]);
}
#else
INLINE void dot_quads(const Row rows[2], int n, const uint16_t *const x[], int64_t groups,
                      float out[][2]) {
    (void)rows, (void)x, (void)groups;
    for (int t = 0; t < n; t++) out[t][0] = out[t][1] = __builtin_nanf(""); /* never asked for */
}
#endif

#endif
