/* Runs one position of each row through a Llama stack in one call; `llama.py` needs some 25 torch
 * operations per layer.  `decode_step.py` compiles it; its tests compare it with plain torch.
 *
 * Everything is float32, except that matrices may be bfloat16.  A row's result does not depend on
 * the other rows.  All sizes are multiples of UNIT, except the number of outputs of a matrix.
 */
#include "wide.h"

#define TILE_ROWS 4
typedef uint32_t wide_bits __attribute__((vector_size(4 * WIDE)));
typedef uint16_t half_bits __attribute__((vector_size(2 * WIDE)));

typedef struct {
    const void *data; /* [out / BLOCK, in, BLOCK], the last block padded */
    int64_t out, in, bfloat16;
} Matrix;

typedef struct {
    const float *attention_norm, *feed_forward_norm;
    Matrix qkv, output, gate_up, down;
} Layer;

typedef struct {
    int64_t layers, heads, kv_heads, head_dim, rope_rows; /* rope_rows: of the RoPE tables */
    float eps;
    const float *cos, *sin, *norm; /* [rope_rows, head_dim] twice, [hidden] */
    const Layer *layer;
} Stack;

typedef struct {
    float *keys, *values; /* of one layer: [slots, positions, kv_heads, head_dim] */
} Cache;

static inline wide load_bfloat16(const uint16_t *x) {
    half_bits h;
    memcpy(&h, x, sizeof h);
    return (wide)(__builtin_convertvector(h, wide_bits) << 16);
}

/* Outputs n .. n + BLOCK - 1 of some rows.  Each caller passes a constant as `rows`, so that all sums
 * stay in registers. */
static inline __attribute__((always_inline)) void tile(const Matrix *m, int64_t n, const float *x,
                                                       int rows, float *y) {
    const int columns = SUMS / rows < BLOCK / WIDE ? SUMS / rows : BLOCK / WIDE;
    for (int64_t from = n; from < n + BLOCK && from < m->out; from += columns * WIDE) {
        wide sums[SUMS] = {0};
        for (int64_t k = 0; k < m->in; k++) {
            int64_t place = n * m->in + k * BLOCK + from - n;
            if (WIDE < 16) /* such processors do not fetch far enough ahead */
                __builtin_prefetch((const char *)m->data + (m->bfloat16 ? 2 : 4) * place + 2048);
            wide w[SUMS];
            for (int i = 0; i < columns; i++)
                w[i] = m->bfloat16 ? load_bfloat16((const uint16_t *)m->data + place + i * WIDE)
                                   : load((const float *)m->data + place + i * WIDE);
            for (int row = 0; row < rows; row++)
                for (int i = 0; i < columns; i++)
                    sums[row * columns + i] += w[i] * x[row * m->in + k];
        }
        int64_t count = m->out - from < columns * WIDE ? m->out - from : columns * WIDE;
        for (int row = 0; row < rows; row++)
            memcpy(y + row * m->out + from, sums + row * columns, count * sizeof(float));
    }
}

static void stored_product(const Matrix *m, const float *x, int64_t rows, float *y) {
    for (int64_t n = 0; n < m->out; n += BLOCK) {
        int64_t row = 0;
        for (; rows - row >= TILE_ROWS; row += TILE_ROWS)
            tile(m, n, x + row * m->in, TILE_ROWS, y + row * m->out);
        for (; row < rows; row++)
            tile(m, n, x + row * m->in, 1, y + row * m->out);
    }
}

static void rms_norm(const float *x, const float *weight, float eps, int64_t size, float *y) {
    float scale = 1.0f / sqrtf(dot(x, x, size) / size + eps);
    for (int64_t i = 0; i < size; i++)
        y[i] = x[i] * scale * weight[i];
}

static void rotate(float *x, const float *cos, const float *sin, int64_t size) {
    int64_t half = size / 2;
    for (int64_t i = 0; i < half; i++) {
        float a = x[i], b = x[i + half];
        x[i] = a * cos[i] - b * sin[i];
        x[i + half] = b * cos[i + half] + a * sin[i + half];
    }
}

/* The query heads of a group over `length` positions.  Keys and values are read in order, once.
 * `scores` has room for `group` rows of `room`. */
static void attend(const float *q, const float *keys, const float *values, int64_t length,
                   int64_t stride, int64_t group, int64_t size, float *scores, int64_t room,
                   float *out) {
    float scale = 1.0f / sqrtf((float)size);
    for (int64_t p = 0; p < length; p++)
        for (int64_t g = 0; g < group; g++)
            scores[g * room + p] = dot(q + g * size, keys + p * stride, size) * scale;
    for (int64_t g = 0; g < group; g++) {
        float *own = scores + g * room, largest = own[0];
        wide total = {0};
        for (int64_t p = 1; p < length; p++)
            largest = own[p] > largest ? own[p] : largest;
        for (int64_t p = length; p < room; p++)
            own[p] = -INFINITY;
        for (int64_t p = 0; p < length; p += WIDE) {
            wide e = exponential(load(own + p) - largest);
            memcpy(own + p, &e, sizeof e);
            total += e;
        }
        float share = 1.0f / sum(total);
        for (int64_t p = 0; p < length; p++)
            own[p] *= share;
    }
    memset(out, 0, group * size * sizeof(float));
    for (int64_t p = 0; p < length; p++)
        for (int64_t g = 0; g < group; g++)
            for (int64_t i = 0; i < size; i += WIDE) {
                float *to = out + g * size + i;
                wide v = load(to) + load(values + p * stride + i) * scores[g * room + p];
                memcpy(to, &v, sizeof v);
            }
}

static void attention(const Stack *s, float *qkv, const Cache *cache, int64_t slot,
                      int64_t position, int64_t capacity, float *scores, float *out) {
    int64_t size = s->head_dim, stride = s->kv_heads * size, group = s->heads / s->kv_heads;
    int64_t rope_row = position < s->rope_rows ? position : s->rope_rows - 1;
    /* Padding rows may point past the end. */
    position = position < capacity ? position : capacity - 1;
    for (int64_t head = 0; head < s->heads + s->kv_heads; head++)
        rotate(qkv + head * size, s->cos + rope_row * size, s->sin + rope_row * size, size);
    float *keys = cache->keys + slot * capacity * stride;
    float *values = cache->values + slot * capacity * stride;
    const float *k = qkv + s->heads * size;
    memcpy(keys + position * stride, k, stride * sizeof(float));
    memcpy(values + position * stride, k + stride, stride * sizeof(float));
    int64_t length = position + 1, room = (length + WIDE - 1) / WIDE * WIDE;
    for (int64_t head = 0; head < s->kv_heads; head++)
        attend(qkv + head * group * size, keys + head * size, values + head * size, length, stride,
               group, size, scores, room, out + head * group * size);
}

static void silu_mul(const float *gate, const float *up, int64_t size, float *y) {
    for (int64_t i = 0; i < size; i += WIDE) {
        wide g = load(gate + i);
        wide v = g / (1.0f + exponential(-g)) * load(up + i);
        memcpy(y + i, &v, sizeof v);
    }
}

/* x [rows, hidden] is overwritten with the residual.  out is its last norm, [rows, hidden], or the
 * product of that and `head`, [rows, head->out].  `work` has room for rows * (2 * hidden + more of
 * qkv + heads and 3 * intermediate) and for a group of capacity + UNIT. */
void decode_step(const Stack *s, const Cache *caches, int64_t capacity, const int64_t *slots,
                 const int64_t *positions, int64_t later, int64_t rows, float *x,
                 const Matrix *head, float *out, float *work) {
    int64_t hidden = s->layer->qkv.in, size = rows * hidden;
    float *normed = work, *left = normed + size, *big = left + size;
    for (int64_t number = 0; number < s->layers; number++) {
        const Layer *l = s->layer + number;
        int64_t width = l->qkv.out, inner = l->down.in, heads = l->output.in;
        for (int64_t r = 0; r < rows; r++)
            rms_norm(x + r * hidden, l->attention_norm, s->eps, hidden, normed + r * hidden);
        stored_product(&l->qkv, normed, rows, big);
        float *seen = big + rows * width, *scores = seen + rows * heads;
        for (int64_t r = 0; r < rows; r++)
            attention(s, big + r * width, caches + number, slots[r], positions[r] + later,
                      capacity, scores, seen + r * heads);
        stored_product(&l->output, seen, rows, left);
        add(x, left, size);
        for (int64_t r = 0; r < rows; r++)
            rms_norm(x + r * hidden, l->feed_forward_norm, s->eps, hidden, normed + r * hidden);
        stored_product(&l->gate_up, normed, rows, big);
        float *gated = big + rows * 2 * inner;
        for (int64_t r = 0; r < rows; r++)
            silu_mul(big + r * 2 * inner, big + r * 2 * inner + inner, inner, gated + r * inner);
        stored_product(&l->down, gated, rows, left);
        add(x, left, size);
    }
    float *last = head ? normed : out;
    for (int64_t r = 0; r < rows; r++)
        rms_norm(x + r * hidden, s->norm, s->eps, hidden, last + r * hidden);
    if (head)
        stored_product(head, normed, rows, out);
}
