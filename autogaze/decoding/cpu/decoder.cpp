// What Python calls: a pass of the gaze decoder on a CPU, the choice of ids, packed weights (backend.py); what is
// wrong with frames (residual.py).
#include "choice.h"
#include "worker.h"

extern "C" {

// Floats of scratch memory that a pass needs, at 64 bytes.
int64_t autogaze_scratch(const Pass* pass) { return Space(*pass).vectors * LANES; }

// Returns 1 if the threads stalled: fewer would have been faster.
int64_t autogaze_pass(const Pass* pass) {
    const Space space(*pass);
    return together(int(pass->threads), pass->parallel, pass->count,
                    [&](int thread, Team& team) { Worker(*pass, space, team, thread).run(); });
}

// See `wait_shortly`.
void autogaze_wait_shortly(Parallel parallel, int64_t processors) { wait_shortly(parallel, unsigned(processors)); }

// A matrix (rows, count) as blocks of weights, times a factor, zeros behind its last row.
//   step: blocks from one to the next in `out`. head_dim: if not 0, of a rotary projection, whose pairs are half a head
//   apart and come to stand side by side.
void autogaze_pack(const float* matrix, int64_t rows, int64_t count, double factor, int64_t head_dim, int64_t step,
                   float* out) {
    for (int64_t row = 0; row < (rows + BLOCK - 1) / BLOCK * BLOCK; row++) {
        const int64_t d = head_dim ? row % head_dim : 0;
        const float* from = matrix + (head_dim ? row - d + d % 2 * (head_dim / 2) + d / 2 : row) * count;
        float* to = out + row / BLOCK * step * BLOCK * count + row % BLOCK;
        for (int64_t k = 0; k < count; k++) to[k * BLOCK] = row < rows ? float(from[k] * factor) : 0.f;
    }
}

// Ids of a group for every clip.
//   scores: (clips, stride), of which group x vocabulary are logits; taken: (clips, vocabulary - 1), updated;
//   ids: (clips, group). Of models with paste error (else `grid` is null): errors (clips, places, scales + 1), level
//   (clips, places), updated, and losses (clips, group), predicted before every id.
void autogaze_choose(const float* scores, uint8_t* taken, int64_t* ids, int64_t clips, int64_t stride, int64_t group,
                     int64_t vocabulary, const Grid* grid, const float* errors, uint8_t* level, float* losses) {
    for (int64_t clip = 0; clip < clips; clip++, scores += stride, taken += vocabulary - 1, ids += group) {
        if (!grid) {
            choose_ids(scores, taken, ids, group, vocabulary, nullptr, nullptr);
            continue;
        }
        const long places = grid->places();
        FrameResidual error(*grid, errors + clip * places * (grid->scales + 1), level + clip * places);
        choose_ids(scores, taken, ids, group, vocabulary, &error, losses + clip * group);
    }
}

// Errors (clips, places, scales + 1) of frames and canvases (clips, 3, H, W).
void autogaze_errors(const Grid* grid, int64_t clips, const float* frames, const float* canvases, float* errors) {
    with_pixels(grid->cell_px, [&](auto pixels) {
        for (int64_t clip = 0; clip < clips; clip++)
            find_errors<decltype(pixels)::value>(*grid, frames + clip * grid->pixels(),
                                                 canvases + clip * grid->pixels(),
                                                 errors + clip * grid->places() * (grid->scales + 1));
    });
}

// Put what looks leave of frames on canvases (clips, 3, H, W): ids and chosen (clips, count).
void autogaze_look(const Grid* grid, int64_t clips, const float* frames, const int64_t* ids, const uint8_t* chosen,
                   int64_t count, float* canvases) {
    std::vector<uint8_t> looked(grid->patches), level(grid->places());
    with_pixels(grid->cell_px, [&](auto pixels) {
        for (int64_t clip = 0; clip < clips; clip++) {
            std::fill(looked.begin(), looked.end(), 0);
            for (int64_t i = clip * count; i < (clip + 1) * count; i++)
                if (chosen[i]) looked[ids[i]] = 1;
            find_levels(*grid, looked, level.data());
            paste<decltype(pixels)::value>(*grid, frames + clip * grid->pixels(), level.data(),
                                           canvases + clip * grid->pixels());
        }
    });
}
}
