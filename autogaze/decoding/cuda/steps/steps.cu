// All ids of a frame in one launch: a cluster of thread blocks decodes one clip until it is done with its frame. The
// kernels of the prefill leave the logits of the first group; every later group is a step, from ids to logits.
//
// Two blocks share a head; everything else is spread over the blocks by output columns. Results are pushed into the
// shared memory of all blocks of the cluster, so a layer needs four cluster barriers and no trip to device memory.
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
#include "block.cuh"
#include "attention.cuh"
#include "choice.cuh"

// The layers of a step after attention, and the heads.
struct Layers : Block {
    DEVICE void norm() const {
        if (warp < K) norm_row(s.x[warp], s.normed[warp], a.eps, lane);
    }

    // Adds up the products of SHARES warps, adds them to this block's columns of the residual stream, tells all.
    template <int SHARES>
    DEVICE void add() const {
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

    DEVICE void mix(const Weights<1>& w) const {
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
    DEVICE void gate(const Weights<GATE_EACH>& w) const {
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
                    const float* row = s.products + (share * ROWS + r) * 2 * UNITS;
                    gate += row[unit + u], up += row[UNITS + unit + u];
                }
                act[u] = gate / (1.0f + expf(-gate)) * up;
            }
            *reinterpret_cast<unsigned*>(&s.hidden[r][rank * UNITS + unit]) = pack(act[0], act[1]);
        }
        sync_block();
        tell<K, UNITS / 2, DEEP / 2>(reinterpret_cast<float*>(&s.hidden[0][rank * UNITS]));
    }

    DEVICE void down(const Weights<DOWN_EACH>& w) const {
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

    DEVICE void load_down(Weights<DOWN_EACH>& w, int layer) const {
        const int share = warp / MIX_TILES;
        if (warp < MIX_TILES * DOWN_SHARES)
            w.load(a.down + (size_t)layer * C * HIDDEN, HIDDEN, rank * COLUMNS + 8 * (warp % MIX_TILES),
                   32 * share * DOWN_EACH, g, q);
    }

    DEVICE void load_heads(Weights<MIX_CHUNKS>& w, int tile) const {
        const int row = 8 * tile + g < HEAD_ROWS ? 8 * tile : HEAD_ROWS - 1 - g;  // rows past the end repeat the last
        w.load(a.heads, C, row, 0, g, q);
    }

    // Logits and predicted losses of the newest row, to all blocks.
    DEVICE void read_heads(Weights<MIX_CHUNKS>& w) const {
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
                float4* to = reinterpret_cast<float4*>(remote(s.logits + 8 * tile, lane));
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
};

// What a block finds before the first group: shared memory that is all zeros where nothing will be written, the clip's
// state, angles of the group's positions.
DEVICE void open_block(const Block& block, int current) {
    const Arguments& a = block.a;
    Shared& s = block.s;
    const int thread = block.thread, clip = block.clip;
    for (int i = thread; i < a.ring; i += THREADS) s.table[i] = a.frame_len[clip * a.ring + i];
    if (thread < STATE_COLUMNS)  // as if a group had just been fed, with which the visual tokens end
        s.row[thread] =
            thread == STEP_OFFSET ? a.frame_len[clip * a.ring + current] - K : a.state[clip * STATE_COLUMNS + thread];
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
}

// Grid: BLOCKS x clips; cluster: BLOCKS; THREADS threads.
extern "C" GLOBAL CLUSTER(BLOCKS) LAUNCH_BOUNDS(THREADS) void steps(const PARAMETER Arguments a) {
    Shared& s = shared<Shared>();
    const int thread = thread_index(), lane = thread % 32, rank = block_index() % BLOCKS;
    const int clip = block_index() / BLOCKS, warp = thread / 32, g = lane / 4, q = lane % 4, split = rank % SPLIT;
    const Block block = {a, s, thread, warp, lane, g, q, rank, rank / SPLIT, split, clip};
    const Attention attention = {block};
    const Layers layers = {block};
    const Choice choice = {block};
    const int t = a.clock[0], frame = a.clock[1], current = frame % a.ring;
    if (rank == 0) choice.clear(t);
    if (a.state[clip * STATE_COLUMNS + ACTIVE] == 0) {  // a frame with no budget; all blocks of the cluster alike
        if (rank == 0 && thread == 0) a.state[clip * STATE_COLUMNS + PEND_N] = 0;
        return;
    }
    const float need = a.stops ? a.requirements[clip * a.chunk + t] : 0.0f;
    open_block(block, current);
    choice.load_heads_of_prefill();
    unsigned taken = choice.barred();  // patches of this lane, as bits
    sync_cluster();  // nobody pushes into a block that has not begun, or writes what another one still reads
    while (true) {
        if (warp == 0) choice.choose(t, need, taken);
        sync_block();
        if (!s.goes_on) break;
        for (int i = thread; i < K * C; i += THREADS)
            s.x[i / C][i % C] = from_bf16(a.embedding[(size_t)s.group[i / C] * C + i % C]);
        attention.list_keys(frame);
        Weights<MIX_CHUNKS> long_rows;
        const bf16* qkv = a.qkv + (size_t)block.head * 3 * D * C;
        if (warp < HEAD_COLUMN_TILES) long_rows.load(qkv, C, 8 * warp, 0, g, q);
        sync_block();
        for (int layer = 0; layer < LAYERS; ++layer) {
            Keys keys;
            int count = 0;
            if (warp * SPLIT + split < s.blocks_of_keys) attention.fetch(keys, count, layer, warp * SPLIT + split);
            layers.norm();
            sync_block();
            attention.project(layer, current, long_rows);
            attention.attend(layer, keys, count);
            Weights<1> mix;
            if (warp < MIX_TILES * MIX_CHUNKS)
                mix.load(a.mix + (size_t)layer * C * C, C, rank * COLUMNS + 8 * (warp % MIX_TILES),
                         32 * (warp / MIX_TILES), g, q);
            sync_cluster();
            attention.join();
            sync_block();
            Weights<GATE_EACH> gate;
            if (warp < GATE_TILES * GATE_SHARES)
                gate.load(a.gate_up + ((size_t)layer * BLOCKS + rank) * 2 * UNITS * C, C, 8 * (warp % GATE_TILES),
                          32 * (warp / GATE_TILES) * GATE_EACH, g, q);
            layers.mix(mix);
            sync_cluster();
            layers.norm();
            sync_block();
            Weights<DOWN_EACH> down;
            layers.load_down(down, layer);
            layers.gate(gate);
            sync_cluster();
            if (layer + 1 < LAYERS) {
                if (warp < HEAD_COLUMN_TILES)
                    long_rows.load(qkv + (size_t)(layer + 1) * HEADS * 3 * D * C, C, 8 * warp, 0, g, q);
            } else if (warp < TILES_A_BLOCK && rank * TILES_A_BLOCK + warp < HEAD_TILES) {
                layers.load_heads(long_rows, rank * TILES_A_BLOCK + warp);
            }
            layers.down(down);
            sync_cluster();
        }
        layers.read_heads(long_rows);
        sync_cluster();
    }
    if (rank) return;
    if (thread < STATE_COLUMNS) a.state[clip * STATE_COLUMNS + thread] = s.row[thread];
    if (thread == 0) {
        a.frame_len[clip * a.ring + current] = s.row[STEP_OFFSET] + K;
        if (a.stops) atomic_add(a.running, -1);
    }
}
