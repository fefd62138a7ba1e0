// All ids of a frame in one launch: a cluster of thread blocks decodes one clip until it is done with its frame. The
// kernels of the prefill leave the logits of the first group; every later group is a step, from ids to logits.
//
// Two blocks (SPLIT) share a head: both compute its queries, keys and values and each
// attends to half of the keys; everything else is spread over the blocks by output columns. Results are pushed into
// the shared memory of all blocks of the cluster, so a layer needs four cluster barriers and no trip to device memory.
// Weights and keys stream from L2; those of the next phase are loaded before the barrier that precedes it. Products
// run on tensor cores: K <= 16 rows are one m16n8k16 tile.
//
// The order in which a thread's 8 neighbouring values enter two m16n8k16 products does not matter as long as both
// sides agree, so rows of weights and keys are read as they lie in memory, 16 bytes a thread.
// Same arithmetic as the Triton kernels: residuals and sums in float32, operands in bfloat16; columns of `state` as in
// kernels/state.py. Launched by cluster.py; tests run this file on the CPU through an emulator.

#ifdef AUTOGAZE_EMULATED
#include "cuda_emulator.h"
#else
#include "device.cuh"
#endif
#include "shape.cuh"
#include "tiles.cuh"

struct Step {
    const Arguments &a;
    Shared &s;
    const int thread, warp, lane, g, q, rank, head, split, clip;

    // Copies rows of `WORDS` words, `STRIDE` apart, to the same place in all other blocks, 16 bytes a time.
    template <int COUNT, int WORDS, int STRIDE> DEVICE void tell(float *here) const {
        constexpr int PARTS = WORDS / 4;
        static_assert(WORDS % 4 == 0 && STRIDE % 4 == 0, "16 bytes a time");
        for (int i = thread; i < COUNT * PARTS * (BLOCKS - 1); i += THREADS) {
            const int to = i / (COUNT * PARTS), part = i % (COUNT * PARTS);
            float *from = here + part / PARTS * STRIDE + part % PARTS * 4;
            *reinterpret_cast<float4 *>(remote(from, to + (to >= rank))) = *reinterpret_cast<const float4 *>(from);
        }
    }

    DEVICE void norm() const {
        if (warp < K) norm_row(s.x[warp], s.normed[warp], a.eps, lane);
    }

    // Clears the clip's slots of the frame, which the ids to come need not fill.
    DEVICE void clear(int t) const {
        const size_t out = ((size_t)t * a.batch + clip) * a.slots;
        for (int i = thread; i < a.slots; i += THREADS)
            a.out_ids[out + i] = 0, a.out_chosen[out + i] = 0, a.out_loss[out + i] = float_of(0x7fc00000);  // NaN
    }

    // What the prefill leaves to choose the first group from.
    DEVICE void load_heads_of_prefill() const {
        for (int i = thread; i < HEAD_ROWS; i += THREADS) s.logits[i] = a.logits[(size_t)clip * HEAD_ROWS + i];
        if (PLACES == 0 && thread < K) s.losses[thread] = a.losses[clip * K + thread];
        if (warp == WARPS - 1) s.paste.add_up(lane);
    }

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
    DEVICE void project(int layer, int current, const Weights<MIX_CHUNKS> &w) const {
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
            const float *row = s.products + r * 3 * D;
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

    DEVICE void fetch(Keys &to, int &count, int layer, int block) const {
        const int entry = s.table[a.ring + block];
        const size_t at = (ring_row(layer) + (entry >> 6)) * D;
        count = entry & 63;
        load_keys<true>(to, a.keys + at, a.values + at, count, g, q);
    }

    // This block's half of the keys, one warp a block of keys; the results go to all blocks of the cluster.
    DEVICE void attend(int layer, Keys &keys, int count) const {
        const uint4 low = *reinterpret_cast<const uint4 *>(&s.query[g][8 * q]);
        const uint4 high = *reinterpret_cast<const uint4 *>(&s.query[g + 8][8 * q]);
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
                float *to = s.products + (warp * K + r) * D + 8 * q;
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
            float *part = s.parts[rank][r];
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

    // Adds up the products of SHARES warps, adds them to this block's columns of the residual stream, tells all.
    template <int SHARES> DEVICE void add() const {
        for (int i = thread; i < K * COLUMNS; i += THREADS) {
            const int r = i / COLUMNS, column = i % COLUMNS;
            float sum = s.x[r][rank * COLUMNS + column];
            UNROLL
            for (int share = 0; share < SHARES; ++share) sum += s.products[(share * ROWS + r) * COLUMNS + column];
            s.x[r][rank * COLUMNS + column] = sum;
        }
        sync_block();
        tell<K, COLUMNS, C>(&s.x[0][rank * COLUMNS]);
    }

    DEVICE void mix(const Weights<1> &w) const {
        if (warp < MIX_TILES * MIX_CHUNKS) {
            const int tile = warp % MIX_TILES, chunk = warp / MIX_TILES;
            Tile out = {};
            multiply(out, s.attended[0] + 32 * chunk, WIDE, g, q, w.w[0]);
            store_tile(s.products + chunk * ROWS * COLUMNS, COLUMNS, 8 * tile, out, g, q);
        }
        sync_block();
        add<MIX_CHUNKS>();
    }

    // Gate and up of this block's hidden units.
    DEVICE void gate(const Weights<GATE_EACH> &w) const {
        if (warp < GATE_TILES * GATE_SHARES) {
            const int tile = warp % GATE_TILES, share = warp / GATE_TILES;
            Tile out = {};
            UNROLL
            for (int i = 0; i < GATE_EACH; ++i)
                multiply(out, s.normed[0] + 32 * (share * GATE_EACH + i), WIDE, g, q, w.w[i]);
            store_tile(s.products + share * ROWS * 2 * UNITS, 2 * UNITS, 8 * tile, out, g, q);
        }
        sync_block();
        for (int i = thread; i < K * UNITS / 2; i += THREADS) {
            const int r = i / (UNITS / 2), unit = 2 * (i % (UNITS / 2));
            float act[2];
            for (int u = 0; u < 2; ++u) {
                float gate = 0, up = 0;
                for (int share = 0; share < GATE_SHARES; ++share) {
                    const float *row = s.products + (share * ROWS + r) * 2 * UNITS;
                    gate += row[unit + u], up += row[UNITS + unit + u];
                }
                act[u] = gate / (1.0f + expf(-gate)) * up;
            }
            *reinterpret_cast<unsigned *>(&s.hidden[r][rank * UNITS + unit]) = pack(act[0], act[1]);
        }
        sync_block();
        tell<K, UNITS / 2, DEEP / 2>(reinterpret_cast<float *>(&s.hidden[0][rank * UNITS]));
    }

    DEVICE void down(const Weights<DOWN_EACH> &w) const {
        if (warp < MIX_TILES * DOWN_SHARES) {
            const int tile = warp % MIX_TILES, share = warp / MIX_TILES;
            Tile out = {};
            UNROLL
            for (int i = 0; i < DOWN_EACH; ++i)
                multiply(out, s.hidden[0] + 32 * (share * DOWN_EACH + i), DEEP, g, q, w.w[i]);
            store_tile(s.products + share * ROWS * COLUMNS, COLUMNS, 8 * tile, out, g, q);
        }
        sync_block();
        add<DOWN_SHARES>();
    }

    DEVICE void load_down(Weights<DOWN_EACH> &w, int layer) const {
        const int share = warp / MIX_TILES;
        if (warp < MIX_TILES * DOWN_SHARES)
            w.load(a.down + (size_t)layer * C * HIDDEN, HIDDEN, rank * COLUMNS + 8 * (warp % MIX_TILES),
                   32 * share * DOWN_EACH, g, q);
    }

    DEVICE void load_heads(Weights<MIX_CHUNKS> &w, int tile) const {
        const int row = 8 * tile + g < HEAD_ROWS ? 8 * tile : HEAD_ROWS - 1 - g;  // rows past the end repeat the last
        w.load(a.heads, C, row, 0, g, q);
    }

    // Logits and predicted losses of the newest row, to all blocks.
    DEVICE void read_heads(Weights<MIX_CHUNKS> &w) const {
        if (warp == 0) norm_row(s.x[K - 1], s.normed[0], a.eps, lane);
        sync_block();
        for (int i = warp; i < TILES_A_BLOCK; i += WARPS) {
            const int tile = rank * TILES_A_BLOCK + i;
            if (tile >= HEAD_TILES) break;
            if (i >= WARPS) load_heads(w, tile);
            Tile out = {};
            UNROLL
            for (int c = 0; c < MIX_CHUNKS; ++c) multiply(out, s.normed[0] + 32 * c, WIDE, g, q, w.w[c]);
            float values[8];
            UNROLL
            for (int n = 0; n < 8; ++n) values[n] = shuffle(out.c[n & 1], n >> 1);
            if (lane < BLOCKS) {
                float4 *to = reinterpret_cast<float4 *>(remote(s.logits + 8 * tile, lane));
                to[0] = make_float4(values[0], values[1], values[2], values[3]);
                to[1] = make_float4(values[4], values[5], values[6], values[7]);
            }
        }
        if (PLACES == 0 && warp < K) {
            float sum = 0;
            for (int c = lane; c < C; c += 32) sum += from_bf16(s.normed[0][c]) * from_bf16(a.loss_head[warp * C + c]);
            sum = warp_sum(sum);
            if (lane == 0) s.losses[warp] = sum;
        }
        if (warp == WARPS - 1) s.paste.add_up(lane);
    }

    // One warp takes a group of ids: no repeats, budget, stop rule. Every block decides alike; the first one writes.
    DEVICE void choose(int t, float need, unsigned &taken) const {
        int group = 0;
        float left = PLACES ? s.paste.left : 0, loss = lane < K ? s.losses[lane] : 0.0f;
        for (int i = 0; i < K; ++i) {
            unsigned scores[LANE_PATCHES], best = 0, where = 0xffffffffu;
            UNROLL
            for (int n = 0; n < LANE_PATCHES; ++n) {  // 0 is below every score
                const int patch = lane + 32 * n, known = patch < PATCHES ? patch : 0;
                const bool free = patch < PATCHES && !(taken >> n & 1);
                const float logit = s.paste.add(s.logits[i * VOCABULARY + known], known);
                scores[n] = ordered(logit) & (free ? ~0u : 0u);
                best = scores[n] > best ? scores[n] : best;
            }
            const unsigned top = warp_max(best);
            UNROLL
            for (int n = LANE_PATCHES - 1; n >= 0; --n)
                if (scores[n] == top) where = lane + 32 * n;
            unsigned id = warp_min(where);
            if (id >= PATCHES) id = 0;  // none left: past the budget, so it is not used
            if ((int)(id % 32) == lane) taken |= 1u << (id / 32);
            if (lane == i) group = id, loss = PLACES ? left : loss;
            left -= s.paste.take(i, id, lane);
        }
        loss -= s.paste.taken_besides(lane);
        const int room = s.row[ROOM], used = s.row[SLOTS];
        const bool within = lane < (room < K ? room : K);
        const bool met = a.stops && within && used + lane > 0 && loss <= need;  // a frame has one id at least
        const bool keep = within && !met, goes_on = room > K && !vote(met);
        const unsigned kept = vote(keep);
        const unsigned before = (1u << lane) - 1;  // fed later: the kept ids, then `eos` where the others stood
        const int place = popcount((keep ? kept : ~kept) & before) + (keep ? 0 : popcount(kept));
        if (lane < K) s.group[lane] = group;
        if (rank == 0) {
            const size_t out = ((size_t)t * a.batch + clip) * a.slots + used + lane;
            if (within) a.out_ids[out] = group, a.out_chosen[out] = keep, a.out_loss[out] = loss;
            if (lane < K) a.pend_ids[clip * K + place] = keep ? group : PATCHES, a.pend_slots[clip * K + place] = lane;
        }
        sync_warp();
        if (lane == 0) {
            s.row[PEND_N] = goes_on ? 0 : popcount(kept);
            s.row[ROOM] = room - K, s.row[SLOTS] = used + K, s.row[GROUPS] += 1;
            s.row[ACTIVE] = goes_on;
            if (goes_on) s.row[STEP_OFFSET] += K, s.row[TOTAL] += K;
            s.goes_on = goes_on;
        }
    }
};

// Grid: BLOCKS x clips; cluster: BLOCKS; THREADS threads.
extern "C" GLOBAL CLUSTER(BLOCKS) LAUNCH_BOUNDS(THREADS) void steps(const PARAMETER Arguments a) {
    Shared &s = shared<Shared>();
    const int thread = thread_index(), lane = thread % 32, rank = block_index() % BLOCKS;
    const int clip = block_index() / BLOCKS;
    const Step step = {a, s, thread, thread / 32, lane, lane / 4, lane % 4, rank, rank / SPLIT, rank % SPLIT, clip};
    const int warp = step.warp, g = step.g, q = step.q;
    const int t = a.clock[0], frame = a.clock[1], current = frame % a.ring;
    if (rank == 0) step.clear(t);
    if (a.state[clip * STATE_COLUMNS + ACTIVE] == 0) {  // a frame with no budget; all blocks of the cluster alike
        if (rank == 0 && thread == 0) a.state[clip * STATE_COLUMNS + PEND_N] = 0;
        return;
    }
    const float need = a.stops ? a.requirements[clip * a.chunk + t] : 0.0f;
    for (int i = thread; i < a.ring; i += THREADS) s.table[i] = a.frame_len[clip * a.ring + i];
    if (thread < STATE_COLUMNS)  // as if a group had just been fed, with which the visual tokens end
        s.row[thread] = thread == STEP_OFFSET ? a.frame_len[clip * a.ring + current] - K
                                              : a.state[clip * STATE_COLUMNS + thread];
    for (int i = thread; i < ROWS * WIDE; i += THREADS) (&s.normed[0][0])[i] = (&s.attended[0][0])[i] = to_bf16(0);
    for (int i = thread; i < ROWS * DEEP; i += THREADS) (&s.hidden[0][0])[i] = to_bf16(0);
    for (int i = thread; i < ROWS * NARROW; i += THREADS) (&s.query[0][0])[i] = to_bf16(0);
    for (int i = thread; i < BN * D; i += THREADS) (&s.new_keys[0][0])[i] = (&s.new_values[0][0])[i] = to_bf16(0);
    s.paste.load(a, clip, thread);
    sync_block();
    for (int i = thread; i < K * D / 2; i += THREADS) {
        const int r = i / (D / 2), j = i % (D / 2);
        const float angle = (float)(s.row[GROUP_POSITION] + r) * a.frequencies[j];
        s.cosine[r][j] = cosf(angle), s.sine[r][j] = sinf(angle);
    }
    s.paste.begin(thread);
    step.load_heads_of_prefill();
    unsigned taken = 0;  // patches of this lane, as bits
    sync_cluster();  // nobody pushes into a block that has not begun, or writes what another one still reads
    while (true) {
        if (warp == 0) step.choose(t, need, taken);
        sync_block();
        if (!s.goes_on) break;
        for (int i = thread; i < K * C; i += THREADS)
            s.x[i / C][i % C] = from_bf16(a.embedding[(size_t)s.group[i / C] * C + i % C]);
        step.list_keys(frame);
        Weights<MIX_CHUNKS> long_rows;
        const bf16 *qkv = a.qkv + (size_t)step.head * 3 * D * C;
        if (warp < HEAD_COLUMN_TILES) long_rows.load(qkv, C, 8 * warp, 0, g, q);
        sync_block();
        for (int layer = 0; layer < LAYERS; ++layer) {
            Keys keys;
            int count = 0;
            if (warp * SPLIT + step.split < s.blocks_of_keys) step.fetch(keys, count, layer, warp * SPLIT + step.split);
            step.norm();
            sync_block();
            step.project(layer, current, long_rows);
            step.attend(layer, keys, count);
            Weights<1> mix;
            if (warp < MIX_TILES * MIX_CHUNKS)
                mix.load(a.mix + (size_t)layer * C * C, C, rank * COLUMNS + 8 * (warp % MIX_TILES),
                         32 * (warp / MIX_TILES), g, q);
            sync_cluster();
            step.join();
            sync_block();
            Weights<GATE_EACH> gate;
            if (warp < GATE_TILES * GATE_SHARES)
                gate.load(a.gate_up + ((size_t)layer * BLOCKS + rank) * 2 * UNITS * C, C, 8 * (warp % GATE_TILES),
                          32 * (warp / GATE_TILES) * GATE_EACH, g, q);
            step.mix(mix);
            sync_cluster();
            step.norm();
            sync_block();
            Weights<DOWN_EACH> down;
            step.load_down(down, layer);
            step.gate(gate);
            sync_cluster();
            if (layer + 1 < LAYERS) {
                if (warp < HEAD_COLUMN_TILES)
                    long_rows.load(qkv + (size_t)(layer + 1) * HEADS * 3 * D * C, C, 8 * warp, 0, g, q);
            } else if (warp < TILES_A_BLOCK && rank * TILES_A_BLOCK + warp < HEAD_TILES) {
                step.load_heads(long_rows, rank * TILES_A_BLOCK + warp);
            }
            step.down(down);
            sync_cluster();
        }
        step.read_heads(long_rows);
        sync_cluster();
    }
    if (rank) return;
    if (thread < STATE_COLUMNS) a.state[clip * STATE_COLUMNS + thread] = s.row[thread];
    if (thread == 0) {
        a.frame_len[clip * a.ring + current] = s.row[STEP_OFFSET] + K;
        if (a.stops) atomic_add(a.running, -1);
    }
}
