// Attention of a group of ids in one layer. Two blocks (SPLIT) share a head: both compute its queries, keys and values,
// and each attends to half of the keys.

struct Attention : Block {
    // Lists the blocks of keys before this group: whole frames of the window, and the frame so far.
    DEVICE void list_keys(int frame) const {
        const int current = frame % a.ring, oldest = (frame + 1) % a.ring;
        const int filled = frame + 1 < a.ring ? frame + 1 : a.ring;
        const bool evicting = frame >= a.window && a.ring > a.window;
        int at = a.ring;
        for (int slot = 0; slot < filled; ++slot) {
            if (evicting && slot == oldest) continue;
            const int length = slot == current ? s.row[STEP_OFFSET] : s.table[slot];
            const int blocks = (length + BN - 1) / BN;
            for (int i = thread; i < blocks; i += THREADS) {
                const int count = length - i * BN < BN ? length - i * BN : BN;
                s.table[at + i] = ((slot * a.tokens + i * BN) << 6) + count;
            }
            at += blocks;
        }
        if (thread == 0) s.blocks_of_keys = at - a.ring;
    }

    DEVICE size_t ring_row(int layer) const {
        return (((size_t)layer * a.batch + clip) * HEADS + head) * a.ring * a.tokens;
    }

    // Queries, keys and values of this block's head for the group.
    DEVICE void project(int layer, int current, const Weights<MIX_CHUNKS>& w) const {
        if (warp < HEAD_COLUMN_TILES) {
            Tile tile = {};
            UNROLL
            for (int i = 0; i < MIX_CHUNKS; ++i) multiply(tile, s.normed[0] + 32 * i, WIDE, g, q, w.w[i]);
            store_tile(s.products, 3 * D, 8 * warp, tile, g, q);
        }
        sync_block();
        const size_t base = (ring_row(layer) + (size_t)current * a.tokens + s.row[STEP_OFFSET]) * D;
        for (int i = thread; i < K * D / 2; i += THREADS) {
            const int r = i / (D / 2), j = i % (D / 2);
            const float cosine = s.cosine[r][j], sine = s.sine[r][j];
            const float* row = s.products + r * 3 * D;
            const float q0 = row[j], q1 = row[j + D / 2], k0 = row[D + j], k1 = row[D + j + D / 2];
            s.query[r][j] = to_bf16(from_bf16(to_bf16(q0 * cosine - q1 * sine)) * a.scale);
            s.query[r][j + D / 2] = to_bf16(from_bf16(to_bf16(q1 * cosine + q0 * sine)) * a.scale);
            const bf16 low = to_bf16(k0 * cosine - k1 * sine), high = to_bf16(k1 * cosine + k0 * sine);
            const bf16 v0 = to_bf16(row[2 * D + j]), v1 = to_bf16(row[2 * D + j + D / 2]);
            s.new_keys[r][j] = low, s.new_keys[r][j + D / 2] = high;
            s.new_values[r][j] = v0, s.new_values[r][j + D / 2] = v1;
            if (split == 0) {
                a.keys[base + r * D + j] = low, a.keys[base + r * D + j + D / 2] = high;
                a.values[base + r * D + j] = v0, a.values[base + r * D + j + D / 2] = v1;
            }
        }
        sync_block();
    }

    DEVICE void fetch(Keys& to, int& count, int layer, int block) const {
        const int entry = s.table[a.ring + block];
        const size_t at = (ring_row(layer) + (entry >> 6)) * D;
        count = entry & 63;
        load_keys<true>(to, a.keys + at, a.values + at, count, g, q);
    }

    // This block's half of the keys, one warp a block of keys; the results go to all blocks of the cluster.
    DEVICE void attend(int layer, Keys& keys, int count) const {
        const uint4 low = *reinterpret_cast<const uint4*>(&s.query[g][8 * q]);
        const uint4 high = *reinterpret_cast<const uint4*>(&s.query[g + 8][8 * q]);
        Softmax soft = {{-1e30f, -1e30f}, {0, 0}, {}};  // finite: a warp without keys weighs nothing
        const int last = s.blocks_of_keys;
        for (int block = warp * SPLIT + split; block < last; block += WARPS * SPLIT) {
            const Keys now = keys;
            const int held = count;
            if (block + WARPS * SPLIT < last) fetch(keys, count, layer, block + WARPS * SPLIT);
            fold<false>(soft, low, high, now, held, g, q);
        }
        if (split == SPLIT - 1 && warp == WARPS - 1) {
            load_keys<false>(keys, &s.new_keys[0][0], &s.new_values[0][0], BN, g, q);
            fold<true>(soft, low, high, keys, K, g, q);
        }
        UNROLL
        for (int h = 0; h < 2; ++h) {
            const int r = g + 8 * h;
            const float mass = quad_sum(soft.mass[h]);
            if (q == 0) s.peak[warp][r] = soft.peak[h], s.mass[warp][r] = mass;
            if (r < K) {
                float* to = s.products + (warp * K + r) * D + 8 * q;
                UNROLL
                for (int j = 0; j < 4; ++j) to[j] = soft.out[j].c[2 * h], to[4 + j] = soft.out[j].c[2 * h + 1];
            }
        }
        sync_block();
        for (int i = thread; i < K * D; i += THREADS) {
            const int r = i / D, d = i % D;
            float top = s.peak[0][r], sum = 0, mass = 0;
            for (int w = 1; w < WARPS; ++w) top = fmaxf(top, s.peak[w][r]);
            for (int w = 0; w < WARPS; ++w) {
                const float weight = exp2_(s.peak[w][r] - top);
                sum += s.products[(w * K + r) * D + d] * weight;
                mass += s.mass[w][r] * weight;
            }
            float* part = s.parts[rank][r];
            part[d] = sum;
            if (d < 2) part[D + d] = d ? mass : top;
        }
        sync_block();
        tell<K, D + 4, D + 4>(&s.parts[rank][0][0]);
    }

    // Joins the halves of every head.
    DEVICE void join() const {
        for (int i = thread; i < K * C; i += THREADS) {
            const int r = i / C, c = i % C, h = c / D, d = c % D;
            float top = s.parts[h * SPLIT][r][D], sum = 0, mass = 0;
            for (int p = 1; p < SPLIT; ++p) top = fmaxf(top, s.parts[h * SPLIT + p][r][D]);
            for (int p = 0; p < SPLIT; ++p) {
                const float *part = s.parts[h * SPLIT + p][r], weight = exp2_(part[D] - top);
                sum += part[d] * weight, mass += part[D + 1] * weight;
            }
            s.attended[r][c] = to_bf16(sum / mass);
        }
    }
};
