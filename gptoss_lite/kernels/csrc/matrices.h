/* Products of a few vectors with every row of a matrix, dense or MXFP4. Strides are in bytes. */

#ifndef MATRICES_H
#define MATRICES_H

#include <math.h>

#include "dots.h"
#include "threads.h"

typedef struct { /* one dense matrix */
    const char *weight, *bias; /* bias may be absent; both have one dtype */
    int64_t row_stride, rows, width, bf16;
} Dense;

typedef struct {
    const Dense *m;
    const void *x; /* bfloat16 for `dot_halves`, else float32 */
    void *out;
    int64_t tokens;
    int out_bf16;
} DenseJob;

/* What a CPU that multiplies bfloat16 needs x to be, too. */
INLINE int takes_halves(const Dense *m) { return BODY == AVX512_BF16 && m->bf16; }

INLINE void dot_rows(const DenseJob *job, const char *a, const char *b, int64_t t, int bf16,
                     float sums[2]) {
    int64_t width = job->m->width;
    if (takes_halves(job->m))
        dot_halves(a, b, (const uint16_t *)job->x + t * width, width, sums);
    else
        dot_dense(a, b, bf16, (const float *)job->x + t * width, width, sums);
}

INLINE void dense_rows(const DenseJob *job, int64_t first, int64_t end, int bf16) {
    const Dense *m = job->m;
    int64_t half = (end - first + 1) / 2; /* of an odd number the middle row is read twice */
    for (int64_t r = first; r < first + half; r++) {
        int64_t pair[2] = {r, end - half + r - first};
        const char *a = m->weight + pair[0] * m->row_stride;
        const char *b = m->weight + pair[1] * m->row_stride;
        for (int64_t t = 0; t < job->tokens; t++) { /* rows stay in cache for the next token */
            float sums[2];
            dot_rows(job, a, b, t, bf16, sums);
            for (int i = 0; i < 2; i++) {
                float bias = m->bias ? number_at(m->bias, pair[i], bf16) : 0;
                put_number(job->out, t * m->rows + pair[i], job->out_bf16, bias + sums[i]);
            }
        }
    }
}

static void run_dense(const void *pointer, int64_t first, int64_t end) {
    const DenseJob *job = pointer;
    if (job->m->bf16)
        dense_rows(job, first, end, 1);
    else
        dense_rows(job, first, end, 0);
}

/* out[t] = x[t] @ weight.T + bias. Where x must be bfloat16 and is not, it is rounded. */
static int dense(const Dense *m, const void *x, int x_bf16, int64_t tokens, void *out,
                 int out_bf16, int threads, parallel_fn parallel) {
    int halves = takes_halves(m);
    int64_t n = tokens * m->width;
    void *copy = take(n * (halves ? 2 : 4));
    if (!copy) return 1;
    for (int64_t i = 0; i < n; i++) put_number(copy, i, halves, number_at(x, i, x_bf16));
    DenseJob job = {m, copy, out, tokens, out_bf16};
    share((Work){run_dense, &job, m->rows, 8, 0, 0}, threads, parallel);
    free(copy);
    return 0;
}

typedef struct { /* the matrices of E experts; rows may lie in two halves, [gate | up] */
    const uint8_t *bytes, *scales;
    const char *bias;
    int64_t expert_bytes, half_bytes, row_bytes;    /* strides of the codes */
    int64_t expert_scales, half_scales, row_scales; /* strides of the scales */
    int64_t expert_bias, bias_bf16;
    int64_t rows, half_rows, groups;
} Packed;

/* The i-th row to read. Files hold gate and up rows in turn, and reading every second row halves
   the speed of memory, so the halves take turns here, too. */
INLINE Row row_of(const Packed *m, int64_t expert, int64_t i) {
    int64_t halves = m->rows / m->half_rows, half = i % halves, r = i / halves;
    return (Row){m->bytes + expert * m->expert_bytes + half * m->half_bytes + r * m->row_bytes,
                 m->scales + expert * m->expert_scales + half * m->half_scales + r * m->row_scales,
                 half * m->half_rows + r};
}

/* What happens to the sums: nothing, GELU, or a gate on the other half (swiglu and clamped_swiglu
   of ffn.py, whose order of operations this follows). */
enum { NOTHING, GELU, GATE };
typedef struct {
    int64_t kind;
    double alpha, limit, shift;
} Activation;

INLINE float gelu(float x) {
    return 0.5f * x * (1 + tanhf(0.7978845608028654f * (x + 0.044715f * x * x * x)));
}

INLINE float gated(const Activation *act, float gate, float up) {
    float alpha = (float)act->alpha, limit = (float)act->limit;
    gate = gate > limit ? limit : gate; /* a NaN stays one */
    up = up > limit ? limit : up < -limit ? -limit : up;
    return gate / (1 + expf(-alpha * gate)) * (up + (float)act->shift);
}

typedef struct { /* pair p of a token and an expert reads row x_rows[p] of x; pairs starts[i] to
                    starts[i + 1] - 1 belong to expert experts[i] */
    int64_t n_experts, n_pairs;
    const int64_t *experts, *starts, *x_rows;
} Pairs;

typedef struct {
    const Packed *m;
    const Activation *act;
    const Pairs *pairs;
    const float *scale_of;
    const void *x;
    int quads; /* x is bfloat16, in the order of `dot_quads`; else float32, in that of dot_mxfp4 */
    float *sums, *out;
} PackedJob;

INLINE int64_t padded(int64_t groups) { return (groups + 3) / 4 * QUAD; }

/* n, of 1 to TOGETHER, is known when this is compiled. */
INLINE void dot_packed_n(const PackedJob *job, const Row rows[2], const int64_t *x_rows, int n,
                         float out[][2]) {
    int64_t groups = job->m->groups;
    const uint16_t *x[TOGETHER];
    for (int t = 0; t < n; t++) x[t] = (const uint16_t *)job->x + x_rows[t] * padded(groups);
    dot_quads(rows, n, x, groups, out);
}

static void dot_packed(const PackedJob *job, const Row rows[2], const int64_t *x_rows, int n,
                       float out[][2]) {
    int64_t groups = job->m->groups;
    if (job->quads) {
        if (n == 1) dot_packed_n(job, rows, x_rows, 1, out);
        if (n == 2) dot_packed_n(job, rows, x_rows, 2, out);
        if (n == 3) dot_packed_n(job, rows, x_rows, 3, out);
        if (n == 4) dot_packed_n(job, rows, x_rows, 4, out);
        return;
    }
    for (int t = 0; t < n; t++) {
        const float *x = (const float *)job->x + x_rows[t] * groups * BLOCK;
        for (int r = 0; r < 2; r++)
            out[t][r] = dot_mxfp4(rows[r].bytes, rows[r].scales, job->scale_of, x, groups);
    }
}

INLINE void activate(const PackedJob *job, int64_t pair, int64_t row) {
    const float *sums = job->sums + pair * job->m->rows;
    int64_t half = job->m->rows / 2;
    if (job->act->kind == GELU) job->out[pair * job->m->rows + row] = gelu(sums[row]);
    if (job->act->kind == GATE && row < half)
        job->out[pair * half + row] = gated(job->act, sums[row], sums[half + row]);
}

enum { NEAR = 16 }; /* rows whose codes stay in cache while x, a few rows at a time, passes by */

/* Rows first to end - 1 of one expert. */
static void expert_rows(const PackedJob *job, int64_t which, int64_t first, int64_t end) {
    const Packed *m = job->m;
    int64_t expert = job->pairs->experts[which];
    int64_t pair = job->pairs->starts[which], last = job->pairs->starts[which + 1];
    int64_t half = (end - first + 1) / 2; /* of an odd number the middle row is read twice */
    const char *bias = m->bias ? m->bias + expert * m->expert_bias : 0;
    for (int64_t near = first; near < first + half; near += NEAR)
        for (int64_t p = pair; p < last; p += TOGETHER) {
            int n = last - p < TOGETHER ? (int)(last - p) : TOGETHER;
            for (int64_t i = near; i < near + NEAR && i < first + half; i++) {
                Row rows[2] = {row_of(m, expert, i), row_of(m, expert, end - half + i - first)};
                float sums[TOGETHER][2];
                dot_packed(job, rows, job->pairs->x_rows + p, n, sums);
                for (int t = 0; t < n; t++)
                    for (int r = 0; r < 2; r++)
                        job->sums[(p + t) * m->rows + rows[r].at] =
                            sums[t][r] +
                            (bias ? number_at(bias, rows[r].at, m->bias_bf16) : 0);
            }
        }
    for (int64_t p = pair; p < last; p++)
        for (int64_t i = first; i < end; i++) activate(job, p, row_of(m, expert, i).at);
}

static void run_packed(const void *pointer, int64_t first, int64_t end) {
    const PackedJob *job = pointer;
    int64_t rows = job->m->rows;
    while (first < end) {
        int64_t which = first / rows, stop = (which + 1) * rows < end ? (which + 1) * rows : end;
        expert_rows(job, which, first - which * rows, stop - which * rows);
        first = stop;
    }
}

/* Copy x into the order in which codes are decoded: of each block, or of each four, every second
   number together, or every fourth. */
static void *reordered(const void *x, int64_t x_rows, int64_t groups, int bf16, int quads) {
    int64_t width = groups * BLOCK, wide = quads ? padded(groups) : width;
    int64_t size = quads ? QUAD : BLOCK, ways = quads ? 4 : 2, bytes = x_rows * wide * (8 / ways);
    char *copy = take(bytes);
    if (!copy) return 0;
    memset(copy, 0, bytes);
    for (int64_t row = 0; row < x_rows; row++)
        for (int64_t at = 0; at < width; at += size)
            for (int64_t way = 0; way < ways; way++)
                for (int64_t i = way, to = at + way * (size / ways); i < size; i += ways, to++)
                    if (at + i < width)
                        put_number(copy, row * wide + to, quads,
                                   number_at(x, row * width + at + i, bf16));
    return copy;
}

/* out[p] = act(x[x_rows[p]] @ weight[e].T + bias[e]) for each pair p, expert by expert; float32.
   With `quads`, a float32 x is rounded to bfloat16. A gate needs the halves. */
int packed_matvec(const Packed *m, const Activation *act, const Pairs *pairs,
                  const float *scale_of, const void *x, int64_t x_rows, int bf16, int quads,
                  float *out, int threads, parallel_fn parallel) {
    void *copy = reordered(x, x_rows, m->groups, bf16, quads);
    float *sums = act->kind ? take(sizeof(float) * pairs->n_pairs * m->rows) : out;
    if (copy && sums) {
        PackedJob job = {m, act, pairs, scale_of, copy, quads, sums, out};
        share((Work){run_packed, &job, pairs->n_experts * m->rows, 16, 0, 0}, threads, parallel);
    }
    if (sums != out) free(sums);
    free(copy);
    return !copy || !sums;
}

#endif
