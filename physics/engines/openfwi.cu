// The benchmark's finite-difference scheme (physics/engines/openfwi.py) for one shot in the shared memory of a
// thread-block cluster: second order in time, fourth in space, a sponge of PAD cells on every side, periodic.
//
// Each of the CLUSTER blocks holds a band of rows of both time levels, with two rows of its neighbours' above and
// below it and two columns of the other side's left and right of it, which their owners write as they compute them;
// the first and the last band are neighbours. Nothing but the record goes to global memory. A thread owns ROWS
// consecutive cells of one column, whose values it passes through registers.
//
// Compiled with -D of: NZ, NX (cells of the map), PAD, CLUSTER, GROUPS (threads along z), ROWS (cells a thread),
// COLUMNS (threads along x, at least NX + 2 PAD, of whole warps), THREADS = COLUMNS * GROUPS.
// EPIC_ON_HOST: the same text as C++ for a test without a GPU (tests/physics/cuda_on_host.cpp).

#ifndef EPIC_ON_HOST
#define THREAD ((int)threadIdx.x)
#define BLOCK ((int)blockIdx.x)
extern __shared__ float shared[];

__device__ static unsigned address_in_block(const float *place, int rank) {
    unsigned here = (unsigned)__cvta_generic_to_shared(place), there;
    asm("mapa.shared::cluster.u32 %0, %1, %2;" : "=r"(there) : "r"(here), "r"(rank));
    return there;
}

__device__ static void store_in_block(float *place, int rank, float value) {
    asm volatile("st.shared::cluster.f32 [%0], %1;" ::"r"(address_in_block(place, rank)), "f"(value) : "memory");
}

__device__ static void wait_for_cluster() {
    asm volatile("barrier.cluster.arrive;\nbarrier.cluster.wait;" ::: "memory");
}
#define ON_DEVICE __global__ void __cluster_dims__(CLUSTER, 1, 1) __launch_bounds__(THREADS, 1)
#else
#define ON_DEVICE void
#endif

#define DEEP (NZ + 2 * PAD)
#define WIDE (NX + 2 * PAD)
// Rows of a block's band, and its array: two rows and two columns more on either side.
#define BAND (GROUPS * ROWS)
#define PITCH (WIDE + 4)
#define FIELD ((BAND + 4) * PITCH)

// Rows of the last block's band.
#define LAST_BAND (DEEP - (CLUSTER - 1) * BAND)

// Cells between [a, b] and [c, d] on a ring; 0 or less where they meet.
#ifdef EPIC_ON_HOST
static
#else
__device__ static
#endif
int gap(int a, int b, int c, int d, int ring) {
    int apart = max(c - b, a - d), around = min(max(c + ring - b, a - d - ring), max(c - ring - b, a - d + ring));
    return min(apart, around);
}

// Fourth-order second derivative: centre (of both directions), first and second neighbours.
#define CENTRE (-5.0f)
#define FIRST (4.0f / 3.0f)
#define SECOND (-1.0f / 12.0f)

// velocity (n, NZ, NX) in m/s. sponge (n): strength of the damping, 1/s. fastest (n): cells a step.
// wavelet (n_time). source_columns (n_sources), of the padded grid. record (n, n_time / average, n_receivers,
// n_sources): means of `average` samples, of the receivers receiver_first .. + n_receivers - 1 of the padded row.
extern "C" ON_DEVICE record_shots(
    const float *velocity, const float *sponge, const float *fastest, const float *wavelet,
    const int *source_columns, float *record, int n_sources, int n_time, int average, int source_row,
    int receiver_row, int receiver_first, int n_receivers, float dt_s, float dt_over_dx, int margin) {
    const int rank = BLOCK % CLUSTER, shot = BLOCK / CLUSTER;
    const int sample = shot / n_sources, source = shot % n_sources;
    const int x = THREAD % COLUMNS, group = THREAD / COLUMNS;
    float *alpha = shared + 2 * FIELD, *kept_along_z = alpha + NZ * NX;

    for (int i = THREAD; i < 2 * FIELD; i += THREADS) shared[i] = 0.0f;
    const float *map = velocity + (long)sample * NZ * NX;
    for (int i = THREAD; i < NZ * NX; i += THREADS) {
        float cells_a_step = map[i] * dt_over_dx;
        alpha[i] = cells_a_step * cells_a_step;
    }
    const float strength = sponge[sample] * dt_s;
    for (int i = THREAD; i < BAND; i += THREADS) {
        int z = rank * BAND + i;
        int into = z < PAD ? PAD - 1 - z : z - (PAD + NZ);
        float share = into > 0 ? into / (PAD - 1.0f) : 0.0f;
        kept_along_z[i] = 1.0f - strength * share * share;
    }
    const int source_column = source_columns[source];
    const int into_x = x < PAD ? PAD - 1 - x : x - (PAD + NX);
    const bool beside = x < PAD || x >= PAD + NX;
    const float share_x = into_x > 0 ? into_x / (PAD - 1.0f) : 0.0f;
    const float kept_beside = 1.0f - strength * share_x * share_x;
    const int map_x = min(max(x - PAD, 0), NX - 1);
    const int first = group * ROWS, top = rank * BAND + first, rows = min(ROWS, DEEP - top);
    const int place = (first + 2) * PITCH + x + 2;
    const float cells_a_step = fastest[sample];
    const bool emits = source_row >= top && source_row < top + rows && x == source_column;
    const bool records = receiver_row >= top && receiver_row < top + rows && x >= receiver_first
        && x < receiver_first + n_receivers;
    const float at_source = map[min(max(source_row - PAD, 0), NZ - 1) * NX + map_x] * dt_s;
    float heard = 0.0f;
    wait_for_cluster();

    for (int step = 0; step < n_time; step++) {
        const float *now = shared + (step & 1) * FIELD;
        float *past = shared + (1 - (step & 1)) * FIELD;
        // Cells that no wave can have reached, or from which none comes back in time, are left as they are.
        const int out = (int)(cells_a_step * step) + margin;
        const int back = (int)(cells_a_step * (n_time - step)) + margin;
        const bool reached = x < WIDE && rows > 0
            && gap(x, x, source_column, source_column, WIDE) <= out
            && gap(x, x, receiver_first, receiver_first + n_receivers - 1, WIDE) <= back
            && gap(top, top + rows - 1, source_row, source_row, DEEP) <= out
            && gap(top, top + rows - 1, receiver_row, receiver_row, DEEP) <= back;
        if (reached) {
            const float *here = now + place;
            float *after = past + place;
            float above2 = here[-2 * PITCH], above = here[-PITCH], centre = here[0], below = here[PITCH];
#pragma unroll 2
            for (int r = 0; r < rows; r++) {
                const int at = r * PITCH;
                const float below2 = here[at + 2 * PITCH];
                const float near = above + below + here[at - 1] + here[at + 1];
                const float far = above2 + below2 + here[at - 2] + here[at + 2];
                const float bend = FIRST * near + SECOND * far + CENTRE * centre;
                const float kept = beside ? kept_beside : kept_along_z[first + r];
                const int map_z = min(max(top + r - PAD, 0), NZ - 1);
                after[at] = centre + kept * (centre - after[at]) + alpha[map_z * NX + map_x] * bend;
                above2 = above, above = centre, centre = below, below = below2;
            }
            if (emits) after[(source_row - top) * PITCH] += at_source * at_source * wavelet[step];
            // The outermost two columns are also the other side's halo.
            if (x < 2 || x >= WIDE - 2)
                for (int r = 0; r < rows; r++) after[r * PITCH + (x < 2 ? WIDE : -WIDE)] = after[r * PITCH];
            // A band's first and last two rows are also its neighbours' halo.
            if (group == 0)
                for (int r = 0; r < 2; r++)
                    store_in_block(after + ((rank > 0 ? BAND : LAST_BAND) + r) * PITCH,
                                   rank > 0 ? rank - 1 : CLUSTER - 1, after[r * PITCH]);
            if (top + rows == DEEP || (group == GROUPS - 1 && rank < CLUSTER - 1))
                for (int r = 0; r < 2; r++)
                    store_in_block(after + (r - 2 - first) * PITCH, (rank + 1) % CLUSTER,
                                   after[(rows - 2 + r) * PITCH]);
        }
        if (records) {
            heard += past[place + (receiver_row - top) * PITCH];
            if ((step + 1) % average == 0) {
                const long row = (long)sample * (n_time / average) + step / average;
                record[(row * n_receivers + x - receiver_first) * n_sources + source] = heard / average;
                heard = 0.0f;
            }
        }
        wait_for_cluster();
    }
}
