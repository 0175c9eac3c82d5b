/* Attention from a few queries to the keys before them, with a sink in the softmax. */

#ifndef ATTENTION_H
#define ATTENTION_H

#include <math.h>

#include "dots.h"
#include "threads.h"

typedef struct { /* q [B, H, T, width], k and v [B, K, S, width], out [B, H, T, width] in a row */
    const char *q, *k, *v, *sinks; /* sinks may be absent */
    char *out;
    int64_t batch, heads, kv_heads, queries, keys, width, window;
    int64_t q_strides[3], k_strides[3], v_strides[3]; /* of batch, head and token */
    int64_t bf16, sinks_bf16, q_bf16; /* of k and v; of the sinks; of q and out */
    double scale;
} Attention;

enum { QUERIES = 8 }; /* that share the loads of a value: what fits into registers */

/* out[g] = sum over s of shares[g][s] * v[s], for numbers `at` to `at` + LANES - 1 of v */
INLINE void mix(const Attention *a, const char *v, const float *shares, int64_t keys, int n,
                int64_t at, float *out) {
    vec totals[QUERIES];
    for (int g = 0; g < n; g++) totals[g] = splat(0);
    for (int64_t s = 0; s < keys; s++) {
        vec value = load_weights(v + s * a->v_strides[2], at, (int)a->bf16);
        for (int g = 0; g < n; g++)
            totals[g] = fma_(value, splat(shares[g * keys + s]), totals[g]);
    }
    for (int g = 0; g < n; g++) store(out + g * a->width + at, totals[g]);
}

static void mix_values(const Attention *a, const char *v, const float *shares, int64_t keys,
                       int64_t group, float *out) {
    for (int64_t g = 0; g < group;) {
        int64_t n = group - g < QUERIES ? 1 : QUERIES, at = 0;
        const float *some = shares + g * keys;
        for (; at + LANES <= a->width; at += LANES) {
            if (n == QUERIES)
                mix(a, v, some, keys, QUERIES, at, out + g * a->width);
            else
                mix(a, v, some, keys, 1, at, out + g * a->width);
        }
        for (; at < a->width; at++)
            for (int64_t i = 0; i < n; i++) {
                float total = 0;
                for (int64_t s = 0; s < keys; s++)
                    total += some[i * keys + s] *
                             number_at(v + s * a->v_strides[2], at, (int)a->bf16);
                out[(g + i) * a->width + at] = total;
            }
        g += n;
    }
}

/* Softmax with one more logit, the sink, whose share goes nowhere. */
static void soften(float *scores, int64_t n, const float *sink) {
    float most = sink ? *sink : scores[0], total;
    for (int64_t s = 0; s < n; s++) most = scores[s] > most ? scores[s] : most;
    total = sink ? expf(*sink - most) : 0;
    for (int64_t s = 0; s < n; s++) total += scores[s] = expf(scores[s] - most);
    for (int64_t s = 0; s < n; s++) scores[s] /= total;
}

typedef struct {
    const Attention *a;
    int failed;
} AttentionJob;

/* One key head and the queries at one place that read it. */
static void attend_group(const Attention *a, int64_t b, int64_t head, int64_t t, float *room) {
    int64_t group = a->heads / a->kv_heads, last = a->keys - a->queries + t, width = a->width;
    int64_t first = last - a->window + 1 > 0 ? last - a->window + 1 : 0, keys = last - first + 1;
    const char *k = a->k + b * a->k_strides[0] + head * a->k_strides[1] + first * a->k_strides[2];
    const char *v = a->v + b * a->v_strides[0] + head * a->v_strides[1] + first * a->v_strides[2];
    float *query = room, *mixed = query + width, *scores = mixed + group * width;
    for (int64_t g = 0; g < group; g++) {
        int64_t h = head * group + g;
        const char *q = a->q + b * a->q_strides[0] + h * a->q_strides[1] + t * a->q_strides[2];
        for (int64_t i = 0; i < width; i++)
            query[i] = number_at(q, i, (int)a->q_bf16) * (float)a->scale;
        float *own = scores + g * keys;
        for (int64_t s = 0; s < keys; s += 2) { /* of an odd number the last is computed twice */
            int64_t next = s + 1 < keys ? s + 1 : s;
            float two[2];
            dot_dense(k + s * a->k_strides[2], k + next * a->k_strides[2], (int)a->bf16, query,
                      width, two);
            own[s] = two[0];
            own[next] = two[1];
        }
        float sink = a->sinks ? number_at(a->sinks, h, (int)a->sinks_bf16) : 0;
        soften(own, keys, a->sinks ? &sink : 0);
    }
    mix_values(a, v, scores, keys, group, mixed);
    for (int64_t g = 0; g < group; g++) {
        int64_t row = (b * a->heads + head * group + g) * a->queries + t;
        for (int64_t i = 0; i < width; i++)
            put_number(a->out, row * width + i, (int)a->q_bf16, mixed[g * width + i]);
    }
}

static void run_attention(const void *pointer, int64_t first, int64_t end) {
    AttentionJob *job = (AttentionJob *)pointer;
    const Attention *a = job->a;
    int64_t group = a->heads / a->kv_heads;
    float *room = take(sizeof(float) * (a->width + group * (a->width + a->keys)));
    if (!room) {
        __atomic_store_n(&job->failed, 1, __ATOMIC_RELAXED);
        return;
    }
    for (int64_t i = first; i < end; i++) {
        int64_t t = i % a->queries, head = i / a->queries % a->kv_heads;
        attend_group(a, i / a->queries / a->kv_heads, head, t, room);
    }
    free(room);
}

/* Query t reads the `window` keys up to its own place, keys - queries + t. */
int attend(const Attention *a, int threads, parallel_fn parallel) {
    AttentionJob job = {a, 0};
    int64_t rows = a->batch * a->kv_heads * a->queries;
    share((Work){run_attention, &job, rows, 1, 0, 0}, threads, parallel);
    return job.failed;
}

#endif
