// How the work of a step is shared out for a model (C, HEADS, D, SPLIT, LAYERS, HIDDEN, K, VOCABULARY, PLACES and
// SCALES come from the compiler, as do PRODUCTS, the columns of `state` and the numbers of the residual map: `defines`
// of cluster.py), what the host passes, and what a block keeps in shared memory.

constexpr int BLOCKS = HEADS * SPLIT;  // of a cluster
constexpr int WARPS = 12, THREADS = 32 * WARPS;
constexpr int ROWS = 16;                // of a tile; K of them count
constexpr int COLUMNS = C / BLOCKS;     // of the output projection and of the MLP's second matrix, a block
constexpr int UNITS = HIDDEN / BLOCKS;  // hidden units, a block
constexpr int HEAD_ROWS = K * VOCABULARY;
constexpr int HEAD_TILES = (HEAD_ROWS + 7) / 8;
constexpr int TILES_A_BLOCK = (HEAD_TILES + BLOCKS - 1) / BLOCKS;
constexpr int BN = 32;                                             // keys a block of attention
constexpr int WIDE = C + 32, DEEP = HIDDEN + 32, NARROW = D + 64;  // padded rows: no bank conflicts of 16-byte reads
constexpr int PATCHES = VOCABULARY - 1, LANE_PATCHES = (PATCHES + 31) / 32;
constexpr int MIX_CHUNKS = C / 32, DOWN_CHUNKS = HIDDEN / 32;
constexpr int MIX_TILES = COLUMNS / 8, GATE_TILES = 2 * UNITS / 8, HEAD_COLUMN_TILES = 3 * D / 8;

// Warps that share the terms of a tile: as many as divide them evenly.
DEVICE constexpr int largest_share(int most, int of) {
    return most < 1 || of % most == 0 ? most : largest_share(most - 1, of);
}
constexpr int GATE_SPARE = WARPS / GATE_TILES < MIX_CHUNKS ? WARPS / GATE_TILES : MIX_CHUNKS;
constexpr int GATE_SHARES = largest_share(GATE_SPARE, MIX_CHUNKS), GATE_EACH = MIX_CHUNKS / GATE_SHARES;
constexpr int DOWN_SHARES = largest_share(WARPS / MIX_TILES, DOWN_CHUNKS), DOWN_EACH = DOWN_CHUNKS / DOWN_SHARES;

static_assert(D == 32, "a head is one 32-wide row of keys");
static_assert(K <= ROWS && C % 32 == 0 && HIDDEN % 32 == 0 && BLOCKS <= 16, "shape");
static_assert(C % BLOCKS == 0 && COLUMNS % 8 == 0 && HIDDEN % BLOCKS == 0 && UNITS % 8 == 0, "columns a block");
static_assert(MIX_TILES * MIX_CHUNKS <= WARPS && HEAD_COLUMN_TILES <= WARPS && K <= WARPS, "one task a warp");
static_assert(GATE_SHARES >= 1 && DOWN_SHARES >= 1, "a warp takes one share");

enum Column { COLUMN_NAMES, STATE_COLUMNS };  // of `state`: see `COLUMNS` of buffers.py

struct Arguments {
    const bf16* embedding;      // (VOCABULARY, C)
    const bf16* qkv;            // (LAYERS, HEADS, 3 D, C), norm folded in, as all below
    const bf16* mix;            // (LAYERS, C, C)
    const bf16* gate_up;        // (LAYERS, BLOCKS, 2 UNITS, C)
    const bf16* down;           // (LAYERS, C, HIDDEN)
    const bf16* heads;          // (K VOCABULARY, C)
    const bf16* loss_head;      // (K, C)
    const float* frequencies;   // (D / 2)
    bf16 *keys, *values;        // (LAYERS, B, HEADS, ring, tokens, D)
    int* state;                 // (B, STATE_COLUMNS)
    int* frame_len;             // (B, ring)
    const int* clock;           // (2): frame of the chunk, frame of the clip
    const float* requirements;  // (B, chunk)
    const float* logits;        // (B, K, VOCABULARY) of the frame's first group
    const float* losses;        // (B, K) that the heads predict for it; not read where there are PLACES
    const float* errors;        // (B, SCALES + 1, PLACES) of the frame; this and the next two: see residual.cuh
    const short* tables;        // `Tables`
    const float* strength;      // (1)
    const signed char* barred;  // (PATCHES) not 0: may not be chosen
    int* pend_ids;              // (B, K)
    int* out_ids;               // (chunk, B, slots)
    signed char* out_chosen;
    float* out_loss;
    int* running;
    float eps, scale;  // of the norm; of the scores, with log2(e) in it
    int batch, ring, tokens, window, chunk, slots;
    int stops;  // 0: there are no requirements
};

#include "residual.cuh"

struct Shared {
    alignas(16) float x[ROWS][C];               // residual stream, equal in all blocks
    alignas(16) float parts[BLOCKS][K][D + 4];  // attention of every block: outputs, peak, mass
    alignas(16) float logits[HEAD_TILES * 8];
    alignas(16) float products[PRODUCTS];  // of a phase, before they are added up
    float peak[WARPS][ROWS], mass[WARPS][ROWS];
    float cosine[K][D / 2], sine[K][D / 2];
    float losses[K];
    alignas(16) bf16 normed[ROWS][WIDE];  // operand of a product
    alignas(16) bf16 attended[ROWS][WIDE];
    alignas(16) bf16 hidden[ROWS][DEEP];
    alignas(16) bf16 query[ROWS][NARROW];
    alignas(16) bf16 new_keys[BN][D], new_values[BN][D];
    int group[ROWS];
    int row[STATE_COLUMNS];  // of `state`
    int blocks_of_keys, goes_on;
    ResidualMap paste;
    int table[1];  // of `ring` entries, tokens of every frame; then of every block of keys
                   // (first token << 6) + tokens: as many as there are
};

static_assert(WARPS * K * D <= PRODUCTS && MIX_CHUNKS * ROWS * COLUMNS <= PRODUCTS, "products");
static_assert(DOWN_SHARES * ROWS * COLUMNS <= PRODUCTS && GATE_SHARES * ROWS * 2 * UNITS <= PRODUCTS, "products");
