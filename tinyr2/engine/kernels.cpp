// The decode step and the draw of tokens on a CPU. Compiled on the user's machine by tinyr2.engine.cpu, which
// shows it section by section in its notebook. Nothing here is of one kind of processor but what #ifdef guards.

// ---- types: a float or a bfloat16, the upper half of a float; sums are taken in float
#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>
#define EXPORT extern "C" __attribute__((visibility("default")))
struct bf16 { uint16_t bits; };
static inline float up(float x) { return x; }
static inline float up(bf16 x) { uint32_t b = (uint32_t)x.bits << 16; float f; memcpy(&f, &b, 4); return f; }
static inline void down(float x, float &y) { y = x; }
static inline void down(float x, bf16 &y) {  // to the nearest, ties to even
    uint32_t b; memcpy(&b, &x, 4); y.bits = (b + 0x7fff + ((b >> 16) & 1)) >> 16; }
template <class T> static inline float rounded(float x) { T y; down(x, y); return up(y); }

// ---- norm and gate: the operators around the products
template <class T> void norm(const T *x, const T *w, T *out, long rows, long d, float eps) {
#pragma omp for
    for (long r = 0; r < rows; r++) {
        float sum = 0;
        for (long i = 0; i < d; i++) sum += up(x[r * d + i]) * up(x[r * d + i]);
        float scale = 1 / std::sqrt(sum / d + eps);
        for (long i = 0; i < d; i++) down(rounded<T>(up(x[r * d + i]) * scale) * up(w[i]), out[r * d + i]);
    }
}
template <class T> void gate(const T *x, T *out, long rows, long d, long gelu) {
#pragma omp for
    for (long r = 0; r < rows; r++) for (long i = 0; i < d; i++) {
        float g = up(x[r * 2 * d + i]), z = 1.5957691216f * (g + 0.044715f * g * g * g);
        float e = std::exp(std::min(gelu ? -z : -g, 80.0f));  // an infinite one would give NaN under -ffast-math
        down(g / (1 + e) * up(x[(r * 2 + 1) * d + i]), out[r * d + i]);
    }
}

// ---- vectors: as many numbers side by side as a register holds
#if defined __AVX512F__
const int V = 16;  // numbers in a register
#elif defined __AVX__
const int V = 8;
#else
const int V = 4;
#endif
const int W = 16;  // numbers in a block of memory, on every processor
typedef float Floats __attribute__((vector_size(4 * V), may_alias));  // wider ones a compiler takes apart, slowly
static inline Floats load(const float *from) { Floats x; memcpy(&x, from, sizeof x); return x; }
static inline void store(Floats x, float *to) { memcpy(to, &x, sizeof x); }
static inline void store(Floats x, bf16 *to) { for (int l = 0; l < V; l++) down(x[l], to[l]); }
#ifdef __AVX512BW__  // in one instruction, which the compiler does not find by itself
#include <immintrin.h>
static inline Floats load(const bf16 *from) {
    return (Floats)_mm512_slli_epi32(_mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from)), 16); }
#else
static inline Floats load(const bf16 *from) { Floats x; for (int l = 0; l < V; l++) x[l] = up(from[l]); return x; }
#endif
// sum[a][g] += the a-th vector at x times the g-th number at y
template <int A, int G, class T, class Y>
static inline void add(Floats (&sum)[A][G], const T *x, long x_step, const Y *y, long y_step) {
    for (int a = 0; a < A; a++) {
        Floats v = load(x + a * x_step);
        for (int g = 0; g < G; g++) sum[a][g] += v * up(y[g * y_step]);
    }
}

// ---- sums: scores of keys, and averages of values by them
template <class T> struct Part { T *keys, *values; long n, size; };  // [size / W, h, W] and [size, h], n in use
template <int A, int G, class T> void scores(const float *q, const T *keys, float *out, long room, long h) {
    Floats sum[A][G] = {};
    long next = V == W ? h * W : V;  // from one vector of keys to the next: in the next block, or in this one
    for (long i = 0; i < h; i++) add(sum, keys + i * W, next, q + i, h);
    for (int a = 0; a < A; a++) for (int g = 0; g < G; g++) store(sum[a][g], out + g * room + a * V);
}
template <int A, int G, class T>
void averages(const Part<T> *parts, const float *score, long room, T *out, long h, long left) {
    Floats sum[A][G] = {};
    for (int p = 0; p < 2; score += parts[p++].n)
        for (long j = 0; j < parts[p].n; j++) add(sum, parts[p].values + j * h, V, score + j, room);
    for (int a = 0; a < A; a++) for (int g = 0; g < G; g++)
        for (long l = 0; l < std::min<long>(V, left - a * V); l++) down(sum[a][g][l], out[g * h + a * V + l]);
}

// ---- mix: attention of up to four query heads that share a key head
template <int G, class T> void mix(const float *q, const Part<T> *parts, float *score, long room, T *out, long h) {
    long n = 0, two = 2 * V;
    for (int p = 0; p < 2; n += parts[p++].n) for (long j = 0; j < parts[p].n; j += two) {
        const T *keys = parts[p].keys + j / W * W * h + j % W;
        (j + V < parts[p].n ? scores<2, G, T> : scores<1, G, T>)(q, keys, score + n + j, room, h);
    }
    for (int g = 0; g < G; g++) {
        float *s = score + g * room, top = s[0], sum = 0;
#pragma omp simd reduction(max:top)
        for (long j = 0; j < n; j++) top = std::max(top, s[j]);
#pragma omp simd reduction(+:sum)
        for (long j = 0; j < n; j++) { s[j] = std::exp(s[j] - top); sum += s[j]; }
        for (long j = 0; j < n; j++) s[j] /= sum;
    }
    for (long i = 0; i < h; i += two) {
        Part<T> rest[2] = {parts[0], parts[1]};
        for (Part<T> &part : rest) part.values += i;
        (i + V < h ? averages<2, G, T> : averages<1, G, T>)(rest, score, room, out + i, h, h - i);
    }
}

// ---- turn: rotary positions
template <class T> static inline void turn(const T *x, const float *cos, const float *sin, float *out, long h) {
    for (long i = 0, j = h / 2; i < h / 2; i++, j++) {
        float low = up(x[i]), high = up(x[j]);
        out[i] = rounded<T>(low * cos[i] - high * sin[i]), out[j] = rounded<T>(high * cos[j] + low * sin[j]);
    }
}

// ---- attend: attention of one new token of each row, with its rotation and cache
template <class T> void attend(const T *qkv, const float *cos, const float *sin, Part<T> prompt, Part<T> own, T *out,
                               const long *place, long rows, long heads, long kv, long h) {
    long groups = heads / kv, room = prompt.size + own.size + 2 * W;
#pragma omp for collapse(2)
    for (long r = 0; r < rows; r++) for (long k = 0; k < kv; k++) {
        const long *at = place + r * 4;  // prompt slot, its tokens, row slot, its tokens
        const T *row = qkv + r * (heads + 2 * kv) * h, *key = row + (heads + k) * h, *value = key + kv * h;
        long first = (at[0] * kv + k) * prompt.size * h, second = (at[2] * kv + k) * own.size * h;
        Part<T> parts[2] = {{prompt.keys + first, prompt.values + first, at[1], prompt.size},
                            {own.keys + second, own.values + second, at[3] + 1, own.size}};
        const float *c = cos + (at[1] + at[3]) * h, *s = sin + (at[1] + at[3]) * h;
        static thread_local std::vector<Floats> space;  // aligned: sums begin at the same place in every run
        space.resize(groups * (room + 2 * h) / V + 2);
        float *score = (float *)&space[0], *q = (float *)&space[groups * room / V], *turned = q + groups * h;
        turn(key, c, s, turned, h);
        T *keys = parts[1].keys + at[3] / W * h * W + at[3] % W;
        for (long i = 0; i < h; i++) down(turned[i], keys[i * W]);
        std::copy_n(value, h, parts[1].values + at[3] * h);
        for (long g = 0; g < groups; g++) turn(row + (k * groups + g) * h, c, s, q + g * h, h);
        for (long i = 0; i < groups * h; i++) q[i] /= std::sqrt((float)h);
        T *o = out + (r * heads + k * groups) * h;
        for (long g = 0, left; (left = groups - g) > 0; g += std::min(left, 4L))
            (left >= 4 ? mix<4, T> : left == 3 ? mix<3, T> : left == 2 ? mix<2, T> : mix<1, T>)(
                q + g * h, parts, score + g * room, room, o + g * h, h);
    }
}

// ---- product: products of a small model
template <class T> struct Weight { const T *rows, *bias; long in, out, room; };  // [in, room], room whole vectors
template <int A, int G, class T> void tile(const T *x, const Weight<T> &w, long column, const T *plus, T *out) {
    Floats sum[A][G] = {};
    for (long i = 0; i < w.in; i++) add(sum, w.rows + i * w.room + column, V, x + i, w.in);
    for (int a = 0; a < A; a++, column += V) for (int g = 0; g < G; g++) {
        Floats y = sum[a][g];
        long at = g * w.out + column, left = std::min<long>(V, w.out - column);
        if (left == V) {
            if (w.bias) y += load(w.bias + column);
            if (plus) y += load(plus + at);
            store(y, out + at);
        } else for (long l = 0; l < left; l++)
            down(y[l] + (w.bias ? up(w.bias[column + l]) : 0) + (plus ? up(plus[at + l]) : 0), out[at + l]);
    }
}
const int MOST = V == W ? 8 : 4;  // rows whose sums of two vectors fit into the registers
template <class T> void product(const T *x, const Weight<T> &w, const T *plus, T *out, long rows) {
#pragma omp for collapse(2)
    for (long c = 0; c < w.room; c += 2 * V) for (long r = 0; r < rows; r += 8) {
        bool two = c + V < w.room;
        for (long g = r, left; (left = std::min(rows, r + 8) - g) > 0; g += left >= MOST ? MOST : left >= 4 ? 4 : 1) {
            auto one = left >= MOST ? (two ? tile<2, MOST, T> : tile<1, MOST, T>)
                     : left >= 4 ? (two ? tile<2, 4, T> : tile<1, 4, T>) : (two ? tile<2, 1, T> : tile<1, 1, T>);
            one(x + g * w.in, w, c, plus ? plus + g * w.out : nullptr, out + g * w.out);
        }
    }
}

// ---- step: the whole decode step of a small model
struct Shape { long layers, width, inner, heads, kv, h, words, gelu, prompts, rows; };
template <class T> Weight<T> weight(const T *const *at, long in, long out) {
    return {at[0], at[1], in, out, (out + W - 1) / W * W};
}
// w: the embedding; of each layer norm, qkv and bias, o and bias, norm, gate_up and bias, down and bias; norm, head
template <class T> void step(const T *const *w, const Shape &s, float eps, const long *tokens, const float *cos,
                             const float *sin, Part<T> prompt, Part<T> own, const long *place, T *space, T *logits,
                             long n) {
    long d = s.width, mixed = s.heads * s.h, all = mixed + 2 * s.kv * s.h;
    T *x = space, *normed = x + n * d, *qkv = normed + n * d, *seen = qkv + n * all, *both = seen + n * mixed,
      *hidden = both + n * 2 * s.inner;
#pragma omp parallel firstprivate(w, prompt, own)
    {
#pragma omp for
        for (long r = 0; r < n; r++) std::copy_n(w[0] + tokens[r] * d, d, x + r * d);
        for (long l = 0; l < s.layers; l++, w += 10) {
            norm(x, w[1], normed, n, d, eps);
            product(normed, weight(w + 2, d, all), (T *)0, qkv, n);
            attend(qkv, cos, sin, prompt, own, seen, place, n, s.heads, s.kv, s.h);
            product(seen, weight(w + 4, mixed, d), x, x, n);
            norm(x, w[6], normed, n, d, eps);
            product(normed, weight(w + 7, d, 2 * s.inner), (T *)0, both, n);
            gate(both, hidden, n, s.inner, s.gelu);
            product(hidden, weight(w + 9, s.inner, d), x, x, n);
            prompt.keys += s.prompts * s.kv * prompt.size * s.h, prompt.values += s.prompts * s.kv * prompt.size * s.h;
            own.keys += s.rows * s.kv * own.size * s.h, own.values += s.rows * s.kv * own.size * s.h;
        }
        norm(x, w[1], normed, n, d, eps);
        product(normed, weight(w + 2, d, s.words), (T *)0, logits, n);
    }
}

// ---- pick: a token by one uniform number
template <class T> static inline float weight(T x, float top, float scale) {  // below e^-87 it is nothing
    float z = (up(x) - top) * scale;
    return z < -87 ? 0 : std::exp(std::max(z, -87.0f));
}
template <class T> long pick(const T *x, long size, float scale, bool greedy, float u, float *score) {
    float top = -3e38f;
    uint32_t bits, largest = 0;
#pragma omp simd reduction(max : top, largest)
    for (long i = 0; i < size; i++) {
        float v = up(x[i]);
        memcpy(&bits, &v, 4), top = std::max(top, v), largest = std::max(largest, bits & 0x7fffffff);
    }
    static thread_local std::vector<double> until;
    double total = 0;
    until.clear();
    for (long from = 0; from < size; from += 256) {
        float sum = 0;
#pragma omp simd reduction(+ : sum)
        for (long i = from; i < std::min(size, from + 256); i++) sum += weight(x[i], top, scale);
        until.push_back(total += sum);
    }
    double goal = u * total;
    long hit = std::upper_bound(until.begin(), until.end() - 1, goal) - until.begin(), at = hit * 256;
    double run = hit ? until[hit - 1] : 0;
    for (long i = at; i < std::min(size, hit * 256 + 256) && run <= goal; i++)
        if (float w = weight(x[i], top, scale)) at = i, run += w;
    if (greedy) for (at = 0; at + 1 < size && up(x[at]) < top;) at++;
    *score = (up(x[at]) - top) * scale - std::log(total);
    if (largest > 0x7f800000 || top > 3e38f) memcpy(score, "\0\0\xc0\x7f", 4);  // not a number
    return at;
}

// ---- draw: a token for every row
template <class T> long draw(const T *logits, long size, float temperature, const float *noise, const bool *stop,
                             long *rows, const long *own, long *tokens, long *out, float *scores, long n, long count,
                             long length) {
    long done = 0;
#pragma omp parallel for reduction(+ : done)
    for (long r = 0; r < n; r++) {
        long at = rows[r] * length + own[r], *token = tokens + r;
        if (rows[r] == count) continue;  // finished before
        float scale = temperature > 0 ? 1 / temperature : 1;
        *token = out[at] = pick(logits + r * size, size, scale, temperature == 0, noise[at], scores + at);
        if (stop[*token] || own[r] == length - 1) rows[r] = count, done++;
    }
    return done;
}

// ---- exports: every function for both types
#define PARALLEL _Pragma("omp parallel")
#define FOR_TYPE(T, name) \
EXPORT void norm_##name(T *x, T *w, T *out, long rows, long d, float eps) { PARALLEL norm(x, w, out, rows, d, eps); } \
EXPORT void gate_##name(T *x, T *out, long rows, long d, long gelu) { PARALLEL gate(x, out, rows, d, gelu); } \
EXPORT void attend_##name(T *qkv, float *cos, float *sin, T *k, T *v, long n, T *own_k, T *own_v, long size, T *out, \
                   long *place, long rows, long heads, long kv, long h) { \
    Part<T> prompt{k, v, 0, n}, own{own_k, own_v, 0, size}; \
    PARALLEL attend(qkv, cos, sin, prompt, own, out, place, rows, heads, kv, h); } \
EXPORT void step_##name(T **w, Shape *s, float eps, long *tokens, float *cos, float *sin, T *k, T *v, long n, \
                        T *own_k, T *own_v, long size, long *place, T *space, T *logits, long rows) { \
    Part<T> prompt{k, v, 0, n}, own{own_k, own_v, 0, size}; \
    step(w, *s, eps, tokens, cos, sin, prompt, own, place, space, logits, rows); } \
EXPORT long draw_##name(T *logits, long size, float temperature, float *noise, bool *stop, long *rows, long *own, \
                        long *tokens, long *out, float *scores, long n, long count, long length) { \
    return draw(logits, size, temperature, noise, stop, rows, own, tokens, out, scores, n, count, length); }
FOR_TYPE(float, float32)
FOR_TYPE(bf16, bfloat16)
