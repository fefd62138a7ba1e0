// Attention over a cache, with a running softmax: one pass over keys and values.
//
// Keys lie in blocks, [token / BLOCK][HEAD][BLOCK], like weights; values (tokens, HEAD). Tokens `begin` to `end` are
// held; the last of them are new, and query r, new token `first` + r of those from `held` on, sees itself and what is
// before it. Queries are in units of 1 / log2(e).
#pragma once
#include "product.h"

constexpr long KEYS = 128;  // keys whose scores are held at once
constexpr float HIDDEN = -1e30f;

struct Tokens {
    const float *keys, *values;
    long begin, held, end;
};

// A panel of queries. query, out: [HEAD][W]; scores: [KEYS][W], for use here.
template <int HEAD, int W>
void attend_panel(const Tokens& tokens, long first, const vec* query, vec* out, vec* scores) {
    vec peak[W], mass[W];
    for (int w = 0; w < W; w++) peak[w] = all(HIDDEN), mass[w] = vec{};
    for (int i = 0; i < HEAD * W; i++) out[i] = vec{};
    const long own = tokens.held + first, reach = own + W * LANES, end = tokens.end < reach ? tokens.end : reach;
    for (long start = tokens.begin / BLOCK * BLOCK; start < end; start += KEYS) {
        const long from = start < tokens.begin ? tokens.begin : start, to = end < start + KEYS ? end : start + KEYS;
        for (long key = start; key < to; key += BLOCK)
            multiply<W, false>(tokens.keys + key * HEAD, 1, BLOCK, BLOCK, HEAD, query, scores + (key - start) * W);
        for (long key = from > own ? from : own + 1; key < to; key++)
            for (int w = 0; w < W; w++) {
                const ivec query_at = counting() + int32_t(w * LANES);
                vec& score = scores[(key - start) * W + w];
                score = query_at >= int32_t(key - own) ? score : all(HIDDEN);
            }
        vec shrink[W];
        for (int w = 0; w < W; w++) shrink[w] = peak[w];
        for (long i = (from - start) * W; i < (to - start) * W; i += W)
            for (int w = 0; w < W; w++) peak[w] = larger(peak[w], scores[i + w]);
        for (int w = 0; w < W; w++) {
            shrink[w] = power_of_two(shrink[w] - peak[w]);
            mass[w] *= shrink[w];
        }
        for (int d = 0; d < HEAD; d++)
            for (int w = 0; w < W; w++) out[d * W + w] *= shrink[w];
        for (long i = (from - start) * W; i < (to - start) * W; i += W)
            for (int w = 0; w < W; w++) {
                scores[i + w] = power_of_two(scores[i + w] - peak[w]);
                mass[w] += scores[i + w];
            }
        multiply<W, true>(tokens.values + from * HEAD, 1, HEAD, HEAD, to - from, scores + (from - start) * W, out);
    }
    for (int d = 0; d < HEAD; d++)
        for (int w = 0; w < W; w++) out[d * W + w] /= mass[w];
}

// Up to FEW queries; a vector holds keys, or a part of a value.
//   query[r + d * next]: coordinate d of query r; out: (rows, HEAD), and one row to spare; scores: [FEW + 1][KEYS].
template <int HEAD>
void attend_few(const Tokens& tokens, long rows, const float* query, long next, float* out, float* scores) {
    float peak[FEW];
    vec mass[FEW];
    for (long r = 0; r < rows; r++) peak[r] = HIDDEN, mass[r] = vec{};
    for (long i = 0; i < (rows + 1) * HEAD; i++) out[i] = 0.f;
    for (long start = tokens.begin / BLOCK * BLOCK; start < tokens.end; start += KEYS) {
        const long from = start < tokens.begin ? tokens.begin : start;
        const long to = tokens.end < start + KEYS ? tokens.end : start + KEYS;
        const long padded = (to - start + BLOCK - 1) / BLOCK * BLOCK;
        for (long key = 0; key < padded; key += BLOCK)
            multiply_few<BLOCK / LANES, false>(rows, query, 1, next, tokens.keys + (start + key) * HEAD, HEAD,
                                               scores + key, KEYS, KEYS * HEAD);
        for (long r = 0; r < rows; r++) {
            float* row = scores + r * KEYS;
            for (long key = start; key < from; key++) row[key - start] = HIDDEN;
            for (long key = tokens.held + r + 1 > start ? tokens.held + r + 1 : start; key < start + padded; key++)
                row[key - start] = HIDDEN;
            vec block = all(peak[r]);
            for (long i = 0; i < padded; i += LANES) block = larger(block, load(row + i));
            const vec shrink = power_of_two(all(peak[r] - most(block)));
            peak[r] = most(block);
            mass[r] *= shrink;
            for (int d = 0; d < HEAD; d += LANES) store(out + r * HEAD + d, load(out + r * HEAD + d) * shrink);
            for (long i = 0; i < padded; i += LANES) {
                const vec weight = power_of_two(load(row + i) - peak[r]);
                mass[r] += weight;
                store(row + i, weight);
            }
        }
        multiply_few<HEAD / LANES, true>(rows, scores + from - start, KEYS, 1, tokens.values + from * HEAD, to - from,
                                         out, HEAD, KEYS * HEAD);
    }
    for (long r = 0; r < rows; r++)
        for (int d = 0; d < HEAD; d += LANES) store(out + r * HEAD + d, load(out + r * HEAD + d) / sum(mass[r]));
}
