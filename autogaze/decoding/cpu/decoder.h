// What a pass of the gaze decoder is given, and where it keeps what it works on.
#pragma once
#include "attention.h"
#include "team.h"

// Mirrored by `Passes` in backend.py.
struct Pass {
    int64_t width, heads, head_dim, hidden, layers, vocabulary, group;
    int64_t clips, rows;          // new tokens of a clip: `rows`
    int64_t room, start, length;  // of the caches: tokens allocated, where those held begin, how many they are
    int64_t threads;
    double epsilon;        // of the norms
    const float* weights;  // packed: of every layer [query, key, value], out, [gate, up], down; then the heads
    const float* tokens;   // (clips, rows, width)
    const float* turns;    // (rows, head_dim / 2, 2) cosine and sine
    float* const* keys;    // of every layer: (clips, heads, room / BLOCK, head_dim, BLOCK)
    float* const* values;  // of every layer: (clips, heads, room, head_dim)
    float* scratch;
    float* scores;  // (clips, group x vocabulary + group) logits, predicted losses
    Parallel parallel;
    Count count;

    long features() const { return heads * head_dim; }
    long outputs() const { return group * vocabulary + group; }
};

// Rows of a batch in panels. Of a buffer with F features, the panel that begins at vector v of the batch begins at
// v x F vectors.
struct Rows {
    long clips, count, vectors;  // rows and vectors of a clip

    Rows(long clips, long count) : clips(clips), count(count), vectors((count + LANES - 1) / LANES) {}

    long all() const { return clips * vectors; }

    // Rows of a panel whose first row in its clip is `row`.
    long there(long row, int width) const { return count - row < width * LANES ? count - row : width * LANES; }

    // Call work(width, clip, first, vector) for every panel: `first` is its first vector in the clip, `vector` in the
    // batch; the width is a constant of the type of its argument.
    template <class Work>
    void panels(Work work) const {
        for (long clip = 0; clip < clips; clip++) panels_of(clip, work);
    }

    template <class Work>
    void panels_of(long clip, Work work) const {
        for (long first = 0; first < vectors; first += PANEL) {
            const long vector = clip * vectors + first, left = vectors - first;
            if (PANEL >= 3 && left >= 3) work(Width<3>(), clip, first, vector);
            else if (left >= 2) work(Width<2>(), clip, first, vector);
            else work(Width<1>(), clip, first, vector);
        }
    }

    template <int W>
    struct Width {
        static constexpr int value = W;
    };
};

// Where things lie in the scratch memory. The last layer needs one row a clip after its keys and values: the clips
// are then rows of one batch.
struct Space {
    vec *x, *query, *attended, *gated, *turns;
    vec *last_x, *last_attended, *last_gated;
    float* last_query;  // (clips, features)
    vec* own;           // of every thread, `own_vectors` each: scales of the norm, one block twice, scores
    long own_vectors, vectors;

    static constexpr long TILE = 2 * BLOCK * PANEL, ROWS = (FEW + 1) * KEYS / LANES;
    static constexpr long SCORES = KEYS * PANEL > ROWS ? KEYS * PANEL : ROWS;

    explicit Space(const Pass& pass) {
        const Rows rows(pass.clips, pass.rows), last(1, pass.clips);
        const long features = pass.features();
        vec* next = reinterpret_cast<vec*>(pass.scratch);
        const auto take = [&](long count) {
            vec* here = next;
            next += count;
            return here;
        };
        x = take(rows.all() * pass.width), query = take(rows.all() * features), attended = take(rows.all() * features);
        gated = take(rows.all() * pass.hidden), turns = take(rows.vectors * pass.head_dim);
        last_x = take(last.all() * pass.width), last_attended = take(last.all() * features);
        last_gated = take(last.all() * pass.hidden);
        last_query = reinterpret_cast<float*>(take((pass.clips * features + LANES - 1) / LANES));
        own_vectors = (rows.all() > last.all() ? rows.all() : last.all()) + TILE + SCORES;
        own = take(own_vectors * pass.threads);
        vectors = next - reinterpret_cast<vec*>(pass.scratch);
    }
};
