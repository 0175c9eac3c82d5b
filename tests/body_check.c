/* Checks one body of vectors.h, and the dot products in dots.h that are made of it, without
   Python: for a CPU that is only emulated, and with the compiler's checks of memory. Every array
   ends where its data ends, so that one byte read past it is seen. */

#include "dots.h"

#include <math.h>
#include <stdio.h>

static const double VALUE[16] = {0,    0.5,  1,  1.5,  2,  3,  4,  6,
                                 -0.0, -0.5, -1, -1.5, -2, -3, -4, -6};
static long compared, wrong;

/* ---- random numbers and arrays --------------------------------------------------------------- */

static uint64_t draw(void) { /* xorshift64*, of which the upper half is the better one */
    static uint64_t state = 20250805;
    state ^= state >> 12, state ^= state << 25, state ^= state >> 27;
    return state * 2685821657736338717u >> 32;
}

/* Random bytes that start `off` past an aligned address; `start - off` is what to free. */
static void *array(int64_t n_bytes, int off) {
    uint8_t *start = malloc((size_t)(n_bytes + off));
    for (int64_t i = 0; i < n_bytes + off; i++) start[i] = (uint8_t)draw();
    return start + off;
}

static void *numbers(int64_t n, int bf16, int off) {
    char *start = array(n * (bf16 ? 2 : 4), off);
    for (int64_t i = 0; i < n; i++) put_number(start, i, bf16, (float)draw() / 0x1p31f - 1);
    return start;
}

static void expect(int is_right) {
    compared++;
    wrong += !is_right;
}

/* Any order of n float32 sums errs by n roundings of the sum of |w x|. */
static void near(float got, double exact, double size, int64_t n) {
    if (isnan(exact))
        expect(isnan(got));
    else if (size < 1e38) /* float32 ends at 3.4e38, and bfloat16 products lose what is below 1e-38 */
        expect(fabs(got - exact) <= (double)(n + 3) * 0x1p-24 * size + 0x1p-120);
}

/* ---- the parts --------------------------------------------------------------------------------- */

static void check_arithmetic(void) {
    float *a = numbers(LANES, 0, 0), *b = numbers(LANES, 0, 4), *c = numbers(LANES, 0, 0);
    uint16_t *h = numbers(LANES, 1, 2);
    float out[4][16];
    double total = 0;
    store(out[0], add(load(a), load(b)));
    store(out[1], fma_(load(a), load(b), load(c)));
    store(out[2], load_bf16(h));
    store(out[3], splat(a[0]));
    for (int i = 0; i < LANES; i++) {
        expect(out[0][i] == a[i] + b[i]);
        near(out[1][i], (double)a[i] * b[i] + c[i], fabs(a[i] * b[i]) + fabs(c[i]), 1);
        expect(out[2][i] == number_at(h, i, 1));
        expect(out[3][i] == a[0]);
        total += a[i];
    }
    near(sum(load(a)), total, LANES, LANES);
    free(a), free(b - 1), free(c), free(h - 1);
}

/* Each code at each place, and bits as they are: minus zero is one of them. */
static void check_decode(int off) {
    uint8_t *bytes = array(BLOCK_BYTES, off);
    uint16_t *table = array(32, 2), *copy = array(2 * BLOCK, 2);
    vec halves[BLOCK / LANES];
    float out[BLOCK];
    decode(bytes, halves);
    for (int i = 0; i < BLOCK / LANES; i++) store(out + LANES * i, halves[i]);
    copy_block(bytes, table, copy);
    for (int i = 0; i < BLOCK_BYTES; i++)
        for (int high = 0; high < 2; high++) {
            int code = bytes[i] >> 4 * high & 15;
            expect(out[BLOCK_BYTES * high + i] == (float)VALUE[code]);
            expect(copy[2 * i + high] == table[code]);
        }
    free(bytes - off), free(table - 1), free(copy - 1);
}

static void check_dense(int64_t width, int bf16, int off) {
    char *rows[2] = {numbers(width, bf16, off), numbers(width, bf16, off)};
    uint16_t *halves = numbers(width, 1, 2);
    float *x = numbers(width, 0, 0), out[2], other[2];
    for (int64_t i = 0; i < width && bf16; i++) x[i] = number_at(halves, i, 1);
    dot_dense(rows[0], rows[1], bf16, x, width, out);
    dot_halves(rows[0], rows[1], halves, width, other);
    for (int r = 0; r < 2; r++) {
        double exact = 0, size = 0;
        for (int64_t i = 0; i < width; i++) {
            double product = (double)number_at(rows[r], i, bf16) * x[i];
            exact += product, size += fabs(product);
        }
        near(out[r], exact, size, width);
        if (bf16 && BODY == AVX512_BF16) near(other[r], exact, size, width);
        free(rows[r] - off);
    }
    free(x), free(halves - 1);
}

static void check_packed(int64_t groups, int extreme, int off) {
    static const uint8_t ends[4] = {0, 1, 254, 255};
    static float scale_of[256];
    int64_t width = groups * BLOCK, padded = (groups + 3) / 4 * QUAD;
    uint16_t *x = numbers(width, 1, 0), *quads = array(2 * padded, 0);
    float *split = array(4 * width, 0), got[2], other[TOGETHER][2];
    const uint16_t *turns[TOGETHER]; /* x, and x with every number doubled, in turn */
    Row rows[2];
    for (int i = 0; i < 256; i++) scale_of[i] = i < 255 ? (float)ldexp(1, i - 127) : NAN;
    memset(quads, 0, (size_t)(2 * padded));
    for (int64_t i = 0; i < width; i++) {
        split[i / BLOCK * BLOCK + i % 2 * BLOCK_BYTES + i % BLOCK / 2] = number_at(x, i, 1);
        quads[i / QUAD * QUAD + i % 4 * BLOCK + i % QUAD / 4] = x[i];
    }
    for (int r = 0; r < 2; r++) {
        uint8_t *scales = array(groups, off);
        for (int64_t g = 0; g < groups; g++)
            scales[g] = extreme ? ends[scales[g] % (groups > 4 ? 3 : 4)] : 115 + scales[g] % 20;
        rows[r] = (Row){array(BLOCK_BYTES * groups, off), scales, r};
        got[r] = dot_mxfp4(rows[r].bytes, scales, scale_of, split, groups);
    }
    uint16_t *doubled = array(2 * padded, 0);
    for (int64_t i = 0; i < padded; i++)
        put_number(doubled, i, 1, 2 * number_at(quads, i, 1));
    for (int t = 0; t < TOGETHER; t++) turns[t] = t % 2 ? doubled : quads;
    dot_quads(rows, TOGETHER, turns, groups, other);
    for (int r = 0; r < 2; r++) {
        double exact = 0, size = 0;
        for (int64_t i = 0; i < width; i++) {
            int code = rows[r].bytes[i / 2] >> 4 * (i % 2) & 15;
            double product = VALUE[code] * scale_of[rows[r].scales[i / BLOCK]] * number_at(x, i, 1);
            exact += product, size += fabs(product);
        }
        near(got[r], exact, size, width);
        for (int t = 0; t < TOGETHER && BODY == AVX512_BF16; t++)
            near(other[t][r], exact * (1 + t % 2), size * (1 + t % 2), width);
        free((void *)(rows[r].bytes - off)), free((void *)(rows[r].scales - off));
    }
    free(x), free(quads), free(doubled), free(split);
}

int main(void) {
    for (int i = 0; i < 200; i++) {
        check_arithmetic();
        check_decode(i % 4);
    }
    for (int64_t width = 1; width <= 260; width++)
        for (int bf16 = 0; bf16 < 2; bf16++) check_dense(width, bf16, (int)width % 4);
    for (int64_t groups = 1; groups <= 90; groups++)
        for (int extreme = 0; extreme < 2; extreme++)
            for (int i = 0; i < 4; i++) check_packed(groups, extreme, i);
    printf("body %d: %ld compared, %ld wrong\n", BODY, compared, wrong);
    return wrong > 0;
}
