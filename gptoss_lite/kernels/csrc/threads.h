/* Rows are handed out to threads.

   `parallel` is GOMP_parallel of the OpenMP that torch has loaded: it runs a function on that
   many of torch's own threads. A second pool would fight with torch's, which wait by spinning.
   Without it, threads are started for this one call. Rows are taken from a counter, so it does
   not matter how many threads really come. */

#ifndef THREADS_H
#define THREADS_H

#include <pthread.h>
#include <stdint.h>

typedef void (*parallel_fn)(void (*)(void *), void *, unsigned, unsigned);

typedef struct {
    void (*run)(const void *job, int64_t first, int64_t end);
    const void *job;
    int64_t rows, least; /* hand out at least so many rows at once; an even number, or 1 */
    int64_t next;
    int threads;
} Work;

/* Long runs of rows first, shorter ones towards the end: memory delivers long runs faster, and
   short ones let all threads finish together. */
static void take_rows(void *pointer) {
    Work *work = pointer;
    int64_t first = __atomic_load_n(&work->next, __ATOMIC_RELAXED), end;
    for (;;) {
        do {
            int64_t left = work->rows - first, some = left / (4 * work->threads) * 2;
            if (left <= 0) return;
            if (some < work->least) some = work->least;
            end = first + (some < left ? some : left);
        } while (!__atomic_compare_exchange_n(&work->next, &first, end, 0, __ATOMIC_RELAXED,
                                              __ATOMIC_RELAXED));
        work->run(work->job, first, end);
        first = __atomic_load_n(&work->next, __ATOMIC_RELAXED);
    }
}

static void *take_rows_in_thread(void *pointer) {
    take_rows(pointer);
    return 0;
}

enum { MAX_STARTED = 64 };

static void share(Work work, int threads, parallel_fn parallel) {
    work.threads = threads > 0 ? threads : 1;
    if (threads > 1 && parallel) {
        parallel(take_rows, &work, (unsigned)threads, 0);
        return;
    }
    pthread_t helpers[MAX_STARTED];
    int started = 0;
    while (started < threads - 1 && started < MAX_STARTED &&
           !pthread_create(&helpers[started], 0, take_rows_in_thread, &work))
        started++;
    take_rows(&work);
    while (started) pthread_join(helpers[--started], 0);
}

#endif
