/* One token through the whole model of gpt-oss: every block, the last norm, and the output head.

   Started one by one from Python, the twenty operations of a block take far longer than by
   themselves: what Python needs for them has left the CPU's caches by the time the weights have
   passed through. The residual stream is float32 here. */

#ifndef STEP_H
#define STEP_H

#include <time.h>

#include "attention.h"
#include "matrices.h"

enum { PROJECTIONS, ATTENTION, EXPERTS, UNEMBEDDING, REST, PARTS }; /* where the time goes */

typedef struct { /* one block, and its part of the KV cache; all dense numbers have one dtype */
    Dense q, k, v, o, router;
    Packed up, down;
    const char *attn_norm, *ffn_norm, *sinks; /* sinks may be absent */
    char *keys, *values;                      /* the first row that the token sees */
    int64_t key_strides[2], value_strides[2]; /* of head and row */
    int64_t rows;                             /* seen so far; the token's own row comes next */
} Block;

typedef struct {
    const Block *blocks;
    const char *norm;
    Dense unembed;
    Activation act;
    const float *scale_of;
    int64_t n_blocks, width, heads, kv_heads, head_width, n_experts, n_active, bf16, quads;
    double eps;
} Model;

typedef struct { /* room for what a block writes down, and how to get help */
    float *x, *read, *q, *k, *v, *mixed, *delta, *logits, *hidden, *answers;
    int threads;
    parallel_fn parallel;
    double *seconds, last; /* of each part so far, and the time of the last look; or nothing */
} Notes;

/* What has passed since the last look went into this part. */
static void spent(Notes *n, int part) {
    struct timespec now;
    if (!n->seconds) return;
    clock_gettime(CLOCK_MONOTONIC, &now);
    double time = (double)now.tv_sec + 1e-9 * (double)now.tv_nsec;
    if (n->last > 0) n->seconds[part] += time - n->last;
    n->last = time;
}

enum { BYTES_PER_THREAD = 1 << 17 }; /* as in build.py */

static int threads_for(const Notes *n, int64_t bytes) {
    return bytes / BYTES_PER_THREAD < n->threads ? (int)(bytes / BYTES_PER_THREAD) : n->threads;
}

static int multiply(const Dense *m, const float *x, float *out, const Notes *n) {
    return dense(m, x, 0, 1, out, 0, threads_for(n, m->rows * m->row_stride), n->parallel);
}

static void rms_norm(const float *x, int64_t width, const char *weight, int bf16, double eps,
                     float *out) {
    float squares[2];
    dot_dense((const char *)x, (const char *)x, 0, x, width, squares);
    float factor = 1 / sqrtf(squares[0] / (float)width + (float)eps);
    for (int64_t i = 0; i < width; i++) out[i] = x[i] * factor * number_at(weight, i, bf16);
}

/* Turn each pair (i, i + width / 2) of every head. */
static void rotate(float *x, int64_t heads, int64_t width, const float *cos, const float *sin) {
    int64_t half = width / 2;
    for (float *head = x; head < x + heads * width; head += width)
        for (int64_t i = 0; i < half; i++) {
            float first = head[i], second = head[half + i];
            head[i] = first * cos[i] - second * sin[i];
            head[half + i] = second * cos[i] + first * sin[i];
        }
}

static void keep(char *rows, const int64_t strides[2], int64_t row, const Model *m,
                 const float *heads) {
    for (int64_t h = 0; h < m->kv_heads; h++)
        for (int64_t i = 0; i < m->head_width; i++)
            put_number(rows + h * strides[0] + row * strides[1], i, (int)m->bf16,
                       heads[h * m->head_width + i]);
}

static int read_attention(const Model *m, const Block *b, const float *cos, const float *sin,
                          Notes *n) {
    int64_t width = m->head_width, keys = b->rows + 1;
    if (multiply(&b->q, n->read, n->q, n) || multiply(&b->k, n->read, n->k, n) ||
        multiply(&b->v, n->read, n->v, n))
        return 1;
    spent(n, PROJECTIONS);
    rotate(n->q, m->heads, width, cos, sin);
    rotate(n->k, m->kv_heads, width, cos, sin);
    keep(b->keys, b->key_strides, b->rows, m, n->k);
    keep(b->values, b->value_strides, b->rows, m, n->v);
    spent(n, REST);
    Attention a = {
        .q = (const char *)n->q, .k = b->keys, .v = b->values, .sinks = b->sinks,
        .out = (char *)n->mixed, .batch = 1, .heads = m->heads, .kv_heads = m->kv_heads,
        .queries = 1, .keys = keys, .width = width, .window = keys,
        .q_strides = {0, 4 * width, 0},
        .k_strides = {0, b->key_strides[0], b->key_strides[1]},
        .v_strides = {0, b->value_strides[0], b->value_strides[1]},
        .bf16 = m->bf16, .sinks_bf16 = m->bf16, .q_bf16 = 0, .scale = 1 / sqrt((double)width)};
    int64_t bytes = 2 * keys * m->kv_heads * width * (m->bf16 ? 2 : 4);
    if (attend(&a, threads_for(n, bytes), n->parallel)) return 1;
    spent(n, ATTENTION);
    int failed = multiply(&b->o, n->mixed, n->delta, n);
    spent(n, PROJECTIONS);
    return failed;
}

enum { MOST_ACTIVE = 64 }; /* as in step.py, which refuses more */

/* The n_active largest logits, of equal ones the first, and a softmax over those alone. */
static void choose(const Model *m, const float *logits, int64_t *chosen, float *shares) {
    float total = 0;
    for (int64_t a = 0; a < m->n_active; a++) {
        int64_t best = -1;
        for (int64_t e = 0; e < m->n_experts; e++) {
            int taken = 0;
            for (int64_t i = 0; i < a; i++) taken |= chosen[i] == e;
            if (!taken && (best < 0 || logits[e] > logits[best])) best = e;
        }
        chosen[a] = best;
        total += shares[a] = expf(logits[best] - logits[chosen[0]]);
    }
    for (int64_t a = 0; a < m->n_active; a++) shares[a] /= total;
}

static int ask_experts(const Model *m, const Block *b, Notes *n) {
    int64_t chosen[MOST_ACTIVE], starts[MOST_ACTIVE + 1], zeros[MOST_ACTIVE] = {0};
    float shares[MOST_ACTIVE];
    static const Activation nothing = {NOTHING, 0, 0, 0};
    if (multiply(&b->router, n->read, n->logits, n)) return 1;
    choose(m, n->logits, chosen, shares);
    spent(n, REST);
    for (int64_t a = 0; a <= m->n_active; a++) starts[a] = a;
    Pairs up = {m->n_active, m->n_active, chosen, starts, zeros};
    Pairs down = {m->n_active, m->n_active, chosen, starts, starts};
    if (packed_matvec(&b->up, &m->act, &up, m->scale_of, n->read, 1, 0, (int)m->quads, n->hidden,
                      n->threads, n->parallel) ||
        packed_matvec(&b->down, &nothing, &down, m->scale_of, n->hidden, m->n_active, 0,
                      (int)m->quads, n->answers, n->threads, n->parallel))
        return 1;
    spent(n, EXPERTS);
    for (int64_t i = 0; i < m->width; i++) {
        n->delta[i] = 0;
        for (int64_t a = 0; a < m->n_active; a++)
            n->delta[i] += shares[a] * n->answers[a * m->width + i];
    }
    return 0;
}

static int run_blocks(const Model *m, const float *cos, const float *sin, Notes *n) {
    int bf16 = (int)m->bf16;
    for (const Block *b = m->blocks; b < m->blocks + m->n_blocks; b++) {
        rms_norm(n->x, m->width, b->attn_norm, bf16, m->eps, n->read);
        spent(n, REST);
        if (read_attention(m, b, cos, sin, n)) return 1;
        for (int64_t i = 0; i < m->width; i++) n->x[i] += n->delta[i];
        rms_norm(n->x, m->width, b->ffn_norm, bf16, m->eps, n->read);
        if (ask_experts(m, b, n)) return 1;
        for (int64_t i = 0; i < m->width; i++) n->x[i] += n->delta[i];
    }
    return 0;
}

/* Read one token, whose embedding this is, into the KV cache; write the logits of the next, and, if
   asked for, how many seconds each of the PARTS took. */
int next_logits(const Model *m, const void *embedding, const float *cos, const float *sin,
                void *logits, double *seconds, int threads, parallel_fn parallel) {
    int64_t q_width = m->heads * m->head_width, kv_width = m->kv_heads * m->head_width;
    int64_t hidden = m->blocks[0].down.groups * BLOCK;
    int64_t sizes[] = {m->width, m->width, q_width, kv_width, kv_width, q_width,
                       m->width, m->n_experts, m->n_active * hidden, m->n_active * m->width};
    Notes n = {.threads = threads, .parallel = parallel, .seconds = seconds};
    float **places[] = {&n.x, &n.read, &n.q, &n.k, &n.v, &n.mixed,
                        &n.delta, &n.logits, &n.hidden, &n.answers};
    int64_t total = 0;
    for (int i = 0; i < 10; i++) total += (sizes[i] + 15) / 16 * 16;
    float *room = take(sizeof(float) * total), *free_part = room;
    if (!room) return 1;
    for (int i = 0; i < 10; i++) { /* each begins at a cache line */
        *places[i] = free_part;
        free_part += (sizes[i] + 15) / 16 * 16;
    }
    spent(&n, REST);
    as_floats(embedding, m->width, (int)m->bf16, n.x);
    int bf16 = (int)m->bf16, failed = run_blocks(m, cos, sin, &n);
    rms_norm(n.x, m->width, m->norm, bf16, m->eps, n.read);
    spent(&n, REST);
    if (!failed) failed = dense(&m->unembed, n.read, 0, 1, logits, bf16, threads, parallel);
    spent(&n, UNEMBEDDING);
    free(room);
    return failed;
}

#endif
