// What one thread does in a pass: new tokens of a batch of clips through all layers, and the heads.
//
// Every thread computes a share of a product's outputs, or some heads' attention, for all rows, and waits for the
// others before what follows. Weights have the norms' weights, and queries their scale, folded in (backend.py).
#pragma once
#include "decoder.h"

class Worker {
  public:
    Worker(const Pass& pass, const Space& space, Team& team, int thread)
        : pass(pass),
          space(space),
          team(team),
          thread(thread),
          rows(pass.clips, pass.rows),
          last(1, pass.clips),
          scale(space.own + thread * space.own_vectors),
          block(scale + space.own_vectors - Space::TILE - Space::SCORES),
          scores(block + Space::TILE),
          weights(pass.weights) {}

    void run() {
        read_tokens();
        team.wait();
        for (long layer = 0; layer < pass.layers; layer++) {
            const float* projection = next_weights(3 * pass.features(), pass.width);
            if (layer + 1 < pass.layers) {
                project(projection, layer);
                attend(layer);
                finish_layer(rows, space.x, space.attended, space.gated);
            } else {
                project_last(projection, layer);
                attend_last(layer);
                finish_layer(last, space.last_x, space.last_attended, space.last_gated);
            }
        }
        heads();
    }

  private:
    const Pass& pass;
    const Space& space;
    Team& team;
    const int thread;
    const Rows rows, last;
    vec *scale, *block, *scores;  // this thread's own
    const float* weights;         // not read yet

    const float* next_weights(long outputs, long count) {
        const float* here = weights;
        weights += (outputs + BLOCK - 1) / BLOCK * BLOCK * count;
        return here;
    }

    // This thread's share of `count` things.
    long share(long count, int of) const { return count * of / team.size; }
    template <class Work>
    void mine(long count, Work work) const {
        for (long i = share(count, thread), end = share(count, thread + 1); i < end; i++) work(i);
    }

    // Tokens and rotations with their rows in lanes; lanes without a row are zero.
    void read_tokens() {
        const long pairs = pass.head_dim;
        rows.panels([&](auto width, long clip, long first, long vector) {
            constexpr int W = decltype(width)::value;
            const long row = first * LANES, there = rows.there(row, W);
            const auto turn = [&](const float* from, vec* to, long features) {
                mine(features, [&](long i) {
                    float* lanes = reinterpret_cast<float*>(to + i * W);
                    for (long r = 0; r < W * LANES; r++) lanes[r] = r < there ? from[r * features + i] : 0.f;
                });
            };
            turn(pass.tokens + (clip * rows.count + row) * pass.width, space.x + vector * pass.width, pass.width);
            if (!clip) turn(pass.turns + row * pairs, space.turns + vector * pairs, pairs);
        });
    }

    // 1 / root of the mean square of every row, into `scale`.
    void norm(const Rows& of, const vec* x) {
        of.panels([&](auto width, long, long, long vector) {
            constexpr int W = decltype(width)::value;
            const vec* from = x + vector * pass.width;
            vec squares[4 * W];
            for (int i = 0; i < 4 * W; i++) squares[i] = vec{};
            for (long i = 0; i < pass.width * W; i += 4 * W)
                for (int j = 0; j < 4 * W; j++) squares[j] += from[i + j] * from[i + j];
            for (int w = 0; w < W; w++) {
                const vec total = (squares[w] + squares[W + w]) + (squares[2 * W + w] + squares[3 * W + w]);
                scale[vector + w] = 1.f / root(total / float(pass.width) + float(pass.epsilon));
            }
        });
    }

    // Scale a block by the norm and turn it by rotary positions: outputs 2 i and 2 i + 1 are a pair.
    template <int W>
    void turn(vec* out, const vec* by, const vec* scales) const {
        for (int i = 0; i < BLOCK; i += 2)
            for (int w = 0; w < W; w++) {
                const vec cosine = by[i * W + w] * scales[w], sine = by[(i + 1) * W + w] * scales[w];
                const vec a = out[i * W + w], b = out[(i + 1) * W + w];
                out[i * W + w] = a * cosine - b * sine;
                out[(i + 1) * W + w] = a * sine + b * cosine;
            }
    }

    // Append a block of keys or values, [BLOCK][W] in lanes, to the cache.
    template <int W>
    void append(long layer, bool key, const vec* from, long feature, long clip, long first) const {
        const long head = clip * pass.heads + feature / pass.head_dim, d = feature % pass.head_dim, row = first * LANES;
        const long token = pass.start + pass.length + row, there = rows.there(row, W);
        float* to = (key ? pass.keys : pass.values)[layer] + head * pass.room * pass.head_dim;
        const float* lanes = reinterpret_cast<const float*>(from);
        for (long t = token; t < token + there; t++, lanes++) {
            float* at = to + (key ? t / BLOCK * BLOCK * pass.head_dim + d * BLOCK + t % BLOCK : t * pass.head_dim + d);
            for (int i = 0; i < BLOCK; i++) at[key ? i * BLOCK : i] = lanes[i * W * LANES];
        }
    }

    // Keys and values, which are blocks `from` on of the projection, and queries, which are those before.
    void project_blocks(const float* projection, long layer, long from) {
        const long blocks = pass.features() / BLOCK;
        norm(rows, space.x);
        rows.panels([&](auto width, long clip, long first, long vector) {
            constexpr int W = decltype(width)::value;
            const vec* x = space.x + vector * pass.width;
            mine(3 * blocks - from, [&](long share) {
                const long index = from + share, part = index / blocks, feature = index % blocks * BLOCK;
                vec* out = part ? block : space.query + vector * pass.features() + feature * W;
                multiply_block<W, false>(projection + index * BLOCK * pass.width, pass.width, x, out,
                                         rows.there(first * LANES, W));
                const vec* by = space.turns + first * pass.head_dim + feature % pass.head_dim * W;
                if (part < 2) turn<W>(out, by, scale + vector);
                else
                    for (int i = 0; i < BLOCK * W; i++) out[i] *= scale[vector + i % W];
                if (part) append<W>(layer, part == 1, out, feature, clip, first);
            });
        });
    }

    void project(const float* projection, long layer) {
        project_blocks(projection, layer, 0);
        team.wait();
    }

    template <class Work>
    void with_head(Work work) const {
        switch (pass.head_dim) {
            case 16: return work(Rows::Width<16>());
            case 32: return work(Rows::Width<32>());
            default: return work(Rows::Width<64>());
        }
    }

    // What the cache holds of one head of one clip, with the new tokens; queries begin at new token `first`.
    Tokens tokens(long layer, long pair, long first, long end) const {
        const long from = pair * pass.room * pass.head_dim, held = pass.start + pass.length;
        return {pass.keys[layer] + from, pass.values[layer] + from, pass.start, held + first, held + end};
    }

    void attend(long layer) {
        mine(pass.clips * pass.heads, [&](long pair) {
            rows.panels_of(pair / pass.heads, [&](auto width, long, long first, long vector) {
                constexpr int W = decltype(width)::value;
                const long at = vector * pass.features() + pair % pass.heads * pass.head_dim * W, row = first * LANES;
                const long there = rows.there(row, W);
                with_head([&](auto head) {
                    constexpr int HEAD = decltype(head)::value;
                    if (there > FEW)
                        return attend_panel<HEAD, W>(tokens(layer, pair, 0, rows.count), row, space.query + at,
                                                     space.attended + at, scores);
                    alignas(64) float out[(FEW + 1) * HEAD];
                    attend_few<HEAD>(tokens(layer, pair, row, row + there), there,
                                     reinterpret_cast<const float*>(space.query + at), W * LANES, out,
                                     reinterpret_cast<float*>(scores));
                    std::memset(space.attended + at, 0, HEAD * W * sizeof(vec));
                    float* lanes = reinterpret_cast<float*>(space.attended + at);
                    for (int d = 0; d < HEAD; d++)
                        for (long r = 0; r < there; r++) lanes[d * W * LANES + r] = out[r * HEAD + d];
                });
            });
        });
        team.wait();
    }

    // Keys and values of all rows; the query of the last row of every clip.
    void project_last(const float* projection, long layer) {
        const long features = pass.features(), row = rows.count - 1;
        project_blocks(projection, layer, features / BLOCK);
        if (!thread)
            last.panels([&](auto width, long, long, long vector) {
                constexpr int W = decltype(width)::value;
                for (long r = 0; r < W * LANES; r++) {
                    const long clip = vector * LANES + r;
                    float* to = reinterpret_cast<float*>(space.last_x + vector * pass.width) + r;
                    for (long i = 0; i < pass.width; i++)
                        to[i * W * LANES] = clip < pass.clips ? row_of(space.x, clip, row, i) : 0.f;
                }
            });
        team.wait();
        norm(last, space.last_x);
        last.panels([&](auto width, long, long, long vector) {
            constexpr int W = decltype(width)::value;
            mine(features / BLOCK, [&](long index) {
                multiply_block<W, false>(projection + index * BLOCK * pass.width, pass.width,
                                         space.last_x + vector * pass.width, block, last.there(vector * LANES, W));
                vec by[BLOCK * W];
                const float* angles = pass.turns + row * pass.head_dim + index * BLOCK % pass.head_dim;
                for (int i = 0; i < BLOCK * W; i++) by[i] = all(angles[i / W]);
                turn<W>(block, by, scale + vector);
                for (long r = 0; r < W * LANES && vector * LANES + r < pass.clips; r++)
                    for (int i = 0; i < BLOCK; i++)
                        space.last_query[(vector * LANES + r) * features + index * BLOCK + i] =
                            reinterpret_cast<float*>(block)[i * W * LANES + r];
            });
        });
        team.wait();
    }

    // Feature i of a row of a clip.
    float row_of(const vec* x, long clip, long row, long i) const {
        const long vector = row / LANES, first = vector / PANEL * PANEL;
        const long width = rows.vectors - first < PANEL ? rows.vectors - first : PANEL;
        const vec* panel = x + (clip * rows.vectors + first) * pass.width;
        return reinterpret_cast<const float*>(panel + i * width + vector - first)[row % LANES];
    }

    void attend_last(long layer) {
        const long features = pass.features();
        mine(pass.clips * pass.heads, [&](long pair) {
            const long clip = pair / pass.heads, feature = pair % pass.heads * pass.head_dim;
            alignas(64) float out[2 * 64];
            with_head([&](auto head) {
                attend_few<decltype(head)::value>(tokens(layer, pair, rows.count - 1, rows.count), 1,
                                                  space.last_query + clip * features + feature, 1, out,
                                                  reinterpret_cast<float*>(scores));
            });
            const long first = clip / LANES / PANEL * PANEL;
            const long width = last.vectors - first < PANEL ? last.vectors - first : PANEL;
            float* to = reinterpret_cast<float*>(space.last_attended + first * features) + clip - first * LANES;
            for (long i = 0; i < pass.head_dim; i++) to[(feature + i) * width * LANES] = out[i];
        });
        team.wait();
    }

    // x += W in, block by block.
    void add_product(const Rows& of, vec* x, const vec* in, long count) {
        const float* matrix = next_weights(pass.width, count);
        of.panels([&](auto width, long, long first, long vector) {
            constexpr int W = decltype(width)::value;
            mine(pass.width / BLOCK, [&](long index) {
                multiply_block<W, true>(matrix + index * BLOCK * count, count, in + vector * count,
                                        x + vector * pass.width + index * BLOCK * W, of.there(first * LANES, W));
            });
        });
        team.wait();
    }

    // What follows attention; blocks of gates and of what they let through alternate.
    void finish_layer(const Rows& of, vec* x, const vec* attended, vec* gated) {
        add_product(of, x, attended, pass.features());
        norm(of, x);
        const float* matrix = next_weights(2 * pass.hidden, pass.width);
        of.panels([&](auto width, long, long first, long vector) {
            constexpr int W = decltype(width)::value;
            const long there = of.there(first * LANES, W);
            mine(pass.hidden / BLOCK, [&](long index) {
                const float* gate = matrix + 2 * index * BLOCK * pass.width;
                multiply_block<W, false>(gate, pass.width, x + vector * pass.width, block, there);
                vec* up = block + BLOCK * W;
                multiply_block<W, false>(gate + BLOCK * pass.width, pass.width, x + vector * pass.width, up, there);
                vec* out = gated + vector * pass.hidden + index * BLOCK * W;
                for (int i = 0; i < BLOCK * W; i++)
                    out[i] = silu(block[i] * scale[vector + i % W]) * (up[i] * scale[vector + i % W]);
            });
        });
        team.wait();
        add_product(of, x, gated, pass.hidden);
    }

    void heads() {
        const long outputs = pass.outputs();
        norm(last, space.last_x);
        last.panels([&](auto width, long, long, long vector) {
            constexpr int W = decltype(width)::value;
            mine((outputs + BLOCK - 1) / BLOCK, [&](long index) {
                multiply_block<W, false>(weights + index * BLOCK * pass.width, pass.width,
                                         space.last_x + vector * pass.width, block, last.there(vector * LANES, W));
                for (int i = 0; i < BLOCK * W; i++) block[i] *= scale[vector + i % W];
                for (long r = 0; r < W * LANES && vector * LANES + r < pass.clips; r++)
                    for (long i = 0; i < BLOCK && index * BLOCK + i < outputs; i++)
                        pass.scores[(vector * LANES + r) * outputs + index * BLOCK + i] =
                            reinterpret_cast<float*>(block)[i * W * LANES + r];
            });
        });
        team.wait();  // which OpenMP would do too, but not notice when it takes long
    }
};
