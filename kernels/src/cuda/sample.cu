// sample: for each row of logits one token that is drawn, or how probable a given one is (ops/sample.rs)      one block per row
// logits [R, V] f32 · requests [R] Request · edits: tokens of a row whose logits change · masks: bits of tokens that may be drawn
// weights [R, V] f32 workspace · results [R, 44] words · any V up to 2^19
// place_tokens: tokens[to[i]] = token of results row from[i]: what was sampled, where the next step reads it      one thread per i
// from, to, tokens int · any N · moves 16·N bytes
// sample moves 4·V bytes for each of about 6 to 20 passes over a row, from the caches; not measured: no GPU was available
//
// What is summed over tokens is a whole number: weights are multiples of 2^-44 of the largest one. So sums do not depend on the
// order in which threads add to them, and the k-th token, the nucleus and the draw are one search: the first token, by falling
// weight and rising id, at which a running sum reaches a goal.
#include "common.cuh"

constexpr int THREADS = 512;
constexpr int WARPS = THREADS / 32;
constexpr int MAX_TOP = 20;
constexpr int RESULT = 4 + 2 * MAX_TOP;  // status, token, log-probability, rank; ids, log-probabilities

using Whole = unsigned long long;

struct Request {
    int is_score, target;
    int top;  // -1: no log-probabilities
    int first_edit, end_edit;
    int first_word, mask_words;  // -1 words: no mask
    int top_k;
    float temperature, top_p, min_p;
    float repetition, frequency, presence;
    unsigned seed[2], position[2];
};
constexpr int REQUEST = 18;

enum Status { TOKEN = 0, NON_FINITE = 1, NOTHING = 2 };

__device__ __forceinline__ Request load_request(Ptr<const int> words) {
    Request r;
    r.is_score = words[0], r.target = words[1], r.top = words[2], r.first_edit = words[3], r.end_edit = words[4];
    r.first_word = words[5], r.mask_words = words[6], r.top_k = words[7];
    r.temperature = __int_as_float(words[8]), r.top_p = __int_as_float(words[9]), r.min_p = __int_as_float(words[10]);
    r.repetition = __int_as_float(words[11]), r.frequency = __int_as_float(words[12]), r.presence = __int_as_float(words[13]);
    for (int i = 0; i < 2; i++) r.seed[i] = (unsigned)words[14 + i], r.position[i] = (unsigned)words[16 + i];
    return r;
}

// ---- sums and the best over the block, in every thread

template <class T> __device__ __forceinline__ T block_total(T v, Ptr<T> scratch) {
    for (int step = 16; step; step /= 2) v += __shfl_xor_sync(~0u, v, step);
    __syncthreads();
    if (lane_id() == 0) scratch[warp_id()] = v;
    __syncthreads();
    T total = scratch[0];
    for (int w = 1; w < WARPS; w++) total += scratch[w];
    return total;
}

struct Best {
    float value;
    int id;
};
// The larger value, the lower id of equals.
__device__ __forceinline__ Best better(Best a, Best b) { return b.value > a.value || (b.value == a.value && b.id < a.id) ? b : a; }

__device__ __forceinline__ Best block_best(Best v, Ptr<float> values, Ptr<int> ids) {
    for (int step = 16; step; step /= 2)
        v = better(v, Best{__shfl_xor_sync(~0u, v.value, step), __shfl_xor_sync(~0u, v.id, step)});
    __syncthreads();
    if (lane_id() == 0) values[warp_id()] = v.value, ids[warp_id()] = v.id;
    __syncthreads();
    for (int w = 0; w < WARPS; w++) v = better(v, Best{values[w], ids[w]});
    return v;
}

// ---- searches

// Shared memory of a search.
struct Search {
    Ptr<Whole> bins;    // [256]
    Ptr<Whole> sums;    // [WARPS]
    Ptr<Whole> found;   // [2]
};

// The first token in the order of ids at which the sum of value(id) reaches the goal, which is at least 1 and at most the total.
template <class V> __device__ __forceinline__ int find_by_id(int vocab, Whole goal, V value, Search s) {
    int each = (vocab + THREADS - 1) / THREADS * 32, first = warp_id() * each, end = min(vocab, first + each), lane = lane_id();
    Whole own = 0;
    for (int i = first + lane; i < end; i += 32) own += value(i);
    for (int step = 16; step; step /= 2) own += __shfl_xor_sync(~0u, own, step);
    __syncthreads();
    if (lane == 0) s.sums[warp_id()] = own;
    __syncthreads();
    Whole before = 0;
    for (int w = 0; w < warp_id(); w++) before += s.sums[w];
    if (before < goal && before + own >= goal) {
        for (int base = first; base < end; base += 32) {
            Whole sum = base + lane < end ? value(base + lane) : 0;
            for (int step = 1; step < 32; step *= 2) {
                Whole left = __shfl_up_sync(~0u, sum, step);
                if (lane >= step) sum += left;
            }
            unsigned reached = __ballot_sync(~0u, before + sum >= goal);
            if (reached) {
                if (lane == 0) s.found[0] = (Whole)(base + __ffs((int)reached) - 1);
                break;
            }
            before += __shfl_sync(~0u, sum, 31);
        }
    }
    __syncthreads();
    Whole id = s.found[0];
    return (int)id;
}

// A token in the order of falling keys and rising ids; those up to it are kept.
struct Cut {
    unsigned key;
    int id;
};
__device__ __forceinline__ bool is_kept(Cut cut, unsigned key, int id) { return key > cut.key || (key == cut.key && id <= cut.id); }

// The bin, from the last one down, at which the sum reaches the goal, and the sum before it. Called by the first warp.
__device__ __forceinline__ void find_bin(Whole above, Whole goal, Search s) {
    int lane = lane_id(), top = 255 - lane * 8;
    Whole own = 0;
    for (int i = 0; i < 8; i++) own += s.bins[top - i];
    Whole sum = own;
    for (int step = 1; step < 32; step *= 2) {
        Whole left = __shfl_up_sync(~0u, sum, step);
        if (lane >= step) sum += left;
    }
    unsigned reached = __ballot_sync(~0u, above + sum >= goal);
    if (lane != (reached ? __ffs((int)reached) - 1 : 31)) return;
    Whole before = above + sum - own;
    int bin = top;
    for (; bin > top - 7 && before + s.bins[bin] < goal; bin--) before += s.bins[bin];
    s.found[0] = (Whole)bin;
    s.found[1] = before;
}

// The first token, by falling key and rising id, at which the sum of value(key) over kept tokens reaches the goal.
template <class K, class V>
__device__ __forceinline__ Cut find_by_key(int vocab, Cut kept, Whole goal, K key, V value, Search s) {
    unsigned prefix = 0;
    Whole above = 0;
    for (int shift = 24; shift >= 0; shift -= 8) {
        __syncthreads();
        for (int i = (int)threadIdx.x; i < 256; i += THREADS) s.bins[i] = 0;
        __syncthreads();
        // Neighbours often share a bin: one addition for all of them.
        int bin = 0;
        Whole sum = 0;
        for (int i = (int)threadIdx.x; i < vocab; i += THREADS) {
            unsigned k = key(i);
            if (!is_kept(kept, k, i) || (shift < 24 && k >> (shift + 8) != prefix)) continue;
            int next = (int)(k >> shift & 255);
            if (next != bin) {
                if (sum) atomicAdd(s.bins + bin, sum);
                bin = next, sum = 0;
            }
            sum += value(k);
        }
        if (sum) atomicAdd(s.bins + bin, sum);
        __syncthreads();
        if (warp_id() == 0) find_bin(above, goal, s);
        __syncthreads();
        Whole found = s.found[0];
        prefix = prefix << 8 | (unsigned)found;
        above = s.found[1];
    }
    Whole one = value(prefix), rank = one ? (goal - above + one - 1) / one : 1;
    auto is_tie = [&](int i) { return (Whole)(key(i) == prefix && is_kept(kept, prefix, i)); };
    return Cut{prefix, find_by_id(vocab, rank, is_tie, s)};
}

// ---- the model's own distribution

// Larger for larger floats.
__device__ __forceinline__ unsigned ordered(float v) {
    unsigned u = __float_as_uint(v);
    return u ^ (u >> 31 ? 0xffffffffu : 0x80000000u);
}

__device__ __forceinline__ float rounded_exp(float v) { return (float)exp((double)v); }

// The `top` most probable tokens, into the result.
__device__ __forceinline__ void report_top(Ptr<const float> logits, int vocab, double log_sum, int top, Search s, Ptr<int> ids,
                                           Ptr<float> values, Ptr<int> count, Ptr<int> result) {
    auto logprob = [&](int i) {
        float x = logits[i];
        return (float)((double)x - log_sum);
    };
    auto key = [&](int i) { return ordered(logprob(i)); };
    Cut cut = find_by_key(vocab, Cut{0, vocab}, (Whole)top, key, [](unsigned) { return (Whole)1; }, s);
    if (threadIdx.x == 0) count[0] = 0;
    __syncthreads();
    for (int i = (int)threadIdx.x; i < vocab; i += THREADS)
        if (is_kept(cut, key(i), i)) {
            int place = atomicAdd(count, 1);
            ids[place] = i, values[place] = logprob(i);
        }
    __syncthreads();
    // In whatever order they came: each finds its own place.
    if ((int)threadIdx.x < top) {
        Best own{values[threadIdx.x], ids[threadIdx.x]};
        int place = 0;
        for (int i = 0; i < top; i++) {
            float value = values[i];
            int id = ids[i];
            place += value > own.value || (value == own.value && id < own.id);
        }
        result[4 + place] = own.id;
        result[4 + MAX_TOP + place] = __float_as_int(own.value);
    }
}

// ---- the draw

__device__ __forceinline__ Whole whole_weight(unsigned key) { return (Whole)((double)__uint_as_float(key) * 17592186044416.0 + 0.5); }

// Bias and penalties of one token: [token, flags: 1 excluded, 2 seen, count in the output from bit 2 on, bias].
__device__ __forceinline__ float edited(float x, int flags, float bias, const Request& r) {
    if (flags & 1) x = minus_infinity();
    x += bias;
    if (flags & 2) x = x > 0 ? x / r.repetition : x * r.repetition;
    if (flags >> 2) x -= r.frequency * (float)(flags >> 2) + r.presence;
    return x;
}

// Logits after edits and mask, into weights; the best of them.
__device__ __forceinline__ Best adjust(Ptr<const float> logits, int vocab, const Request& r, Ptr<const int> edits, Ptr<const int> masks,
                                       Ptr<float> weights, Ptr<float> values, Ptr<int> ids) {
    for (int i = (int)threadIdx.x; i < vocab; i += THREADS) weights[i] = logits[i];
    __syncthreads();
    for (int i = r.first_edit + (int)threadIdx.x; i < r.end_edit; i += THREADS) {
        int token = edits[i * 3], flags = edits[i * 3 + 1];
        weights[token] = edited(weights[token], flags, __int_as_float(edits[i * 3 + 2]), r);
    }
    __syncthreads();
    Best best{minus_infinity(), vocab};
    for (int i = (int)threadIdx.x; i < vocab; i += THREADS) {
        float x = fminf(weights[i], 3.402823466e38f);
        int word = 0;
        if (i / 32 < r.mask_words) word = masks[r.first_word + i / 32];
        if (r.mask_words >= 0 && !(word >> (i % 32) & 1)) x = minus_infinity();
        weights[i] = x;
        best = better(best, Best{x, i});
    }
    return block_best(best, values, ids);
}

__device__ __forceinline__ double uniform(const Request& r) {
    uint4 words = philox(make_uint4(r.position[0], r.position[1], 0, 0), make_uint2(r.seed[0], r.seed[1]));
    return (double)(((Whole)words.x << 32 | words.y) >> 11) / 9007199254740992.0;
}

// A goal of a running sum: whole, at least 1, at most the total.
__device__ __forceinline__ Whole goal_of(double goal, Whole total) { return max((Whole)1, min((Whole)goal, total)); }

__device__ __forceinline__ int draw(int vocab, float largest, const Request& r, Ptr<float> weights, Search s) {
    Whole count = 0;
    for (int i = (int)threadIdx.x; i < vocab; i += THREADS) {
        float x = weights[i], weight = rounded_exp((x - largest) / r.temperature);
        if (!(weight >= r.min_p)) weight = 0;
        weights[i] = weight;
        count += weight > 0;
    }
    // Others read what this thread wrote after the barriers of the sum.
    count = block_total(count, s.sums);
    auto key = [&](int i) {
        float weight = weights[i];
        return __float_as_uint(weight);
    };
    Cut kept{0, -1};
    auto total = [&]() {
        Whole sum = 0;
        for (int i = (int)threadIdx.x; i < vocab; i += THREADS) {
            unsigned k = key(i);
            if (is_kept(kept, k, i)) sum += whole_weight(k);
        }
        return block_total(sum, s.sums);
    };
    if (r.top_k > 0 && (Whole)r.top_k < count)
        kept = find_by_key(vocab, kept, (Whole)r.top_k, key, [](unsigned) { return (Whole)1; }, s);
    if (r.top_p < 1.0f) {
        Whole all = total();
        kept = find_by_key(vocab, kept, goal_of(ceil((double)r.top_p * (double)all), all), key, whole_weight, s);
    }
    Whole all = total(), goal = goal_of(floor(uniform(r) * (double)all) + 1, all);
    if (r.top_k > 0 || r.top_p < 1.0f) return find_by_key(vocab, kept, goal, key, whole_weight, s).id;
    return find_by_id(vocab, goal, [&](int i) { return whole_weight(key(i)); }, s);
}

__global__ void __launch_bounds__(THREADS) place_tokens(In<int> results, In<int> from, In<int> to, int count, Out<int> tokens) {
    int i = (int)(blockIdx.x * THREADS + threadIdx.x);
    if (i >= count) return;
    int row = from[i], place = to[i];
    int token = results[(long long)row * RESULT + 1];
    tokens[place] = token;
}

// grid: rows, 512 threads
__global__ void __launch_bounds__(THREADS)
    sample(In<float> all_logits, In<int> requests, In<int> edits, In<int> masks, int vocab, Out<float> all_weights, Out<int> results) {
    SHARED(Whole, bins, 256);
    SHARED(Whole, sums, WARPS);
    SHARED(Whole, found, 2);
    SHARED(double, doubles, WARPS);
    SHARED(float, values, 32);
    SHARED(int, ids, 32);
    SHARED(int, count, 1);
    Search search{bins, sums, found};
    Request r = load_request(requests + (long long)blockIdx.x * REQUEST);
    Ptr<const float> logits = all_logits + (long long)blockIdx.x * vocab;
    Ptr<float> weights = all_weights + (long long)blockIdx.x * vocab;
    Ptr<int> result = results + (long long)blockIdx.x * RESULT;
    int thread = (int)threadIdx.x;
    for (int i = thread; i < RESULT; i += THREADS) result[i] = 0;

    Best best{minus_infinity(), vocab};
    int bad = 0;
    for (int i = thread; i < vocab; i += THREADS) {
        float x = logits[i];
        // Neither NaN nor infinite.
        bad |= !(fabsf(x) <= 3.402823466e38f);
        best = better(best, Best{x, i});
    }
    if (__syncthreads_or(bad)) {
        if (thread == 0) result[0] = NON_FINITE;
        return;
    }
    double log_sum = 0;
    if (r.top >= 0) {
        float max = block_best(best, values, ids).value;
        double sum = 0;
        for (int i = thread; i < vocab; i += THREADS) {
            float x = logits[i];
            sum += (double)rounded_exp(x - max);
        }
        log_sum = (double)max + log(block_total(sum, doubles));
        int top = min(r.top, vocab);
        if (top > 0) report_top(logits, vocab, log_sum, top, search, ids, values, count, result);
    }
    auto logprob = [&](int i) {
        float x = logits[i];
        return (float)((double)x - log_sum);
    };
    if (r.is_score) {
        float own = logprob(r.target);
        Whole before = 0;
        for (int i = thread; i < vocab; i += THREADS) {
            float other = logprob(i);
            before += other > own || (other == own && i < r.target);
        }
        before = block_total(before, sums);
        if (thread == 0) result[1] = r.target, result[2] = __float_as_int(own), result[3] = 1 + (int)before;
        return;
    }
    best = adjust(logits, vocab, r, edits, masks, weights, values, ids);
    if (best.value == minus_infinity()) {
        if (thread == 0) result[0] = NOTHING;
        return;
    }
    int token = r.temperature == 0 ? best.id : draw(vocab, best.value, r, weights, search);
    if (thread == 0) {
        result[1] = token;
        result[2] = r.top >= 0 ? __float_as_int(logprob(token)) : 0;
    }
}
