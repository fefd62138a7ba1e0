// Choosing a group of ids: `choose_group` of autogaze/decoding/choice.py, without a temperature.
#pragma once
#include "picture.h"

// What is wrong with one frame while its ids are chosen: `FrameResidual` of autogaze/network/residual.py.
class FrameResidual {
  public:
    // errors: (places, scales + 1). level: (places), kept up to date.
    FrameResidual(const Grid& grid, const float* errors, uint8_t* level)
        : grid(grid),
          errors(errors),
          level(level),
          now(grid.places()),
          gains(grid.patches),
          known(grid.patches, -1.f),
          scores(grid.patches) {
        for (long n = 0; n < grid.places(); n++) now[n] = errors[n * (grid.scales + 1) + level[n]];
        score();
    }

    float left() const {
        double total = 0;
        for (long n = 0; n < grid.places(); n++) {
            const float share = float(grid.stale_floor) * errors[n * (grid.scales + 1) + grid.scales - 1];
            total += level[n] ? now[n] : std::max(now[n], std::min(share, float(grid.stale_cap) * now[n]));
        }
        return float(total / double(now.size()));
    }

    float score_of(long patch) const { return scores[patch]; }

    void take(long id) {
        for (long k = 0; k < grid.scales; k++)
            for (long n = 0; n < grid.places(); n++)
                if (grid.patch_at[k * grid.places() + n] == id && level[n] <= k) {
                    level[n] = uint8_t(k + 1);
                    now[n] = errors[n * (grid.scales + 1) + k + 1];
                }
        score();
    }

  private:
    const Grid& grid;
    const float* errors;
    uint8_t* level;
    std::vector<float> now, gains, known, scores;  // known: the gains that `scores` were made of

    void score() {
        std::fill(gains.begin(), gains.end(), 0.f);
        for (long k = 0; k < grid.scales; k++) {
            const int32_t* patch = grid.patch_at + k * grid.places();
            for (long n = 0; n < grid.places(); n++)
                if (level[n] <= k) gains[patch[n]] += now[n] - errors[n * (grid.scales + 1) + k + 1];
        }
        for (long p = 0; p < grid.patches; p++) {
            const float gain = std::max(gains[p] / float(grid.places()), 0.f);
            if (gain == known[p]) continue;  // logarithms take most of the time
            known[p] = gain;
            scores[p] = float(grid.strength) * std::log(gain + float(grid.least_gain));
        }
    }
};

// The place of the largest of `logits + allowed`; the first of equals, as `argmax` has it.
inline int64_t best_of(const float* logits, const std::vector<float>& allowed) {
    const int64_t count = allowed.size(), whole = count / LANES * LANES;
    vec block = all(-__builtin_inff());
    for (int64_t i = 0; i < whole; i += LANES) block = larger(block, load(logits + i) + load(&allowed[i]));
    float highest = most(block);
    for (int64_t i = whole; i < count; i++)
        if (logits[i] + allowed[i] > highest) highest = logits[i] + allowed[i];
    int64_t best = 0;
    for (int64_t i = count; i--;)
        if (logits[i] + allowed[i] == highest) best = i;
    return best;
}

// Take the best id of every head of a clip in turn, none twice.
//   logits: (group, vocabulary); taken: (vocabulary - 1), updated; ids: (group); losses: (group), with `error` only.
inline void choose_ids(const float* logits, uint8_t* taken, int64_t* ids, int64_t group, int64_t vocabulary,
                       FrameResidual* error, float* losses) {
    std::vector<float> allowed(vocabulary - 1);  // what is added to a logit
    const auto allow = [&](int64_t i) { allowed[i] = taken[i] ? -__builtin_inff() : error ? error->score_of(i) : 0.f; };
    for (int64_t i = 0; i < vocabulary - 1; i++) allow(i);
    for (int64_t head = 0; head < group; head++) {
        const int64_t id = ids[head] = best_of(logits + head * vocabulary, allowed);
        taken[id] = 1;
        if (error) {
            losses[head] = error->left();
            error->take(id);
            for (int64_t i = 0; i < vocabulary - 1; i++) allow(i);
        } else {
            allow(id);
        }
    }
}
