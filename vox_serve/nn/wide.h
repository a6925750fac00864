/* Vectors of 16 floats, and products of float32 matrices, for the C files in this folder. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#define WIDE 16
#define COLUMNS 4
#define BLOCK (COLUMNS * WIDE)
typedef float wide __attribute__((vector_size(4 * WIDE)));
typedef float half __attribute__((vector_size(2 * WIDE)));
typedef float quarter __attribute__((vector_size(WIDE)));
typedef int32_t wide_int __attribute__((vector_size(4 * WIDE)));

static inline wide load(const float *x) {
    wide v;
    memcpy(&v, x, sizeof v);
    return v;
}

/* Adds one half to the other until four numbers are left. */
static inline float sum(wide v) {
    half a, b;
    memcpy(&a, &v, sizeof a);
    memcpy(&b, (char *)&v + sizeof a, sizeof b);
    a += b;
    quarter c, d;
    memcpy(&c, &a, sizeof c);
    memcpy(&d, (char *)&a + sizeof c, sizeof d);
    c += d;
    return (c[0] + c[2]) + (c[1] + c[3]);
}

static inline float dot(const float *a, const float *b, int64_t size) {
    wide total = {0};
    for (int64_t i = 0; i < size; i += WIDE)
        total += load(a + i) * load(b + i);
    return sum(total);
}

/* Cephes' expf: a power of two times a polynomial.  NaN stays NaN. */
static inline wide exponential(wide x) {
    for (int i = 0; i < WIDE; i++)
        x[i] = x[i] > 88.0f ? 88.0f : x[i] < -87.0f ? -87.0f : x[i];
    wide n = x * 1.44269504f + 12582912.0f; /* rounds to a whole number */
    wide_int power = (wide_int)n;
    n -= 12582912.0f;
    wide r = x - n * 0.693359375f + n * 2.12194440e-4f;
    wide p = r * 1.9875691500e-4f + 1.3981999507e-3f;
    p = p * r + 8.3334519073e-3f;
    p = p * r + 4.1665795894e-2f;
    p = p * r + 1.6666665459e-1f;
    p = p * r + 5.0000001201e-1f;
    p = p * r * r + r + 1.0f;
    return p * (wide)((power << 23) + 0x3f800000);
}

static inline void add(float *x, const float *y, int64_t size) {
    for (int64_t i = 0; i < size; i++)
        x[i] += y[i];
}

typedef struct {
    const float *weight; /* blocks of BLOCK outputs, the last one of a multiple of WIDE: [in, outputs] */
    const float *bias;   /* [out], padded to a multiple of WIDE */
    int64_t in, out;
} Blocks;

/* One block of outputs for some vectors.  Each caller passes constants as `columns` and `rows`, so
 * that all sums stay in registers. */
static inline __attribute__((always_inline)) void block(const float *weight, const float *bias,
                                                        int64_t in, int columns, int rows,
                                                        const float *const *x, float *y,
                                                        int64_t out, int64_t count) {
    wide sums[8][COLUMNS];
    for (int row = 0; row < rows; row++)
        for (int i = 0; i < columns; i++)
            sums[row][i] = load(bias + i * WIDE);
    for (int64_t k = 0; k < in; k++) {
        wide w[COLUMNS];
        for (int i = 0; i < columns; i++)
            w[i] = load(weight + (k * columns + i) * WIDE);
        for (int row = 0; row < rows; row++)
            for (int i = 0; i < columns; i++)
                sums[row][i] += w[i] * x[row][k];
    }
    for (int row = 0; row < rows; row++)
        memcpy(y + row * out, sums[row], count * sizeof(float));
}

/* y [rows * steps, out]: the products and biases of `steps` vectors of each row, `hop` numbers
 * apart; rows are `span` apart. */
static inline void product(const Blocks *m, const float *x, int64_t rows, int64_t span,
                           int64_t steps, int64_t hop, float *y) {
    const float *weight = m->weight;
    for (int64_t n = 0; n < m->out; n += BLOCK) {
        int64_t count = m->out - n < BLOCK ? m->out - n : BLOCK;
        int columns = (count + WIDE - 1) / WIDE, most = columns > 2 ? 4 : 8;
        for (int64_t i = 0, done; i < rows * steps; i += done) {
            int64_t left = rows * steps - i;
            done = left >= most ? most : left >= 2 ? 2 : 1;
            const float *vectors[8];
            for (int64_t row = 0; row < done; row++)
                vectors[row] = x + (i + row) / steps * span + (i + row) % steps * hop;
#define CASE(columns, rows)                                                                        \
    case 10 * columns + rows:                                                                      \
        block(weight, m->bias + n, m->in, columns, rows, vectors, y + i * m->out + n, m->out,      \
              count);                                                                              \
        break;
            switch (10 * columns + done) {
                CASE(4, 4) CASE(4, 2) CASE(4, 1) CASE(3, 4) CASE(3, 2) CASE(3, 1)
                CASE(2, 8) CASE(2, 2) CASE(2, 1) CASE(1, 8) CASE(1, 2) CASE(1, 1)
            }
        }
        weight += columns * WIDE * m->in;
    }
}
