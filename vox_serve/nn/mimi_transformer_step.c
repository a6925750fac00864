/* Runs the latents of one frame of each row through Mimi's decoder transformer in one call;
 * `mimi_transformer.py` needs some 60 torch operations.  `mimi_transformer_step.py` compiles it; its
 * tests compare it with plain torch.
 *
 * Everything is float32.  A row's result does not depend on the other rows.
 */
#include "wide.h"

typedef struct {
    const float *weight1, *bias1, *weight2, *bias2; /* of the norms */
    Blocks qkv, output, up, down;
} Layer;

typedef struct {
    int64_t layers, heads, head_dim, window, capacity;
    float eps;
    const float *frequencies; /* RoPE: [head_dim / 2] */
    const Layer *layer;
} Stack;

static void layer_norm(const float *x, const float *weight, const float *bias, float eps,
                       int64_t size, float *y) {
    wide total = {0}, squares = {0};
    for (int64_t i = 0; i < size; i += WIDE)
        total += load(x + i);
    float mean = sum(total) / size;
    for (int64_t i = 0; i < size; i += WIDE) {
        wide v = load(x + i) - mean;
        squares += v * v;
    }
    float scale = 1.0f / sqrtf(sum(squares) / size + eps);
    for (int64_t i = 0; i < size; i++)
        y[i] = (x[i] - mean) * scale * weight[i] + bias[i];
}

/* GELU with an error below 1e-6: erf by Abramowitz and Stegun, 7.1.26. */
static void gelu(float *x, int64_t size) {
    for (int64_t i = 0; i < size; i += WIDE) {
        wide v = load(x + i), z = v * 0.70710678f, a = choose(z < 0.0f, -z, z);
        wide t = 1.0f / (1.0f + 0.3275911f * a);
        wide p = t * 1.061405429f - 1.453152027f;
        p = p * t + 1.421413741f;
        p = p * t - 0.284496736f;
        p = p * t + 0.254829592f;
        wide rest = p * t * exponential(-a * a); /* 1 - erf(a) */
        v *= 0.5f * choose(z < 0.0f, rest, 2.0f - rest);
        memcpy(x + i, &v, sizeof v);
    }
}

/* Rotates pairs of neighbours by position * frequency. */
static void rotate(float *x, int64_t heads, int64_t head_dim, const float *cos, const float *sin) {
    for (int64_t head = 0; head < heads; head++, x += head_dim)
        for (int64_t i = 0; i < head_dim / 2; i++) {
            float a = x[2 * i], b = x[2 * i + 1];
            x[2 * i] = a * cos[i] - b * sin[i];
            x[2 * i + 1] = a * sin[i] + b * cos[i];
        }
}

/* One query over the ring's keys and values at positions from .. to. */
static void attend(const float *q, const float *keys, const float *values, int64_t from,
                   int64_t to, int64_t capacity, int64_t size, float *scores, float *out) {
    float scale = 1.0f / sqrtf((float)size), largest = -INFINITY;
    int64_t count = to + 1 - from, room = (count + WIDE - 1) / WIDE * WIDE;
    for (int64_t p = 0; p < count; p++) {
        scores[p] = dot(q, keys + (from + p) % capacity * size, size) * scale;
        largest = scores[p] > largest ? scores[p] : largest;
    }
    for (int64_t p = count; p < room; p++)
        scores[p] = -INFINITY;
    wide total = {0};
    for (int64_t p = 0; p < room; p += WIDE) {
        wide e = exponential(load(scores + p) - largest);
        memcpy(scores + p, &e, sizeof e);
        total += e;
    }
    float share = 1.0f / sum(total);
    memset(out, 0, size * sizeof(float));
    for (int64_t p = 0; p < count; p++) {
        const float *value = values + (from + p) % capacity * size;
        for (int64_t i = 0; i < size; i++)
            out[i] += value[i] * (scores[p] * share);
    }
}

/* x [rows, time, size] is overwritten with the result.  A ring is [slots, 2, heads, capacity,
 * head_dim].  `work` has room for rows * time * (2 * size + heads * head_dim + the larger of
 * 3 * heads * head_dim and the inner size) and for capacity + UNIT + head_dim. */
void mimi_transformer_step(const Stack *s, float *const *rings, const int64_t *slots,
                           const int64_t *first, int64_t rows, int64_t time, float *x,
                           float *work) {
    int64_t dim = s->head_dim, inner = s->heads * dim, size = s->layer->qkv.in;
    int64_t vectors = rows * time, plane = s->capacity * dim;
    float *normed = work, *left = normed + vectors * size, *seen = left + vectors * size;
    float *cos = seen + vectors * inner, *sin = cos + dim / 2, *scores = sin + dim / 2;
    float *big = scores + s->capacity + UNIT;
    for (int64_t number = 0; number < s->layers; number++) {
        const Layer *l = s->layer + number;
        for (int64_t n = 0; n < vectors; n++)
            layer_norm(x + n * size, l->weight1, l->bias1, s->eps, size, normed + n * size);
        product(&l->qkv, normed, vectors, size, 1, 0, big);
        for (int64_t n = 0; n < vectors; n++) {
            int64_t position = first[n / time] + n % time;
            float *q = big + n * 3 * inner, *k = q + inner, *v = k + inner;
            float *ring = rings[number] + slots[n / time] * 2 * s->heads * plane;
            for (int64_t i = 0; i < dim / 2; i++) {
                float angle = (float)position * s->frequencies[i];
                cos[i] = cosf(angle);
                sin[i] = sinf(angle);
            }
            rotate(q, 2 * s->heads, dim, cos, sin); /* and k */
            for (int64_t head = 0; head < s->heads; head++) {
                float *keys = ring + head * plane, *values = keys + s->heads * plane;
                int64_t place = position % s->capacity * dim;
                memcpy(keys + place, k + head * dim, dim * sizeof(float));
                memcpy(values + place, v + head * dim, dim * sizeof(float));
                int64_t from = position < s->window ? 0 : position - s->window + 1;
                attend(q + head * dim, keys, values, from, position, s->capacity, dim, scores,
                       seen + n * inner + head * dim);
            }
        }
        product(&l->output, seen, vectors, inner, 1, 0, left);
        add(x, left, vectors * size);
        for (int64_t n = 0; n < vectors; n++)
            layer_norm(x + n * size, l->weight2, l->bias2, s->eps, size, normed + n * size);
        product(&l->up, normed, vectors, size, 1, 0, big);
        gelu(big, vectors * l->up.out);
        product(&l->down, big, vectors, l->up.out, 1, 0, left);
        add(x, left, vectors * size);
    }
}
