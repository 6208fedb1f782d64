/* One step of decoding on a CPU: from one token a row to the logits of the next.

   The mathematics of lit_pretrain/model for one new token, in fp32, with matrices in fp32 or bf16
   that are read where torch keeps them. native_step.py compiles this file and fills the structs.

   The threads enter once for a whole step and meet at barriers; each computes its share of the
   outputs of a matrix. Every sum runs over its terms in one order, however many rows or threads
   there are, so a row gets the same bits alone and in a batch.

   Axes: B rows, D width, H query heads, G key and value heads, K channels of a head, S slots of the
   cache, F channels of the feed-forward, V vocabulary. */

#ifdef __linux__
#define _DEFAULT_SOURCE /* madvise */
#include <sys/mman.h>
#endif
#include <math.h>
#include <omp.h>
#include <sched.h>
#include <stdatomic.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>

enum { LANES = 8, MOST_ROWS = 8 }; /* a sum for each row stays in a register of AVX2 */

typedef float lanes __attribute__((vector_size(4 * LANES)));
typedef uint32_t words __attribute__((vector_size(4 * LANES)));
typedef uint16_t halves __attribute__((vector_size(2 * LANES)));

typedef struct {
    const void *q, *k, *v, *out, *gate, *up, *down; /* matrices, (out, in) */
    const float *q_bias, *k_bias, *v_bias, *out_bias, *gate_bias, *up_bias, *down_bias;
    const float *attention_gain, *attention_shift, *ffn_gain, *ffn_shift;
    const float *q_gain, *k_gain;
    const void *value_table, *value_gate; /* (V, G * K) and (G, channels) */
    float stream_scale, embedding_scale, bigram_scale;
    int64_t window; /* 0: all */
} Layer;

typedef struct {
    const Layer *layers;
    const void *token_table, *position_table, *head;
    const void *bigram_table; /* (rows, D), or 0 */
    const float *embed_gain, *embed_shift, *final_gain, *final_shift;
    const float *smear; /* (D,), or 0 */
    const float *cos, *sin; /* (positions, K / 2) */
    int64_t n_layer, width, n_head, kv_heads, head_size, ffn_size, vocab_size;
    int64_t value_gate_channels;
    int64_t bf16, layernorm, embed_norm, qk_norm, residual_scalars, activation;
    float eps, attn_softcap, logit_softcap; /* 0: no cap */
    float logit_scale, value_gate_scale;
} Network;

typedef struct {
    float *keys, *values;                          /* (L, B, G, S, K) */
    int64_t layer_stride, row_stride, head_stride; /* in floats; S and K are contiguous */
    const int64_t *positions;                      /* (B,): the slot of each new token */
} Cache;

typedef void product_of(const float *x, int64_t rows, const void *matrix, const float *bias,
                        int64_t in, int64_t first, int64_t last, float *y, int64_t y_stride);

enum { SWIGLU, GEGLU, GELU, GELU_TANH, RELU2 };

/* e^x within two units in the last place; no branch, so that loops over it become vectors. */
static inline float exponential(float x) {
    x = x < -87.0f ? -87.0f : x;
    x = x > 88.0f ? 88.0f : x;
    const float turns = x * 1.44269504f + 12582912.0f; /* rounds to an integer in the low bits */
    const float whole = turns - 12582912.0f;
    const float rest = (x - whole * 0.693359375f) + whole * 2.12194440e-4f;
    float sum = 1.9875691500e-4f; /* Cephes' polynomial of expf */
    sum = sum * rest + 1.3981999507e-3f;
    sum = sum * rest + 8.3334519073e-3f;
    sum = sum * rest + 4.1665795894e-2f;
    sum = sum * rest + 1.6666665459e-1f;
    sum = sum * rest + 5.0000001201e-1f;
    sum = sum * rest * rest + rest + 1.0f;
    const int32_t bits = ((int32_t)whole + 127) << 23;
    float power;
    memcpy(&power, &bits, sizeof power);
    return sum * power;
}

static inline float hyperbolic_tangent(float x) {
    const float e = exponential(-2.0f * fabsf(x));
    return copysignf((1.0f - e) / (1.0f + e), x);
}

static inline float element(const void *table, int64_t index, int bf16) {
    if (!bf16)
        return ((const float *)table)[index];
    const uint32_t bits = (uint32_t)((const uint16_t *)table)[index] << 16;
    float value;
    memcpy(&value, &bits, sizeof value);
    return value;
}

static inline __attribute__((always_inline)) lanes load(const void *table, int64_t index,
                                                        int bf16) {
    lanes value;
    if (bf16) {
        halves upper;
        memcpy(&upper, (const uint16_t *)table + index, sizeof upper);
        return (lanes)(__builtin_convertvector(upper, words) << 16);
    }
    memcpy(&value, (const float *)table + index, sizeof value);
    return value;
}

/* `rows` rows of x times one row of a matrix; `rows` is a constant where this is inlined. */
static inline __attribute__((always_inline)) void dot_products(
    const int rows, const int bf16, const float *x, int64_t in, const void *matrix_row, float bias,
    float *y, int64_t y_stride) {
    lanes sums[MOST_ROWS];
    for (int r = 0; r < rows; r++)
        sums[r] = (lanes){0};
    int64_t i = 0;
    for (; i + LANES <= in; i += LANES) {
        const lanes weights = load(matrix_row, i, bf16);
        /* The next row; without it a row took 1.5 times as long on Zen 3. */
        __builtin_prefetch((const char *)matrix_row + (in + i) * (bf16 ? 2 : 4));
        for (int r = 0; r < rows; r++)
            sums[r] += weights * load(x, r * in + i, 0);
    }
    for (int r = 0; r < rows; r++) {
        const lanes s = sums[r];
        float sum = ((s[0] + s[4]) + (s[1] + s[5])) + ((s[2] + s[6]) + (s[3] + s[7]));
        for (int64_t j = i; j < in; j++)
            sum += element(matrix_row, j, bf16) * x[r * in + j];
        y[r * y_stride] = sum + bias;
    }
}

/* Outputs first .. last - 1 of y = x @ matrix.T + bias; rows of y are y_stride apart. */
static inline __attribute__((always_inline)) void product(
    const int bf16, const float *x, int64_t rows, const void *matrix, const float *bias, int64_t in,
    int64_t first, int64_t last, float *y, int64_t y_stride) {
    for (int64_t o = first; o < last; o++)
        for (int64_t r = 0; r < rows; r += MOST_ROWS) {
            const void *row = (const char *)matrix + o * in * (bf16 ? 2 : 4);
            const float shift = bias ? bias[o] : 0.0f, *from = x + r * in;
            float *to = y + r * y_stride + o;
#define ROWS(N) case N: dot_products(N, bf16, from, in, row, shift, to, y_stride); break;
            switch (rows - r < MOST_ROWS ? rows - r : MOST_ROWS) {
                ROWS(1) ROWS(2) ROWS(3) ROWS(4) ROWS(5) ROWS(6) ROWS(7) ROWS(8)
            }
        }
}

static __attribute__((noinline)) void product_fp32(
    const float *x, int64_t rows, const void *matrix, const float *bias, int64_t in, int64_t first,
    int64_t last, float *y, int64_t y_stride) {
    product(0, x, rows, matrix, bias, in, first, last, y, y_stride);
}

static __attribute__((noinline)) void product_bf16(
    const float *x, int64_t rows, const void *matrix, const float *bias, int64_t in, int64_t first,
    int64_t last, float *y, int64_t y_stride) {
    product(1, x, rows, matrix, bias, in, first, last, y, y_stride);
}

static void normalise(const float *x, const float *gain, const float *shift, int layernorm,
                      float eps, int64_t size, float *y) {
    float mean = 0, square = 0;
    if (layernorm) {
#pragma omp simd reduction(+ : mean)
        for (int64_t i = 0; i < size; i++)
            mean += x[i];
        mean /= size;
    }
#pragma omp simd reduction(+ : square)
    for (int64_t i = 0; i < size; i++)
        square += (x[i] - mean) * (x[i] - mean);
    const float scale = 1.0f / sqrtf(square / size + eps);
    for (int64_t i = 0; i < size; i++)
        y[i] = (x[i] - mean) * scale;
    if (gain)
        for (int64_t i = 0; i < size; i++)
            y[i] *= gain[i];
    if (shift)
        for (int64_t i = 0; i < size; i++)
            y[i] += shift[i];
}

static void rotate(float *x, const float *cos, const float *sin, int64_t half) {
    for (int64_t i = 0; i < half; i++) {
        const float left = x[i], right = x[i + half];
        x[i] = left * cos[i] - right * sin[i];
        x[i + half] = right * cos[i] + left * sin[i];
    }
}

/* One row's query heads that share a key head: stores the new key and value, then attends. */
static void attend(const Network *net, const Layer *layer, const float *normed, int64_t token,
                   float *q, float *k, float *v, float *keys, float *values, int64_t g,
                   int64_t position, float *scores, float *restrict heads) {
    const int64_t K = net->head_size, R = net->n_head / net->kv_heads;
    if (layer->value_gate) {
        const int64_t channels = net->value_gate_channels;
        float gate = 0;
        for (int64_t i = 0; i < channels; i++)
            gate += element(layer->value_gate, g * channels + i, net->bf16) * normed[i];
        gate = net->value_gate_scale / (1.0f + exponential(-gate));
        const int64_t begin = (token * net->kv_heads + g) * K;
        for (int64_t i = 0; i < K; i++)
            v[i] += gate * element(layer->value_table, begin + i, net->bf16);
    }
    if (net->qk_norm) {
        normalise(k, layer->k_gain, 0, 0, net->eps, K, k);
        for (int64_t r = 0; r < R; r++)
            normalise(q + r * K, layer->q_gain, 0, 0, net->eps, K, q + r * K);
    }
    if (net->cos) {
        const float *cos = net->cos + position * (K / 2), *sin = net->sin + position * (K / 2);
        rotate(k, cos, sin, K / 2);
        for (int64_t r = 0; r < R; r++)
            rotate(q + r * K, cos, sin, K / 2);
    }
    memcpy(keys + position * K, k, K * sizeof(float));
    memcpy(values + position * K, v, K * sizeof(float));

    const int64_t hidden = layer->window ? position + 1 - layer->window : 0;
    const int64_t first = hidden > 0 ? hidden : 0;
    const int64_t seen = position + 1 - first;
    product_fp32(q, R, keys + first * K, 0, K, 0, seen, scores, seen);
    const float scale = 1.0f / sqrtf((float)K), cap = net->attn_softcap;
    for (int64_t r = 0; r < R; r++) {
        float *score = scores + r * seen, *head = heads + r * K, highest = -INFINITY, sum = 0;
        for (int64_t s = 0; s < seen; s++)
            score[s] *= scale;
        if (cap > 0)
            for (int64_t s = 0; s < seen; s++)
                score[s] = cap * hyperbolic_tangent(score[s] / cap);
#pragma omp simd reduction(max : highest)
        for (int64_t s = 0; s < seen; s++)
            highest = score[s] > highest ? score[s] : highest;
#pragma omp simd reduction(+ : sum)
        for (int64_t s = 0; s < seen; s++) {
            score[s] = exponential(score[s] - highest);
            sum += score[s];
        }
        memset(head, 0, K * sizeof(float));
        for (int64_t s = 0; s < seen; s++) {
            const float *value = values + (first + s) * K;
            for (int64_t i = 0; i < K; i++)
                head[i] += score[s] * value[i];
        }
        for (int64_t i = 0; i < K; i++)
            head[i] /= sum;
    }
}

static void activate(int64_t activation, float *up, const float *gate, int64_t size) {
    const float root = 0.7978845608f; /* sqrt(2 / pi) */
    switch (activation) {
    case SWIGLU:
        for (int64_t i = 0; i < size; i++)
            up[i] *= gate[i] / (1.0f + exponential(-gate[i]));
        break;
    case GEGLU:
    case GELU_TANH:
        for (int64_t i = 0; i < size; i++) {
            const float x = activation == GEGLU ? gate[i] : up[i];
            const float y =
                0.5f * x * (1.0f + hyperbolic_tangent(root * (x + 0.044715f * x * x * x)));
            up[i] = activation == GEGLU ? up[i] * y : y;
        }
        break;
    case GELU:
        for (int64_t i = 0; i < size; i++)
            up[i] = 0.5f * up[i] * (1.0f + erff(up[i] * 0.7071067812f));
        break;
    case RELU2:
        for (int64_t i = 0; i < size; i++)
            up[i] = up[i] > 0 ? up[i] * up[i] : 0 * up[i]; /* 0 * NaN stays NaN */
        break;
    }
}

enum { DONE, NO_MEMORY, UNKNOWN_TOKEN };

/* A barrier that spins for microseconds, then yields. OpenMP's either spins for milliseconds, which
   costs a busy machine the core that the other thread waits for, or sleeps at once. */
typedef struct {
    atomic_long arrived, round;
} Meeting;

static void meet(Meeting *meeting, int64_t threads) {
    const long round = atomic_load(&meeting->round);
    if (atomic_fetch_add(&meeting->arrived, 1) == threads - 1) {
        atomic_store(&meeting->arrived, 0);
        atomic_store(&meeting->round, round + 1);
        return;
    }
    for (int spins = 0; atomic_load(&meeting->round) == round; spins++)
        if (spins >= 2000) { /* some microseconds */
            sched_yield();
            spins = 0;
        }
}

/* Decode one token a row. A network that smears has the token before each in `before`, one with a
   bigram table the row of each token in `pairs`; -1 for none. */
int decode_step(const Network *net, const Cache *cache, const int64_t *tokens,
                const int64_t *before, const int64_t *pairs, int64_t B, int64_t n_threads,
                float *logits_BV) {
    const int64_t D = net->width, H = net->n_head, G = net->kv_heads, K = net->head_size;
    const int64_t F = net->ffn_size, V = net->vocab_size;
    int64_t longest = 0;
    for (int64_t b = 0; b < B; b++)
        if (tokens[b] < 0 || tokens[b] >= V)
            return UNKNOWN_TOKEN;
    for (int64_t b = 0; b < B; b++)
        longest = cache->positions[b] >= longest ? cache->positions[b] + 1 : longest;
    const int64_t own = B * D + H / G * longest; /* floats that a thread has for itself */
    float *scratch =
        malloc((B * (2 * D + 2 * H * K + 2 * G * K + 2 * F) + n_threads * own) * sizeof(float));
    if (!scratch)
        return NO_MEMORY;
    float *x_BD = scratch, *embedding_BD = x_BD + B * D, *q_BHK = embedding_BD + B * D;
    float *heads_BHK = q_BHK + B * H * K, *k_BGK = heads_BHK + B * H * K;
    float *v_BGK = k_BGK + B * G * K, *up_BF = v_BGK + B * G * K, *gate_BF = up_BF + B * F;
    float *private = gate_BF + B * F;

    for (int64_t b = 0; b < B; b++) {
        float *x = x_BD + b * D;
        for (int64_t i = 0; i < D; i++)
            x[i] = element(net->token_table, tokens[b] * D + i, net->bf16);
        if (net->position_table)
            for (int64_t i = 0; i < D; i++)
                x[i] += element(net->position_table, cache->positions[b] * D + i, net->bf16);
        if (net->embed_norm)
            normalise(x, net->embed_gain, net->embed_shift, net->layernorm, net->eps, D, x);
        if (net->smear && before[b] >= 0) {
            float *earlier = embedding_BD + b * D; /* not in use yet */
            for (int64_t i = 0; i < D; i++)
                earlier[i] = element(net->token_table, before[b] * D + i, net->bf16);
            if (net->embed_norm)
                normalise(earlier, net->embed_gain, net->embed_shift, net->layernorm, net->eps, D,
                          earlier);
            for (int64_t i = 0; i < D; i++)
                x[i] += net->smear[i] * earlier[i];
        }
    }
    memcpy(embedding_BD, x_BD, B * D * sizeof(float));

    Meeting meeting = {0};
#pragma omp parallel num_threads(n_threads)
    {
        const int64_t me = omp_get_thread_num(), threads = omp_get_num_threads();
        float *normed_BD = private + me * own, *scores = normed_BD + B * D;
        product_of *linear = net->bf16 ? product_bf16 : product_fp32;
#define SHARE(SIZE) (SIZE) * me / threads, (SIZE) * (me + 1) / threads
        for (int64_t l = 0; l < net->n_layer; l++) {
            const Layer *layer = net->layers + l;
            if (net->residual_scalars || net->bigram_table) {
                const int64_t first = B * D * me / threads, last = B * D * (me + 1) / threads;
                if (net->residual_scalars)
                    for (int64_t i = first; i < last; i++)
                        x_BD[i] = layer->stream_scale * x_BD[i] +
                                  layer->embedding_scale * embedding_BD[i];
                if (net->bigram_table)
                    for (int64_t i = first; i < last; i++)
                        if (pairs[i / D] >= 0)
                            x_BD[i] += layer->bigram_scale *
                                       element(net->bigram_table, pairs[i / D] * D + i % D,
                                               net->bf16);
                meet(&meeting, threads);
            }
            for (int64_t b = 0; b < B; b++) /* every thread alone: cheaper than a barrier */
                normalise(x_BD + b * D, layer->attention_gain, layer->attention_shift,
                          net->layernorm, net->eps, D, normed_BD + b * D);
            linear(normed_BD, B, layer->q, layer->q_bias, D, SHARE(H * K), q_BHK, H * K);
            linear(normed_BD, B, layer->k, layer->k_bias, D, SHARE(G * K), k_BGK, G * K);
            linear(normed_BD, B, layer->v, layer->v_bias, D, SHARE(G * K), v_BGK, G * K);
            meet(&meeting, threads);
            const int64_t last = B * G * (me + 1) / threads;
            for (int64_t i = B * G * me / threads; i < last; i++) {
                const int64_t b = i / G, g = i % G;
                const int64_t place =
                    l * cache->layer_stride + b * cache->row_stride + g * cache->head_stride;
                attend(net, layer, normed_BD + b * D, tokens[b], q_BHK + i * (H / G) * K,
                       k_BGK + i * K, v_BGK + i * K, cache->keys + place, cache->values + place,
                       g, cache->positions[b], scores,
                       heads_BHK + i * (H / G) * K);
            }
            meet(&meeting, threads);
            const int64_t begin = D * me / threads, end = D * (me + 1) / threads;
            linear(heads_BHK, B, layer->out, layer->out_bias, H * K, begin, end, normed_BD, D);
            for (int64_t b = 0; b < B; b++)
                for (int64_t i = begin; i < end; i++)
                    x_BD[b * D + i] += normed_BD[b * D + i];
            meet(&meeting, threads);
            for (int64_t b = 0; b < B; b++)
                normalise(x_BD + b * D, layer->ffn_gain, layer->ffn_shift, net->layernorm, net->eps,
                          D, normed_BD + b * D);
            if (layer->gate)
                linear(normed_BD, B, layer->gate, layer->gate_bias, D, SHARE(F), gate_BF, F);
            linear(normed_BD, B, layer->up, layer->up_bias, D, SHARE(F), up_BF, F);
            const int64_t from = F * me / threads, size = F * (me + 1) / threads - from;
            for (int64_t b = 0; b < B; b++)
                activate(net->activation, up_BF + b * F + from, gate_BF + b * F + from, size);
            meet(&meeting, threads);
            linear(up_BF, B, layer->down, layer->down_bias, F, begin, end, normed_BD, D);
            for (int64_t b = 0; b < B; b++)
                for (int64_t i = begin; i < end; i++)
                    x_BD[b * D + i] += normed_BD[b * D + i];
            meet(&meeting, threads);
        }
        for (int64_t b = 0; b < B; b++)
            normalise(x_BD + b * D, net->final_gain, net->final_shift, net->layernorm, net->eps, D,
                      normed_BD + b * D);
        const int64_t first = V * me / threads, last = V * (me + 1) / threads;
        linear(normed_BD, B, net->head, 0, D, first, last, logits_BV, V);
        if (net->logit_scale != 1)
            for (int64_t b = 0; b < B; b++)
                for (int64_t i = first; i < last; i++)
                    logits_BV[b * V + i] *= net->logit_scale;
        if (net->logit_softcap > 0)
            for (int64_t b = 0; b < B; b++)
                for (int64_t i = first; i < last; i++)
                    logits_BV[b * V + i] = net->logit_softcap *
                        hyperbolic_tangent(logits_BV[b * V + i] / net->logit_softcap);
        meet(&meeting, threads); /* OpenMP's own barrier follows, where nobody is late then */
    }
    free(scratch);
    return DONE;
}

/* Ask for pages of 2 MB in begin .. end - 1: with 4 kB two threads read weights at two thirds of the
   speed on Zen 3, for want of translated addresses. It is advice: it stays without effect where the
   system has no such pages, or the memory is a file's. */
void prefer_large_pages(uintptr_t begin, uintptr_t end) {
#ifdef __linux__
    const uintptr_t large = (uintptr_t)2 << 20;
    begin = (begin + large - 1) / large * large;
    end = end / large * large;
    if (begin >= end)
        return;
    madvise((void *)begin, end - begin, MADV_HUGEPAGE);
    for (; begin < end; begin += large) /* one that fails does not keep the others back */
        madvise((void *)begin, large, 25 /* MADV_COLLAPSE, since Linux 6.1: now, not some day */);
#endif
}
