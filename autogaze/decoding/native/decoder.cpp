// What Python calls: a pass of the gaze decoder on a CPU, the choice of ids, packed weights (native_pass.py).
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

// A matrix (rows, count) as blocks of weights, zeros behind its last row; inputs times `scale` (count,) if given.
//   step: blocks from one to the next in `out`. head_dim: if not 0, of a rotary projection, whose pairs are half a head
//   apart and come to stand side by side.
void autogaze_pack(const float* matrix, int64_t rows, int64_t count, const float* scale, double factor, int64_t head_dim,
                   int64_t step, float* out) {
    for (int64_t row = 0; row < (rows + BLOCK - 1) / BLOCK * BLOCK; row++) {
        const int64_t d = head_dim ? row % head_dim : 0;
        const float* from = matrix + (head_dim ? row - d + d % 2 * (head_dim / 2) + d / 2 : row) * count;
        float* to = out + row / BLOCK * step * BLOCK * count + row % BLOCK;
        for (int64_t k = 0; k < count; k++)
            to[k * BLOCK] = row < rows ? float(from[k] * (scale ? scale[k] : 1.f) * factor) : 0.f;
    }
}

// The best id of every head in turn, none twice: `choose_group` of choice.py without a temperature.
//   scores: (clips, stride), of which group x vocabulary are logits; taken: (clips, vocabulary - 1), updated;
//   ids: (clips, group).
void autogaze_choose(const float* scores, uint8_t* taken, int64_t* ids, int64_t clips, int64_t stride, int64_t group,
                     int64_t vocabulary) {
    const int64_t ids_there = vocabulary - 1, whole = ids_there / LANES * LANES;
    std::vector<float> allowed(ids_there);  // what is added to a logit
    for (int64_t clip = 0; clip < clips; clip++, taken += ids_there) {
        for (int64_t i = 0; i < ids_there; i++) allowed[i] = taken[i] ? -__builtin_inff() : 0.f;
        for (int64_t head = 0; head < group; head++) {
            const float* logits = scores + clip * stride + head * vocabulary;
            vec block = all(-__builtin_inff());
            for (int64_t i = 0; i < whole; i += LANES) block = larger(block, load(logits + i) + load(&allowed[i]));
            float highest = most(block);
            for (int64_t i = whole; i < ids_there; i++)
                if (logits[i] + allowed[i] > highest) highest = logits[i] + allowed[i];
            int64_t best = 0;
            for (int64_t i = ids_there; i--;)
                if (logits[i] + allowed[i] == highest) best = i;  // the first of equals, as `argmax` does
            taken[best] = 1, allowed[best] = -__builtin_inff();
            ids[clip * group + head] = best;
        }
    }
}

}
