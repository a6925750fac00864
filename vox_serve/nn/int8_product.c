/* Products of 8-bit matrices, with a scale for each row of both, for `Int8Linear`.
 *
 * Sums are exact, so a result depends neither on the other rows nor on the number of threads.
 */
#include <math.h>
#include <stdint.h>
#include <string.h>
#ifdef __AVX2__
#include <immintrin.h>
#endif

/* Outputs and rows whose sums fit in the processor's registers; inputs that one instruction adds up,
 * and their type. */
#if defined(__AVX512VNNI__)
#define BLOCK 64
#define ROWS 6
#define GROUP 4
typedef uint8_t Input;
#else
#define BLOCK 16
#define ROWS 4
#define GROUP 2
typedef int16_t Input; /* AVX2's sum of two 8-bit products overflows 16 bits */
#endif
const int64_t int8_block = BLOCK, int8_group = GROUP;

/* To 128 + 127 x / scale, because VNNI multiplies unsigned with signed bytes.  A scale of NaN marks a
 * row with a NaN or an infinity. */
static void round_row(const float *x, int64_t in, int64_t padded, Input *rounded, float *scale) {
    float largest = 1e-12f, bad = 0.0f;
    for (int64_t k = 0; k < in; k++) {
        float size = fabsf(x[k]);
        largest = size > largest ? size : largest;
        bad += x[k] * 0.0f;
    }
    float steps = bad == 0.0f ? 127.0f / largest : 0.0f;
    for (int64_t k = 0; k < in; k++)
        rounded[k] = (Input)(int32_t)(x[k] * steps + 128.5f);
    memset(rounded + in, 0, (padded - in) * sizeof *rounded);
    *scale = bad == 0.0f ? largest / 127.0f : NAN;
}

/* Sums of a block of outputs for some rows.  Callers pass a constant as `rows`, so that all sums
 * stay in registers. */
static inline __attribute__((always_inline)) void
block(const Input *x, const int8_t *weight, int64_t in, int rows, int32_t sums[ROWS][BLOCK]) {
#if defined(__AVX512VNNI__)
    __m512i s[ROWS][BLOCK / 16];
    for (int row = 0; row < rows; row++)
        for (int i = 0; i < BLOCK / 16; i++)
            s[row][i] = _mm512_setzero_si512();
    for (int64_t k = 0; k < in; k += 4) {
        __m512i w[BLOCK / 16];
        for (int i = 0; i < BLOCK / 16; i++)
            w[i] = _mm512_loadu_si512(weight + k * BLOCK + 64 * i);
        for (int row = 0; row < rows; row++) {
            int32_t four;
            memcpy(&four, x + row * in + k, 4);
            for (int i = 0; i < BLOCK / 16; i++)
                s[row][i] = _mm512_dpbusd_epi32(s[row][i], _mm512_set1_epi32(four), w[i]);
        }
    }
    for (int row = 0; row < rows; row++)
        for (int i = 0; i < BLOCK / 16; i++)
            _mm512_storeu_si512(sums[row] + 16 * i, s[row][i]);
#elif defined(__AVX2__)
    __m256i s[ROWS][BLOCK / 8];
    for (int row = 0; row < rows; row++)
        for (int i = 0; i < BLOCK / 8; i++)
            s[row][i] = _mm256_setzero_si256();
    for (int64_t k = 0; k < in; k += 2) {
        __m256i w[BLOCK / 8];
        for (int i = 0; i < BLOCK / 8; i++)
            w[i] = _mm256_cvtepi8_epi16(
                _mm_loadu_si128((const __m128i *)(weight + k * BLOCK + 16 * i)));
        /* The processor itself does not fetch far enough ahead. */
        _mm_prefetch((const char *)(weight + k * BLOCK + 2048), _MM_HINT_T0);
        for (int row = 0; row < rows; row++) {
            int32_t two;
            memcpy(&two, x + row * in + k, 4);
            for (int i = 0; i < BLOCK / 8; i++)
                s[row][i] = _mm256_add_epi32(s[row][i],
                                             _mm256_madd_epi16(w[i], _mm256_set1_epi32(two)));
        }
    }
    for (int row = 0; row < rows; row++)
        for (int i = 0; i < BLOCK / 8; i++)
            _mm256_storeu_si256((__m256i *)(sums[row] + 8 * i), s[row][i]);
#else
    for (int row = 0; row < rows; row++) {
        memset(sums[row], 0, sizeof sums[row]);
        for (int64_t k = 0; k < in; k += GROUP)
            for (int i = 0; i < BLOCK; i++)
                for (int j = 0; j < GROUP; j++)
                    sums[row][i] += x[row * in + k + j] * weight[k * BLOCK + GROUP * i + j];
    }
#endif
}

/* x [rows, in] to y [rows, outs].  weight: [blocks of outputs, padded / GROUP, BLOCK, GROUP]; scale,
 * offset: of each output, offset is 128 times the sum of its weights.  rounded: room for
 * [rows, padded]; scales: for [rows]. */
void int8_product(const float *x, int64_t rows, int64_t in, int64_t padded, const int8_t *weight,
                  const float *scale, const float *offset, int64_t outs, Input *rounded,
                  float *scales, float *y, int64_t threads) {
#pragma omp parallel num_threads(threads) if (threads > 1)
    {
#pragma omp for
        for (int64_t row = 0; row < rows; row++)
            round_row(x + row * in, in, padded, rounded + row * padded, scales + row);
#pragma omp for
        for (int64_t n = 0; n < outs; n += BLOCK) {
            int64_t count = outs - n < BLOCK ? outs - n : BLOCK, done;
            for (int64_t row = 0; row < rows; row += done) {
                int32_t sums[ROWS][BLOCK];
                const Input *some = rounded + row * padded;
                const int8_t *weights = weight + n * padded;
                int64_t left = rows - row;
                done = left >= ROWS ? ROWS : left >= 2 ? 2 : 1;
                if (done == ROWS)
                    block(some, weights, padded, ROWS, sums);
                else if (done == 2)
                    block(some, weights, padded, 2, sums);
                else
                    block(some, weights, padded, 1, sums);
                for (int64_t i = 0; i < done; i++)
                    for (int64_t j = 0; j < count; j++)
                        y[(row + i) * outs + n + j] = ((float)sums[i][j] - offset[n + j]) *
                                                      (scales[row + i] * scale[n + j]);
            }
        }
    }
}
