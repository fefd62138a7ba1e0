// Choosing a group of ids, and what is left of it for the host: `choose_group` of autogaze/decoding/choice.py.

struct Choice : Block {
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

    // Patches of this lane that may not be chosen, as bits.
    DEVICE unsigned barred() const {
        unsigned bits = 0;
        UNROLL
        for (int n = 0; n < LANE_PATCHES; ++n)
            if (lane + 32 * n < PATCHES && a.barred[lane + 32 * n]) bits |= 1u << n;
        return bits;
    }

    // One warp takes a group of ids: no repeats, budget, stop rule. Every block decides alike; the first one writes.
    DEVICE void choose(int t, float need, unsigned& taken) const {
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
        if (lane < K) s.group[lane] = group;
        if (rank == 0) {
            const size_t out = ((size_t)t * a.batch + clip) * a.slots + used + lane;
            if (within) a.out_ids[out] = group, a.out_chosen[out] = keep, a.out_loss[out] = loss;
            if (keep) a.pend_ids[clip * K + popcount(kept & ((1u << lane) - 1))] = group;
        }
        sync_warp();
        if (lane == 0) {
            s.row[PEND_N] = goes_on ? 0 : popcount(kept);
            s.row[ROOM] = room - K, s.row[SLOTS] = used + K;
            s.row[ACTIVE] = goes_on;
            if (goes_on) s.row[STEP_OFFSET] += K, s.row[TOTAL] += K;
            s.goes_on = goes_on;
        }
    }
};
