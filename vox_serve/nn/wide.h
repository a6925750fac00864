/* Vectors of floats, and products of float32 matrices, for the C files in this folder.
 *
 * WIDE: floats of the processor's vectors; compilers keep wider ones in memory.  SUMS: how many
 * of them hold sums, which leaves registers for weights. */
#include <math.h>
#include <stdint.h>
#include <string.h>

#if defined(__AVX512F__)
#define WIDE 16
#define SUMS 16
#elif defined(__AVX__)
#define WIDE 8
#define SUMS 8
#elif defined(__aarch64__)
#define WIDE 4
#define SUMS 16
#else
#define WIDE 4
#define SUMS 8
#endif
#define UNIT 16  /* sizes are multiples of this */
#define BLOCK 64 /* outputs of a matrix that are stored together */
typedef float wide __attribute__((vector_size(4 * WIDE)));
typedef int32_t wide_int __attribute__((vector_size(4 * WIDE)));

static inline wide load(const float *x) {
    wide v;
    memcpy(&v, x, sizeof v);
    return v;
}

/* Adds one half to the other until one number is left. */
static inline float sum(wide v) {
    float x[WIDE];
    memcpy(x, &v, sizeof v);
    for (int half = WIDE / 2; half > 0; half /= 2)
        for (int i = 0; i < half; i++)
            x[i] += x[i + half];
    return x[0];
}

/* a where the condition is true, else b. */
static inline wide choose(wide_int condition, wide a, wide b) {
    return (wide)((condition & (wide_int)a) | (~condition & (wide_int)b));
}

static inline float dot(const float *a, const float *b, int64_t size) {
    wide total = {0};
    for (int64_t i = 0; i < size; i += WIDE)
        total += load(a + i) * load(b + i);
    return sum(total);
}

/* Cephes' expf: a power of two times a polynomial.  NaN stays NaN. */
static inline wide exponential(wide x) {
    const wide zero = {0};
    x = choose(x > 88.0f, zero + 88.0f, choose(x < -87.0f, zero - 87.0f, x));
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
    const float *weight; /* blocks of BLOCK outputs, the last one of a multiple of UNIT: [in, outputs] */
    const float *bias;   /* [out], padded to a multiple of UNIT */
    int64_t in, out;
} Blocks;

/* Some columns of a block, of WIDE outputs each, for some vectors.  Each caller passes constants as
 * `columns` and `rows`, whose product is at most SUMS, so that all sums stay in registers.
 * stride: outputs of the block. */
static inline __attribute__((always_inline)) void
some_columns(const float *weight, int64_t stride, const float *bias, int64_t in, int columns,
             int rows, const float *const *x, float *y, int64_t out, int64_t count) {
    wide sums[SUMS];
    for (int row = 0; row < rows; row++)
        for (int i = 0; i < columns; i++)
            sums[row * columns + i] = load(bias + i * WIDE);
    for (int64_t k = 0; k < in; k++) {
        wide w[SUMS];
        for (int i = 0; i < columns; i++)
            w[i] = load(weight + k * stride + i * WIDE);
        for (int row = 0; row < rows; row++)
            for (int i = 0; i < columns; i++)
                sums[row * columns + i] += w[i] * x[row][k];
    }
    for (int row = 0; row < rows; row++)
        memcpy(y + row * out, sums + row * columns, count * sizeof(float));
}

/* y [rows * steps, out]: the products and biases of `steps` vectors of each row, `hop` numbers
 * apart; rows are `span` apart. */
static inline void product(const Blocks *m, const float *x, int64_t rows, int64_t span,
                           int64_t steps, int64_t hop, float *y) {
    const float *weight = m->weight;
    for (int64_t n = 0; n < m->out; n += BLOCK) {
        int64_t count = m->out - n < BLOCK ? m->out - n : BLOCK;
        int64_t stride = (count + UNIT - 1) / UNIT * UNIT;
        int64_t all = (count + WIDE - 1) / WIDE, most = 8 * all <= SUMS ? 8 : 4;
        for (int64_t i = 0, done; i < rows * steps; i += done) {
            int64_t left = rows * steps - i;
            done = left >= most ? most : left >= 4 ? 4 : left >= 2 ? 2 : 1;
            const float *vectors[8];
            for (int64_t row = 0; row < done; row++)
                vectors[row] = x + (i + row) / steps * span + (i + row) % steps * hop;
            for (int64_t j = 0, columns; j < all; j += columns) {
                columns = SUMS / done < all - j ? SUMS / done : all - j;
                columns = columns >= 8 ? 8 : columns >= 4 ? 4 : columns;
                const float *w = weight + j * WIDE, *bias = m->bias + n + j * WIDE;
                float *to = y + i * m->out + n + j * WIDE;
                int64_t own = columns * WIDE < count - j * WIDE ? columns * WIDE : count - j * WIDE;
#define CASE(columns, rows)                                                                        \
    case 10 * columns + rows:                                                                      \
        if (columns * rows <= SUMS)                                                                \
            some_columns(w, stride, bias, m->in, columns, rows, vectors, to, m->out, own);         \
        break;
                switch (10 * columns + done) {
                    CASE(8, 2) CASE(8, 1) CASE(4, 4) CASE(4, 2) CASE(4, 1) CASE(3, 4) CASE(3, 2)
                    CASE(3, 1) CASE(2, 8) CASE(2, 4) CASE(2, 2) CASE(2, 1) CASE(1, 8) CASE(1, 4)
                    CASE(1, 2) CASE(1, 1)
                }
            }
        }
        weight += stride * m->in;
    }
}
