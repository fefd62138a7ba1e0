// What is wrong with the picture of a frame, and what looks leave of a frame: `ResidualMap` of
// autogaze/network/residual.py.
#pragma once
#include <algorithm>
#include <cmath>
#include <type_traits>
#include <vector>
#include "vector.h"

// Mirrored by `NativeResidualMap` in residual.py.
struct Grid {
    int64_t side, cell_px;  // places in a row of a frame, pixels in a row of a place
    int64_t scales, patches;
    const int64_t* blocks;        // (scales) pixels in a row of a block whose mean a look at a scale leaves
    const int32_t* patch_at;      // (scales, side x side) the patch that a place lies in
    double l1, steps;             // weights of absolute differences, and of steps between neighbours
    double strength, least_gain;  // of scores; the gain that no patch falls below
    // a place that nobody has looked at: share of an error at least, times its own at most
    double stale_floor, stale_cap;

    double means;  // of a perceptual map: weight of the means of blocks, and how it responds
    double contrast_floor, contrast_power, power, least_error;
    const double* factors;  // (scales + 1) of errors at each level; null: the map is not perceptual

    long places() const { return side * side; }
    long row() const { return side * cell_px; }    // pixels
    long pixels() const { return row() * row(); }  // of a frame
};

// Pixels of a place.
template <int PX>
struct Place {
    float at[PX][PX];

    void read(const float* from, long row) {
        for (int y = 0; y < PX; y++) std::memcpy(at[y], from + y * row, sizeof at[y]);
    }

    void write(float* to, long row) const {
        for (int y = 0; y < PX; y++) std::memcpy(to + y * row, at[y], sizeof at[y]);
    }

    // Means of blocks.
    void blur(const Place& sharp, int block) {
        for (int top = 0; top < PX; top += block) {
            float total[PX];
            std::memcpy(total, sharp.at[top], sizeof total);
            for (int y = 1; y < block; y++)
                for (int x = 0; x < PX; x++) total[x] += sharp.at[top + y][x];
            for (int left = 0; left < PX; left += block) {
                float mean = 0;
                for (int x = 0; x < block; x++) mean += total[left + x];
                std::fill_n(total + left, block, mean / float(block * block));
            }
            for (int y = 0; y < block; y++) std::memcpy(at[top + y], total, sizeof total);
        }
    }
};

// Adds up the difference of two places, column by column.
template <int PX>
struct Difference {
    static constexpr int MEANS = 4;  // pixels in a row of the blocks whose means are compared
    float value[PX] = {}, down[PX] = {}, across[PX] = {};
    float means = 0;  // of absolute means of blocks, added up

    void add_means(const Place<PX>& a, const Place<PX>& b) {
        for (int top = 0; top < PX; top += MEANS)
            for (int left = 0; left < PX; left += MEANS) {
                float total = 0;
                for (int y = top; y < top + MEANS; y++)
                    for (int x = left; x < left + MEANS; x++) total += a.at[y][x] - b.at[y][x];
                means += std::fabs(total) / (MEANS * MEANS);
            }
    }

    void add(const Place<PX>& a, const Place<PX>& b) {
        float before[PX], now[PX];
        for (int y = 0; y < PX; y++) {
            for (int x = 0; x < PX; x++) now[x] = a.at[y][x] - b.at[y][x];
            for (int x = 0; x < PX; x++) value[x] += std::fabs(now[x]);
            for (int x = 0; y && x < PX; x++) down[x] += std::fabs(now[x] - before[x]);
            for (int x = 0; x + 1 < PX; x++) across[x] += std::fabs(now[x + 1] - now[x]);
            std::memcpy(before, now, sizeof now);
        }
    }

    double error(const Grid& grid) const {
        float values = 0, steps = 0;
        for (int x = 0; x < PX; x++) values += value[x], steps += down[x] + across[x];
        const double blocks = double(PX / MEANS) * (PX / MEANS);
        return grid.l1 * values / (PX * PX) + grid.steps * steps / (PX * (PX - 1)) + grid.means * means / blocks;
    }
};

// The standard deviation of a place's pixels, what a perceptual map divides by.
template <int PX>
double contrast(const Place<PX>& place) {
    double total = 0, squares = 0;
    for (int y = 0; y < PX; y++) {
        float row = 0, square = 0;
        for (int x = 0; x < PX; x++) row += place.at[y][x], square += place.at[y][x] * place.at[y][x];
        total += row, squares += square;
    }
    const double mean = total / (PX * PX);
    return std::sqrt(std::max(0.0, squares / (PX * PX) - mean * mean));
}

// Of one frame, (side x side, scales + 1): each place as the canvas is, and after a look at each scale.
template <int PX>
void find_errors(const Grid& grid, const float* frame, const float* canvas, float* errors) {
    std::vector<Difference<PX>> found(grid.scales + 1);
    Place<PX> sharp, other;
    for (long place = 0; place < grid.places(); place++, errors += grid.scales + 1) {
        const long corner = place / grid.side * PX * grid.row() + place % grid.side * PX;
        std::fill(found.begin(), found.end(), Difference<PX>());
        sharp.read(frame + corner, grid.row()), other.read(canvas + corner, grid.row());
        found[0].add(sharp, other);
        if (grid.factors) found[0].add_means(sharp, other);
        for (long k = 0; k < grid.scales; k++) {
            if (grid.blocks[k] == 1) continue;  // nothing is wrong
            other.blur(sharp, int(grid.blocks[k]));
            found[k + 1].add(sharp, other);
            if (grid.factors) found[k + 1].add_means(sharp, other);
        }
        if (!grid.factors) {
            for (long k = 0; k <= grid.scales; k++) errors[k] = float(found[k].error(grid));
            continue;
        }
        const double share = std::pow(contrast(sharp) + grid.contrast_floor, grid.contrast_power);
        for (long k = 0; k <= grid.scales; k++)
            errors[k] = float(std::pow(found[k].error(grid) / share + grid.least_error, grid.power) * grid.factors[k]);
    }
}

// Put what looks at levels (side x side) leave of a frame on its canvas.
template <int PX>
void paste(const Grid& grid, const float* frame, const uint8_t* level, float* canvas) {
    Place<PX> sharp, blurred;
    for (long place = 0; place < grid.places(); place++) {
        if (!level[place]) continue;
        const long corner = place / grid.side * PX * grid.row() + place % grid.side * PX;
        sharp.read(frame + corner, grid.row());
        blurred.blur(sharp, int(grid.blocks[level[place] - 1]));
        blurred.write(canvas + corner, grid.row());
    }
}

// The finest level at which any of some patches, of which `looked` (patches) tells, covers each place.
inline void find_levels(const Grid& grid, const std::vector<uint8_t>& looked, uint8_t* level) {
    for (long n = 0; n < grid.places(); n++) level[n] = 0;
    for (long k = 0; k < grid.scales; k++)
        for (long n = 0; n < grid.places(); n++)
            if (looked[grid.patch_at[k * grid.places() + n]]) level[n] = uint8_t(k + 1);
}

// Call work with the pixels of a place as a constant of the type of its argument.
template <class Work>
void with_pixels(long pixels, Work work) {
    switch (pixels) {
        case 4: return work(std::integral_constant<int, 4>());
        case 8: return work(std::integral_constant<int, 8>());
        case 16: return work(std::integral_constant<int, 16>());
        case 32: return work(std::integral_constant<int, 32>());  // PLACES_PX of residual.py
    }
}
