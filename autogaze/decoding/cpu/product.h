// Matrix products with the rows of the batch in the lanes of a vector.
//
// A panel is up to PANEL vectors of rows side by side, stored [k][lanes]. Weights, and keys, come in blocks of BLOCK
// outputs stored [k][BLOCK]. With many rows one number of a block meets a whole panel; with few, one number of a row
// meets a whole block, so that no lane is idle. Nothing is ever summed across lanes.
#pragma once
#include "vector.h"

constexpr int PANEL = REGISTERS == 32 ? 3 : 2;  // vectors a panel
constexpr int BLOCK = 16;                       // outputs a block
constexpr int FEW = 12;                         // rows, at most

// out[n][lanes] = (ADD: out +) sum over k of a[n * next_n + k * next_k] * x[k][lanes], for N outputs and W vectors.
template <int N, int W, bool ADD>
inline void tile(const float* a, long next_n, long next_k, long count, const vec* x, vec* out) {
    vec sums[N][W];
#pragma GCC unroll 16
    for (int n = 0; n < N; n++)
#pragma GCC unroll 4
        for (int w = 0; w < W; w++) sums[n][w] = ADD ? out[n * W + w] : vec{};
    for (long k = 0; k < count; k++) {
        vec rows[W];
#pragma GCC unroll 4
        for (int w = 0; w < W; w++) rows[w] = x[k * W + w];
#pragma GCC unroll 16
        for (int n = 0; n < N; n++)
#pragma GCC unroll 4
            for (int w = 0; w < W; w++) sums[n][w] += a[n * next_n + k * next_k] * rows[w];
    }
#pragma GCC unroll 16
    for (int n = 0; n < N; n++)
#pragma GCC unroll 4
        for (int w = 0; w < W; w++) out[n * W + w] = sums[n][w];
}

// Outputs that are summed at once: as many as registers hold.
template <int W>
constexpr int at_once() {
    return REGISTERS == 32 ? (W == 1 ? 16 : 8) : (W == 1 ? 8 : 4);
}

// A panel times a multiple of 16 outputs.
template <int W, bool ADD>
inline void multiply(const float* a, long next_n, long next_k, long outputs, long count, const vec* x, vec* out) {
    for (long n = 0; n < outputs; n += at_once<W>())
        tile<at_once<W>(), W, ADD>(a + n * next_n, next_n, next_k, count, x, out + n * W);
}

// Rows of numbers, x[r * next_row + k * next_k], times rows of V vectors, a[k][V * LANES].
//   out: (rows, V * LANES), `next_out` floats from row to row; ADD to what it holds.
//   ahead: in floats, how far behind what is read is what will be read next, to have it brought to the second cache.
template <int R, int V, bool ADD>
inline void strip(const float* x, long next_row, long next_k, const float* a, long count, float* out, long next_out,
                  long ahead) {
    vec sums[R][V];
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) sums[r][v] = ADD ? load(out + r * next_out + v * LANES) : vec{};
    for (long k = 0; k < count; k++) {
        const float* from = a + k * V * LANES;
        vec values[V];
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) values[v] = load(from + v * LANES);
#pragma GCC unroll 4
        for (int i = 0; i < V * LANES; i += 16) __builtin_prefetch(from + ahead + i, 0, 2);
#pragma GCC unroll 16
        for (int r = 0; r < R; r++)
#pragma GCC unroll 4
            for (int v = 0; v < V; v++) sums[r][v] += x[r * next_row + k * next_k] * values[v];
    }
#pragma GCC unroll 16
    for (int r = 0; r < R; r++)
#pragma GCC unroll 4
        for (int v = 0; v < V; v++) store(out + r * next_out + v * LANES, sums[r][v]);
}

// Up to FEW rows; with an odd number or many vectors, up to one row more is read and written.
template <int V, bool ADD>
inline void multiply_few(long rows, const float* x, long next_row, long next_k, const float* a, long count, float* out,
                         long next_out, long ahead) {
    constexpr int MOST = (REGISTERS - 1 - V) / V / 2 * 2, CHUNK = MOST < 2 ? 1 : MOST > FEW ? FEW : MOST;
    for (long r = 0; r < rows; r += CHUNK) {
        const float* from = x + r * next_row;
        float* to = out + r * next_out;
        const long left = rows - r;
        if (left == 1) strip<1, V, ADD>(from, next_row, next_k, a, count, to, next_out, ahead);
        else if (CHUNK >= 12 && left > 10) strip<12, V, ADD>(from, next_row, next_k, a, count, to, next_out, ahead);
        else if (CHUNK >= 10 && left > 8) strip<10, V, ADD>(from, next_row, next_k, a, count, to, next_out, ahead);
        else if (CHUNK >= 8 && left > 6) strip<8, V, ADD>(from, next_row, next_k, a, count, to, next_out, ahead);
        else if (CHUNK >= 6 && left > 4) strip<6, V, ADD>(from, next_row, next_k, a, count, to, next_out, ahead);
        else if (CHUNK >= 4 && left > 2) strip<4, V, ADD>(from, next_row, next_k, a, count, to, next_out, ahead);
        else strip<(CHUNK < 2 ? 1 : 2), V, ADD>(from, next_row, next_k, a, count, to, next_out, ahead);
    }
}

// One block of weights times a panel of `rows` rows, which are few enough for `multiply_few` or not.
template <int W, bool ADD>
inline void multiply_block(const float* block, long count, const vec* x, vec* out, long rows) {
    if (rows > FEW) return multiply<W, ADD>(block, 1, BLOCK, BLOCK, count, x, out);
    float sums[(FEW + 1) * BLOCK];
    multiply_few<BLOCK / LANES, false>(rows, reinterpret_cast<const float*>(x), 1, W * LANES, block, count, sums, BLOCK,
                                       BLOCK * count);
    if (!ADD) std::memset(out, 0, BLOCK * W * sizeof(vec));
    float* lanes = reinterpret_cast<float*>(out);
    for (int i = 0; i < BLOCK; i++)
        for (long r = 0; r < rows; r++) lanes[i * W * LANES + r] += sums[r * BLOCK + i];
}
