/* Products of one vector with many weight rows, and the decoder of MXFP4, for one CPU.

   native.py builds this file on first use. A decoded token reads every weight that it uses once,
   so the aim is to read the file's own bytes, in the file's own order, as fast as memory delivers
   them. Sums are float32. Never build it with -ffast-math: that flag makes the whole process
   flush small numbers to zero.

   1. Vectors: the few instructions that differ between CPUs.
   2. Dot products of one row: dense, and MXFP4.
   3. Threads: rows are handed out in chunks to whoever is free.
   4. The three functions that Python calls. */

#include <pthread.h>
#include <stdint.h>
#include <string.h>

#define INLINE static inline __attribute__((always_inline))

/* ---- 1. Vectors -----------------------------------------------------------------------------

   `vec` holds LANES floats. `decode` turns the 16 code bytes of an MXFP4 block into 32 floats:
   those of the 16 low halves (weights 0, 2, 4 ...), then those of the high ones (1, 3, 5 ...).
   No compiler at hand turns a table of 16 numbers into one shuffle by itself, and without that
   the decoder, not memory, sets the speed. `copy_block` looks 32 bfloat16 up, in order. */

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

/* ---- 2. Dot products of one row -------------------------------------------------------------- */

INLINE vec load_weights(const char *row, int64_t i, int bf16) {
    return bf16 ? load_bf16(row + 2 * i) : load(row + 4 * i);
}

INLINE float one_weight(const char *row, int64_t i, int bf16) {
    uint32_t bits = 0;
    if (bf16) {
        uint16_t half;
        memcpy(&half, row + 2 * i, 2);
        bits = (uint32_t)half << 16;
    } else {
        memcpy(&bits, row + 4 * i, 4);
    }
    float value;
    memcpy(&value, &bits, 4);
    return value;
}

/* Four sums at once, because one addition must wait for the one before it. */
INLINE float dot_dense(const char *row, int bf16, const float *x, int64_t width) {
    vec s0 = splat(0), s1 = s0, s2 = s0, s3 = s0;
    int64_t i = 0;
    for (; i + 4 * LANES <= width; i += 4 * LANES) {
        s0 = fma_(load_weights(row, i, bf16), load(x + i), s0);
        s1 = fma_(load_weights(row, i + LANES, bf16), load(x + i + LANES), s1);
        s2 = fma_(load_weights(row, i + 2 * LANES, bf16), load(x + i + 2 * LANES), s2);
        s3 = fma_(load_weights(row, i + 3 * LANES, bf16), load(x + i + 3 * LANES), s3);
    }
    for (; i + LANES <= width; i += LANES) s0 = fma_(load_weights(row, i, bf16), load(x + i), s0);
    float total = (sum(s0) + sum(s1)) + (sum(s2) + sum(s3));
    for (; i < width; i++) total += one_weight(row, i, bf16) * x[i];
    return total;
}

/* Asked for this early, bytes arrive from memory in time: decoding keeps the CPU too busy to look
   that far ahead by itself. Past the end of the matrix this does nothing. */
enum { AHEAD = 2048 };

/* x holds each block's even numbers before its odd ones, as `decode` does. The scale is a power of
   two, so multiplying the block's sum with it rounds no more than multiplying each weight. */
INLINE vec add_block(const uint8_t *bytes, float scale, const float *x, vec total) {
    vec weights[BLOCK / LANES], block = splat(0);
    __builtin_prefetch(bytes + AHEAD);
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

#if BODY == AVX512_BF16
/* Four blocks at once, for an x of bfloat16: half the instructions. A word of 16 bits is four
   codes. vpermw looks up the lowest (it reads five bits, so its table of 32 repeats the 16), and
   a shift brings the next one down. vdpbf16ps adds the products of two words to each lane, so
   lanes 0 to 3 belong to the first block, 4 to 7 to the second, and so on; their sums are float32,
   but it takes numbers below 1e-38 for zero. x holds, of each 128 numbers, every fourth. */
INLINE vec add_quad(__m512i codes, vec scales, const uint16_t *x, vec total) {
    const __m512i table = _mm512_broadcast_i64x4(
        _mm256_setr_epi16(0, 0x3f00, 0x3f80, 0x3fc0, 0x4000, 0x4040, 0x4080, 0x40c0, (short)0x8000,
                          (short)0xbf00, (short)0xbf80, (short)0xbfc0, (short)0xc000,
                          (short)0xc040, (short)0xc080, (short)0xc0c0));
    vec sums = splat(0);
    for (int k = 0; k < 4; k++) {
        __m512i weights = _mm512_permutexvar_epi16(_mm512_srli_epi16(codes, 4 * k), table);
        __m512i numbers = _mm512_loadu_si512((const void *)(x + 32 * k));
        sums = _mm512_dpbf16_ps(sums, (__m512bh)weights, (__m512bh)numbers);
    }
    return fma_(sums, scales, total);
}

/* Up to 16 scales: a byte is the exponent of a float32, but 0 is 2^-127 and 255 is NaN. */
INLINE vec load_scales(const uint8_t *scales, __mmask16 there) {
    __m512i bytes = _mm512_maskz_cvtepu8_epi32(there, _mm_maskz_loadu_epi8(there, scales));
    __m512i bits = _mm512_max_epu32(_mm512_slli_epi32(bytes, 23), _mm512_set1_epi32(1 << 22));
    __mmask16 nan = _mm512_cmpeq_epi32_mask(bytes, _mm512_set1_epi32(255));
    return _mm512_castsi512_ps(_mm512_mask_set1_epi32(bits, nan, 0x7fc00000));
}

INLINE __mmask16 first_lanes(int64_t n) { return (__mmask16)((1u << n) - 1); }

INLINE float dot_quads(const uint8_t *bytes, const uint8_t *scales, const uint16_t *x,
                       int64_t groups) {
    const __m512i each = _mm512_setr_epi32(0, 0, 0, 0, 1, 1, 1, 1, 2, 2, 2, 2, 3, 3, 3, 3);
    vec s[4] = {splat(0), splat(0), splat(0), splat(0)};
    int64_t g = 0;
    for (; g + 16 <= groups; g += 16) {
        vec sixteen = load_scales(scales + g, first_lanes(16));
        for (int q = 0; q < 4; q++) {
            const uint8_t *here = bytes + BLOCK_BYTES * (g + 4 * q);
            __builtin_prefetch(here + AHEAD);
            __m512i chosen = _mm512_add_epi32(each, _mm512_set1_epi32(4 * q));
            s[q] = add_quad(_mm512_loadu_si512((const void *)here),
                            _mm512_permutexvar_ps(chosen, sixteen), x + BLOCK * g + QUAD * q, s[q]);
        }
    }
    for (; g < groups; g += 4) { /* masks keep the last one from reading past the row */
        int64_t left = groups - g < 4 ? groups - g : 4;
        const uint8_t *here = bytes + BLOCK_BYTES * g;
        __builtin_prefetch(here + AHEAD);
        vec four = _mm512_permutexvar_ps(each, load_scales(scales + g, first_lanes(left)));
        __m512i codes = _mm512_maskz_loadu_epi32(first_lanes(4 * left), here);
        s[0] = add_quad(codes, four, x + BLOCK * g, s[0]);
    }
    return (sum(s[0]) + sum(s[1])) + (sum(s[2]) + sum(s[3]));
}
#else
INLINE float dot_quads(const uint8_t *bytes, const uint8_t *scales, const uint16_t *x,
                       int64_t groups) {
    (void)bytes, (void)scales, (void)x, (void)groups;
    return __builtin_nanf(""); /* never asked for: Python knows the body */
}
#endif

/* ---- 3. Threads ------------------------------------------------------------------------------

   `parallel` is GOMP_parallel of the OpenMP that torch has loaded: it runs a function on that
   many of torch's own threads. A second pool would fight with torch's, which wait by spinning.
   Without it, threads are started for this one call. Chunks are taken from a counter, so it does
   not matter how many threads really come. */

typedef void (*parallel_fn)(void (*)(void *), void *, unsigned, unsigned);

typedef struct {
    void (*run)(const void *job, int64_t first, int64_t end);
    const void *job;
    int64_t next, rows, chunk;
} Work;

static void take_chunks(void *pointer) {
    Work *work = pointer;
    for (;;) {
        int64_t first = __atomic_fetch_add(&work->next, work->chunk, __ATOMIC_RELAXED);
        if (first >= work->rows) return;
        int64_t end = first + work->chunk;
        work->run(work->job, first, end < work->rows ? end : work->rows);
    }
}

static void *take_chunks_in_thread(void *pointer) {
    take_chunks(pointer);
    return 0;
}

enum { MAX_STARTED = 64 };

static void share(Work work, int threads, parallel_fn parallel) {
    if (threads > 1 && parallel) {
        parallel(take_chunks, &work, (unsigned)threads, 0);
        return;
    }
    pthread_t helpers[MAX_STARTED];
    int started = 0;
    while (started < threads - 1 && started < MAX_STARTED &&
           !pthread_create(&helpers[started], 0, take_chunks_in_thread, &work))
        started++;
    take_chunks(&work);
    while (started) pthread_join(helpers[--started], 0);
}

/* ---- 4. What Python calls ---------------------------------------------------------------------

   All strides are in bytes. `out` and `x` are float32, a row after the other. */

int body(void) { return BODY; }

typedef struct { /* one dense matrix */
    const char *weight, *bias; /* bias may be absent; both have one dtype */
    int64_t row_stride, rows, width, bf16;
} Dense;

typedef struct {
    const Dense *m;
    const float *x;
    float *out;
    int64_t tokens;
} DenseJob;

INLINE void dense_rows(const DenseJob *job, int64_t first, int64_t end, int bf16) {
    const Dense *m = job->m;
    for (int64_t r = first; r < end; r++) {
        float bias = m->bias ? one_weight(m->bias, r, bf16) : 0;
        for (int64_t t = 0; t < job->tokens; t++) /* the row stays in cache for the next token */
            job->out[t * m->rows + r] =
                bias + dot_dense(m->weight + r * m->row_stride, bf16, job->x + t * m->width, m->width);
    }
}

static void run_dense(const void *pointer, int64_t first, int64_t end) {
    const DenseJob *job = pointer;
    if (job->m->bf16)
        dense_rows(job, first, end, 1);
    else
        dense_rows(job, first, end, 0);
}

/* out[t] = x[t] @ weight.T + bias */
void dense_matvec(const Dense *m, const float *x, int64_t tokens, float *out, int threads,
                  parallel_fn parallel) {
    DenseJob job = {m, x, out, tokens};
    share((Work){run_dense, &job, 0, m->rows, 16}, threads, parallel);
}

typedef struct { /* the matrices of E experts; rows may lie in two halves, [gate | up] */
    const uint8_t *bytes, *scales;
    const char *bias;
    int64_t expert_bytes, half_bytes, row_bytes;    /* strides of the codes */
    int64_t expert_scales, half_scales, row_scales; /* strides of the scales */
    int64_t expert_bias, bias_bf16;
    int64_t rows, half_rows, groups;
} Packed;

typedef struct {
    const uint8_t *bytes, *scales;
    int64_t at; /* its number in the output */
} Row;

/* The i-th row to read. Files hold gate and up rows in turn, and reading every second row halves
   the speed of memory, so the halves take turns here, too. */
INLINE Row row_of(const Packed *m, int64_t expert, int64_t i) {
    int64_t halves = m->rows / m->half_rows, half = i % halves, r = i / halves;
    return (Row){m->bytes + expert * m->expert_bytes + half * m->half_bytes + r * m->row_bytes,
                 m->scales + expert * m->expert_scales + half * m->half_scales + r * m->row_scales,
                 half * m->half_rows + r};
}

typedef struct {
    const Packed *m;
    const float *scale_of;
    const void *x;
    int quads; /* x is bfloat16, in the order of `dot_quads`; else float32 for `dot_mxfp4` */
    const int64_t *experts, *starts, *x_rows;
    float *out;
} PackedJob;

INLINE float dot_packed(const PackedJob *job, Row row, int64_t token) {
    int64_t groups = job->m->groups, padded = (groups + 3) / 4 * QUAD;
    if (job->quads)
        return dot_quads(row.bytes, row.scales, (const uint16_t *)job->x + token * padded, groups);
    const float *x = (const float *)job->x + token * groups * BLOCK;
    return dot_mxfp4(row.bytes, row.scales, job->scale_of, x, groups);
}

static void run_packed(const void *pointer, int64_t first, int64_t end) {
    const PackedJob *job = pointer;
    const Packed *m = job->m;
    for (int64_t i = first; i < end; i++) {
        int64_t which = i / m->rows, expert = job->experts[which];
        Row row = row_of(m, expert, i % m->rows);
        const char *biases = m->bias + expert * m->expert_bias;
        float bias = m->bias ? one_weight(biases, row.at, m->bias_bf16) : 0;
        for (int64_t p = job->starts[which]; p < job->starts[which + 1]; p++)
            job->out[p * m->rows + row.at] = bias + dot_packed(job, row, job->x_rows[p]);
    }
}

/* out[p] = x[x_rows[p]] @ weight[e].T + bias[e] for each pair p of a token and an expert; pairs
   starts[i] to starts[i + 1] - 1 belong to expert e = experts[i]. Long chunks let memory deliver
   in long runs: 256 rows are a fifth faster than 16, if they leave each thread some to take. */
void packed_matvec(const Packed *m, const float *scale_of, const void *x, int quads,
                   int64_t n_experts, const int64_t *experts, const int64_t *starts,
                   const int64_t *x_rows, float *out, int threads, parallel_fn parallel) {
    PackedJob job = {m, scale_of, x, quads, experts, starts, x_rows, out};
    int64_t rows = n_experts * m->rows, chunk = rows / (16 * (threads > 0 ? threads : 1));
    chunk = chunk < 16 ? 16 : chunk > 256 ? 256 : chunk;
    share((Work){run_packed, &job, 0, rows, chunk}, threads, parallel);
}

typedef struct {
    const Packed *m;
    int64_t expert, item_bytes;
    const char *table;
    char *out;
} UnpackJob;

static void run_unpack(const void *pointer, int64_t first, int64_t end) {
    const UnpackJob *job = pointer;
    const Packed *m = job->m;
    int64_t row_bytes = m->groups * BLOCK * job->item_bytes;
    for (int64_t i = first; i < end; i++) {
        Row row = row_of(m, job->expert, i);
        char *out = job->out + row.at * row_bytes;
        for (int64_t g = 0; g < m->groups; g++) {
            const uint8_t *bytes = row.bytes + BLOCK_BYTES * g;
            const char *numbers = job->table + 16 * job->item_bytes * row.scales[g];
            if (job->item_bytes == 2) {
                copy_block(bytes, (const uint16_t *)numbers, (uint16_t *)out + BLOCK * g);
                continue;
            }
            uint32_t *to = (uint32_t *)out + BLOCK * g;
            for (int b = 0; b < BLOCK_BYTES; b++) {
                to[2 * b] = ((const uint32_t *)numbers)[bytes[b] & 15];
                to[2 * b + 1] = ((const uint32_t *)numbers)[bytes[b] >> 4];
            }
        }
    }
}

/* Write one expert's matrix. table[e][c] is code c times the scale of byte e, in numbers of 2 or
   4 bytes; it comes from Python, so what is written has the very bits of the plain decoder. */
void unpack(const Packed *m, int64_t expert, const char *table, int64_t item_bytes, char *out,
            int threads, parallel_fn parallel) {
    UnpackJob job = {m, expert, item_bytes, table, out};
    share((Work){run_unpack, &job, 0, m->rows, 16}, threads, parallel);
}
