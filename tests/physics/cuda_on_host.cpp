// physics/engines/openfwi.cu as C++: every thread of a cluster is a context of its own, which runs until it waits for the
// others. Blocks of a cluster hold their shared memory side by side.
#include <ucontext.h>

#include <algorithm>
#include <vector>

using std::max;
using std::min;

static int now_running, now_cluster;
static std::vector<float> memory;
static std::vector<ucontext_t> contexts;
static ucontext_t scheduler;

#define THREAD (now_running % THREADS)
#define BLOCK (now_cluster * CLUSTER + now_running / THREADS)
#define shared (memory.data() + (long)(now_running / THREADS) * SHARED_FLOATS)

static void wait_for_cluster() {
    int me = now_running;
    swapcontext(&contexts[me], &scheduler);
}

static void store_in_block(float *place, int rank, float value) {
    memory[(place - shared) + (long)rank * SHARED_FLOATS] = value;
}

#define EPIC_ON_HOST
#include "openfwi.cu"

static struct {
    const float *velocity, *sponge, *fastest, *wavelet;
    const int *source_columns;
    float *record;
    int n_sources, n_time, average, source_row, receiver_row, receiver_first, n_receivers;
    float dt_s, dt_over_dx;
    int margin;
} a;

static void one_thread() {
    record_shots(a.velocity, a.sponge, a.fastest, a.wavelet, a.source_columns, a.record, a.n_sources, a.n_time,
                 a.average, a.source_row, a.receiver_row, a.receiver_first, a.n_receivers, a.dt_s, a.dt_over_dx,
                 a.margin);
}

extern "C" void run_on_host(int n_clusters, const float *velocity, const float *sponge, const float *fastest,
                            const float *wavelet, const int *source_columns, float *record, int n_sources,
                            int n_time, int average, int source_row, int receiver_row, int receiver_first,
                            int n_receivers, float dt_s, float dt_over_dx, int margin) {
    a = {velocity, sponge, fastest, wavelet, source_columns, record, n_sources, n_time, average, source_row,
         receiver_row, receiver_first, n_receivers, dt_s, dt_over_dx, margin};
    const int n = CLUSTER * THREADS, stack = 1 << 15;
    std::vector<char> stacks((long)n * stack);
    for (now_cluster = 0; now_cluster < n_clusters; now_cluster++) {
        memory.assign((long)CLUSTER * SHARED_FLOATS, 1e30f);
        contexts.assign(n, ucontext_t());
        for (int i = 0; i < n; i++) {
            getcontext(&contexts[i]);
            contexts[i].uc_stack.ss_sp = &stacks[(long)i * stack];
            contexts[i].uc_stack.ss_size = stack;
            contexts[i].uc_link = &scheduler;
            makecontext(&contexts[i], one_thread, 0);
        }
        // Every thread waits as often as any other: once before the first step and once after each.
        for (int turn = 0; turn < n_time + 2; turn++)
            for (now_running = 0; now_running < n; now_running++)
                swapcontext(&scheduler, &contexts[now_running]);
    }
}
