/* What Python calls, for few tokens on a CPU.

   build.py builds this folder on first use. A decoded token reads every weight that it uses once,
   so the aim is to read the file's own bytes, in the file's own order, as fast as memory delivers
   them. Never build it with -ffast-math: that flag makes the whole process flush small numbers to
   zero.

     vectors.h    the few instructions that differ between CPUs
     dots.h       dot products of one row
     threads.h    rows are handed out
     matrices.h   all rows of a matrix
     attention.h  queries, keys, values and sinks
     step.h       a whole token

   All strides are in bytes. Functions return 0, or 1 if there is no memory for their notes. */

#include "attention.h"
#include "matrices.h"
#include "step.h"

int body(void) { return BODY; }

/* out[t] = x[t] @ weight.T + bias; everything has the weight's dtype */
int dense_matvec(const Dense *m, const void *x, int64_t tokens, void *out, int threads,
                 parallel_fn parallel) {
    return dense(m, x, (int)m->bf16, tokens, out, (int)m->bf16, threads, parallel);
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
int unpack(const Packed *m, int64_t expert, const char *table, int64_t item_bytes, char *out,
           int threads, parallel_fn parallel) {
    UnpackJob job = {m, expert, item_bytes, table, out};
    share((Work){run_unpack, &job, m->rows, 16, 0, 0}, threads, parallel);
    return 0;
}
