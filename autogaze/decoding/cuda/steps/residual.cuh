// What is still wrong with the picture while ids are chosen (autogaze/network/residual.py): scores of patches, and the
// loss predicted before every id. PLACES and SCALES come from the compiler; PLACES is 0 for models without it.
//
// The gain of a patch is the sum of its places' terms, which lie in a row, so that a thread adds up a patch 16 bytes at
// a time, in an order that is the same everywhere: all blocks of a cluster must decide alike. After a pick only
// the places in it and the patches that share a place with it change.

#if PLACES
constexpr int TERMS = SCALES * PLACES + 3 * PATCHES;  // at most: each patch's are filled up with zeros to 16 bytes
constexpr int TOUCHED = SCALES * SCALES * PLACES;     // at most

struct alignas(16) Tables {       // of a grid, made by `grid_tables` of cluster.py
    short first[PATCHES + 1];     // of a patch's terms, counted in fours
    short touching[PATCHES + 1];  // first of a patch's entries of `touched`
    short scale[PATCHES];
    short term[SCALES][PLACES];  // of the patch of each scale that a place lies in
    short place[TERMS];          // whose term it is; PLACES: nobody's
    short touched[TOUCHED];      // patches that share a place with a patch, itself too
};

struct ResidualMap {
    alignas(16) float terms[(TERMS + 3) / 4 * 4];
    Tables tables;
    float errors[SCALES + 1][PLACES];  // at every level: as the place is, and after a look at each scale
    float gains[PATCHES], scores[PATCHES];
    float left, strength;       // left: the predicted loss, before the next group
    float floors[K][33];        // by id of a group and lane: what the id took away from it besides its gain
    signed char level[PLACES];  // of the finest look at each place in this frame: one more than its scale

    DEVICE void load(const Arguments& a, int clip, int thread) {
        const uint4* from = reinterpret_cast<const uint4*>(a.tables);
        uint4* to = reinterpret_cast<uint4*>(&tables);
        for (int i = thread; i < (int)(sizeof(Tables) / 16); i += THREADS) to[i] = from[i];
        for (int i = thread; i < (SCALES + 1) * PLACES; i += THREADS)
            (&errors[0][0])[i] = a.errors[(size_t)clip * (SCALES + 1) * PLACES + i];
        for (int i = thread; i < PLACES; i += THREADS) level[i] = 0;
        for (int i = thread; i < TERMS; i += THREADS) terms[i] = 0;
        if (thread == 0) strength = a.strength[0] * 0.6931471805599453f;  // of logarithms to base 2
    }

    // Once all is loaded; before a look at any place.
    DEVICE void begin(int thread) {
        for (int n = thread; n < PLACES; n += THREADS) set_terms(n, 0);
        sync_block();
        for (int patch = thread; patch < PATCHES; patch += THREADS) score(patch);
    }

    DEVICE void set_terms(int n, int at) {
        const float now = errors[at][n];
        int to[SCALES];
        float after[SCALES];
        UNROLL
        for (int k = 0; k < SCALES; ++k) to[k] = tables.term[k][n], after[k] = errors[k + 1][n];
        UNROLL
        for (int k = 0; k < SCALES; ++k) terms[to[k]] = at <= k ? now - after[k] : 0.0f;
    }

    DEVICE void score(int patch) {
        const float4* from = reinterpret_cast<const float4*>(terms);
        float4 sum = make_float4(0, 0, 0, 0);
        const int last = tables.first[patch + 1];
        UNROLL_BY_4
        for (int i = tables.first[patch]; i < last; ++i) {
            const float4 four = from[i];
            sum.x += four.x, sum.y += four.y, sum.z += four.z, sum.w += four.w;
        }
        const float gain = ((sum.x + sum.y) + (sum.z + sum.w)) * (1.0f / PLACES);
        gains[patch] = gain;
        scores[patch] = strength * log2_(fmaxf(gain, 0.0f) + LEAST_GAIN);
    }

    // How much more a place counts while it is only held: STALE_FLOOR of an error, STALE_CAP times its own at most, as
    // in autogaze/network/residual.py.
    DEVICE float above(int n) const {
        return fminf(fmaxf(STALE_FLOOR * errors[SCALES - 1][n] - errors[0][n], 0.0f), (STALE_CAP - 1) * errors[0][n]);
    }

    // A warp adds up what is left, before a group: from then on every id takes its gain away.
    DEVICE void add_up(int lane) {
        float sum = 0;
        for (int n = lane; n < PLACES; n += 32) sum += errors[level[n]][n] + (level[n] ? 0.0f : above(n));
        sum = warp_sum(sum);
        if (lane == 0) left = sum * (1.0f / PLACES);
    }

    DEVICE float add(float logit, int patch) const { return logit + scores[patch]; }

    // A warp takes an id, and learns what that takes away of what is left. Here and in `set_terms` whatever can be read
    // is read before anything is written, since the compiler waits for each read that follows a write.
    DEVICE float take(int slot, int id, int lane) {
        float no_more = 0;
        const int k = tables.scale[id], last = 4 * tables.first[id + 1];
        const int touching = tables.touching[id] + lane, end = tables.touching[id + 1];
        const int patch = touching < end ? tables.touched[touching] : id;
        const float gain = gains[id];
        UNROLL_BY_1
        for (int i = 4 * tables.first[id] + lane; i < last; i += 32) {
            const int n = tables.place[i];
            if (n < PLACES && level[n] <= k) {
                if (!level[n]) no_more += above(n);
                set_terms(n, k + 1);
                level[n] = k + 1;
            }
        }
        floors[slot][lane] = no_more;
        sync_warp();
        if (touching < end) score(patch);
        for (int i = touching + 32; i < end; i += 32) score(tables.touched[i]);
        sync_warp();
        return gain;
    }

    // Lane i gets what the ids before the i-th of a group took away from the predicted loss besides their gains; added
    // up once a group, since ids wait for each other and this does not.
    DEVICE float taken_besides(int lane) const {
        float own = 0, before = 0;
        if (lane < K)
            for (int i = 0; i < 32; ++i) own += floors[lane][i];
        for (int i = 0; i + 1 < K; ++i) {
            const float one = shuffle(own, i);
            if (i < lane) before += one;
        }
        return before * (1.0f / PLACES);
    }
};
#else
struct ResidualMap {  // there is none: the heads alone score patches and predict losses
    float left;
    DEVICE void load(const Arguments&, int, int) {}
    DEVICE void begin(int) {}
    DEVICE void add_up(int) {}
    DEVICE float add(float logit, int) const { return logit; }
    DEVICE float take(int, int, int) { return 0; }
    DEVICE float taken_besides(int) const { return 0; }
};
#endif
