// Multilayer perceptrons with ELU, ReLU or tanh between their layers, float32: forward, and gradients of weights and inputs.
//
// What BLAS cannot do for them: bias, activation and their derivatives happen while a block is still in registers, and rows are
// taken in tiles that stay in the second-level cache, from the table they are gathered from to the gradients they are added to.
// One thread; the caller shares rows among threads.
//
// Widths are padded with zeros to whole vectors, so that no kernel has a tail.  Legend: R rows, K inputs, N outputs of a layer.

#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <type_traits>
#include <utility>

namespace {

#if defined(__AVX512F__)
constexpr int VECTOR = 16, COLUMNS = 4, ROWS = 6;  // 24 accumulators of 32 registers
#elif defined(__AVX2__)
constexpr int VECTOR = 8, COLUMNS = 2, ROWS = 6;  // 12 of 16
#else
constexpr int VECTOR = 4, COLUMNS = 4, ROWS = 6;  // 24 of NEON's 32
#endif
typedef float vec __attribute__((vector_size(VECTOR * 4), aligned(4), may_alias));
typedef int32_t ivec __attribute__((vector_size(VECTOR * 4), aligned(4), may_alias));

inline vec load(const float* p) { return *(const vec*)p; }
inline void store(float* p, vec v) { *(vec*)p = v; }
inline vec all(float x) { return vec{} + x; }

// e^x - 1 for x < 0; e^x = 2^n e^r, |r| <= ln 2 / 2, by a polynomial of degree 6 (1e-7 of e^r).
inline vec expm1(vec x) {
  vec y = x < -87.0f ? all(-87.0f) : x;
  y = y > 0.0f ? all(0.0f) : y;
  vec shifted = y * 1.44269504f + 12582912.0f;  // adding 1.5 * 2^23 rounds to a whole number
  vec n = shifted - 12582912.0f;
  vec r = y - n * 0.693145752f - n * 1.42860677e-6f;
  vec p = all(1.0f / 720.0f);
  p = p * r + 1.0f / 120.0f;
  p = p * r + 1.0f / 24.0f;
  p = p * r + 1.0f / 6.0f;
  p = p * r + 0.5f;
  p = p * r * r + r;  // e^r - 1
  ivec exponent = ((ivec)shifted - 0x4b400000 + 127) << 23;
  vec scale = (vec)exponent;
  return scale * p + (scale - 1.0f);
}

// Between layers, as the caller counts them.
enum class Activation : int64_t { ELU, RELU, TANH };

template <Activation ACTIVATION>
inline vec activate(vec x) {
  if (ACTIVATION == Activation::RELU) return x < 0.0f ? all(0.0f) : x;
  if (ACTIVATION == Activation::ELU) return x > 0.0f ? x : expm1(x);
  vec below = expm1(x < 0.0f ? 2.0f * x : -2.0f * x);  // tanh(-|x|) = (e^-2|x| - 1) / (e^-2|x| + 1)
  vec y = below / (below + 2.0f);
  return x < 0.0f ? y : -y;
}

// The derivative by the value y.
template <Activation ACTIVATION>
inline vec slope(vec y) {
  if (ACTIVATION == Activation::RELU) return y > 0.0f ? all(1.0f) : all(0.0f);
  if (ACTIVATION == Activation::ELU) return y > 0.0f ? all(1.0f) : y + 1.0f;
  return 1.0f - y * y;
}

// What becomes of a block before it is stored.
enum class After { STORE, ADD, ACTIVATE, SLOPE };

// C[M x (V vectors)] = A B (+ bias), A[i][k] = a[i * row + k * step], B's rows `ldb` apart.
template <int M, int V, After AFTER, Activation ACTIVATION>
inline void block(int64_t K, const float* a, int64_t row, int64_t step, const float* b, int64_t ldb, const float* bias,
                  float* c, int64_t ldc, const float* active) {
  vec acc[M][V];
  for (int i = 0; i < M; i++)
    for (int j = 0; j < V; j++) acc[i][j] = bias ? load(bias + j * VECTOR) : vec{};
  for (int64_t k = 0; k < K; k++) {
    vec right[V];
    for (int j = 0; j < V; j++) right[j] = load(b + k * ldb + j * VECTOR);
    for (int i = 0; i < M; i++) {
      vec left = all(a[i * row + k * step]);
      for (int j = 0; j < V; j++) acc[i][j] += left * right[j];
    }
  }
  for (int i = 0; i < M; i++)
    for (int j = 0; j < V; j++) {
      float* out = c + i * ldc + j * VECTOR;
      vec value = acc[i][j];
      if (AFTER == After::ADD) value += load(out);
      if (AFTER == After::ACTIVATE) value = activate<ACTIVATION>(value);
      if (AFTER == After::SLOPE) value *= slope<ACTIVATION>(load(active + i * ldc + j * VECTOR));
      store(out, value);
    }
}

template <int V, After AFTER, Activation ACTIVATION>
void panel(int64_t M, int64_t K, const float* a, int64_t row, int64_t step, const float* b, int64_t ldb, const float* bias,
           float* c, int64_t ldc, const float* active) {
  const auto rows = [&](auto count, int64_t i) {
    constexpr int SO_MANY = decltype(count)::value;
    const float* at = active ? active + i * ldc : nullptr;
    block<SO_MANY, V, AFTER, ACTIVATION>(K, a + i * row, row, step, b, ldb, bias, c + i * ldc, ldc, at);
  };
  int64_t i = 0;
  for (; i + ROWS <= M; i += ROWS) rows(std::integral_constant<int, ROWS>(), i);
  static_assert(ROWS == 6, "the last rows are one to five");
  switch (M - i) {
    case 5: return rows(std::integral_constant<int, 5>(), i);
    case 4: return rows(std::integral_constant<int, 4>(), i);
    case 3: return rows(std::integral_constant<int, 3>(), i);
    case 2: return rows(std::integral_constant<int, 2>(), i);
    case 1: return rows(std::integral_constant<int, 1>(), i);
  }
}

// C (M x N) = A B, N a whole number of vectors.
template <After AFTER, Activation ACTIVATION = Activation::ELU>
void product(int64_t M, int64_t N, int64_t K, const float* a, int64_t row, int64_t step, const float* b, int64_t ldb,
             const float* bias, float* c, int64_t ldc, const float* active) {
  int64_t j = 0;
  for (; j + COLUMNS * VECTOR <= N; j += COLUMNS * VECTOR)
    panel<COLUMNS, AFTER, ACTIVATION>(M, K, a, row, step, b + j, ldb, bias ? bias + j : nullptr, c + j, ldc, active ? active + j : nullptr);
  for (; j < N; j += VECTOR)
    panel<1, AFTER, ACTIVATION>(M, K, a, row, step, b + j, ldb, bias ? bias + j : nullptr, c + j, ldc, active ? active + j : nullptr);
}

int64_t padded(int64_t n) { return (n + VECTOR - 1) / VECTOR * VECTOR; }

constexpr int64_t TILE = 192;  // rows; a whole number of ROWS
constexpr int MOST_LAYERS = 16, MOST_ACTIONS = 256;

// A network at work on tiles: its weights as the products want them, and what its layers were given.  Its shape: how many layers,
// the activation between them, inputs of the first, outputs of each.
struct Network {
  explicit Network(const int64_t* shape) : layers((int)shape[0]), activation((Activation)shape[1]), widths(shape + 2) {}

  const int layers;
  const Activation activation;
  const int64_t* const widths;
  float *inputs[MOST_LAYERS];                                         // of each layer, padded rows
  const float *forth[MOST_LAYERS], *bias[MOST_LAYERS], *back[MOST_LAYERS];  // W^T, b and W, padded
  float *dweight[MOST_LAYERS], *dbias[MOST_LAYERS];                         // sums over tiles, padded

  int64_t last() const { return padded(widths[layers]); }

  int64_t widest() const {
    int64_t most = 0;
    for (int l = 0; l < layers; l++) most = std::max(most, padded(widths[l + 1]));
    return most;
  }

  // Room for the inputs of so many rows; what is left of the memory.
  float* make_room(int64_t rows, float* memory) {
    for (int l = 0; l < layers; l++) inputs[l] = memory, memory += rows * padded(widths[l]);
    return memory;
  }

  // Whether a layer's weights, and their gradient, are padded as they are.
  bool is_whole(int l) const { return widths[l] == padded(widths[l]); }

  // Where `prepare` has left the weights, and, to go back, where they lie themselves.
  void read(const float* prepared, const float* const* weights = nullptr) {
    for (int l = 0; l < layers; l++) {
      int64_t K = padded(widths[l]), N = padded(widths[l + 1]);
      forth[l] = prepared, bias[l] = forth[l] + K * N, prepared = bias[l] + N;
      back[l] = weights ? weights[l] : nullptr;
      if (!is_whole(l)) back[l] = prepared, prepared += N * K;
    }
  }

  // Room for the gradient, zero: where it shall be left, if it is not padded; what is left of the memory.
  float* make_gradient(float* memory, float* const* dweights) {
    for (int l = 0; l < layers; l++) {
      int64_t K = padded(widths[l]), N = padded(widths[l + 1]);
      dbias[l] = memory, memory += N;
      dweight[l] = dweights[l];
      if (!is_whole(l)) dweight[l] = memory, memory += N * K;
      std::memset(dbias[l], 0, sizeof(float) * N);
      std::memset(dweight[l], 0, sizeof(float) * widths[l + 1] * K);
    }
    return memory;
  }

  // A row of the first layer's input.
  void give(int64_t row, const float* x) {
    float* to = inputs[0] + row * padded(widths[0]);
    std::memcpy(to, x, sizeof(float) * widths[0]);
    std::memset(to + widths[0], 0, sizeof(float) * (padded(widths[0]) - widths[0]));
  }

  // y, (count, last()), of the rows of inputs from `at` on.
  void forward(int64_t count, int64_t at, float* y) {
    if (activation == Activation::ELU) return forward<Activation::ELU>(count, at, y);
    if (activation == Activation::RELU) return forward<Activation::RELU>(count, at, y);
    forward<Activation::TANH>(count, at, y);
  }

  template <Activation ACTIVATION>
  void forward(int64_t count, int64_t at, float* y) {
    for (int l = 0; l < layers; l++) {
      int64_t K = padded(widths[l]), N = padded(widths[l + 1]);
      const float* a = inputs[l] + at * K;
      if (l + 1 < layers)
        product<After::ACTIVATE, ACTIVATION>(count, N, widths[l], a, K, 1, forth[l], N, bias[l], inputs[l + 1] + at * N, N, nullptr);
      else
        product<After::STORE>(count, N, widths[l], a, K, 1, forth[l], N, bias[l], y, N, nullptr);
    }
  }

  // y, (count, widths[layers]) from row `at` on, of x, rows `ldx` apart; `out` has room for (count, last()).
  void answer(int64_t count, int64_t at, const float* x, int64_t ldx, float* y, float* out) {
    const int64_t width = widths[layers];
    for (int64_t i = 0; i < count; i++) give(at + i, x + i * ldx);
    forward(count, at, out);
    for (int64_t i = 0; i < count; i++) std::memcpy(y + (at + i) * width, out + i * last(), sizeof(float) * width);
  }

  // Adds the gradient of the same rows; d: dL/dy, (count, last()), and `spare` are overwritten, both as wide as the widest layer.
  void backward(int64_t count, int64_t at, float* d, float* spare) {
    if (activation == Activation::ELU) return backward<Activation::ELU>(count, at, d, spare);
    if (activation == Activation::RELU) return backward<Activation::RELU>(count, at, d, spare);
    backward<Activation::TANH>(count, at, d, spare);
  }

  template <Activation ACTIVATION>
  void backward(int64_t count, int64_t at, float* d, float* spare) {
    for (int l = layers - 1; l >= 0; l--) {
      int64_t K = padded(widths[l]), N = padded(widths[l + 1]);
      const float* a = inputs[l] + at * K;
      product<After::ADD>(widths[l + 1], K, count, d, 1, N, a, K, nullptr, dweight[l], K, nullptr);  // dW += d^T a
      for (int64_t i = 0; i < count; i++)
        for (int64_t n = 0; n < N; n += VECTOR) store(dbias[l] + n, load(dbias[l] + n) + load(d + i * N + n));
      if (l > 0) {  // d = (d W) times the slope
        product<After::SLOPE, ACTIVATION>(count, K, widths[l + 1], d, N, 1, back[l], K, nullptr, spare, K, a);
        std::swap(d, spare);
      }
    }
  }

  // dL/dx of the same rows, (count, padded inputs), its columns from the vector of `first` on, in one of the two tiles, which are
  // overwritten and as wide as the widest layer and x.
  float* slope_of_inputs(int64_t count, int64_t at, float* d, float* spare, int64_t first) {
    if (activation == Activation::ELU) return slope_of_inputs<Activation::ELU>(count, at, d, spare, first);
    if (activation == Activation::RELU) return slope_of_inputs<Activation::RELU>(count, at, d, spare, first);
    return slope_of_inputs<Activation::TANH>(count, at, d, spare, first);
  }

  template <Activation ACTIVATION>
  float* slope_of_inputs(int64_t count, int64_t at, float* d, float* spare, int64_t first) {
    for (int l = layers - 1; l > 0; l--) {
      int64_t K = padded(widths[l]), N = padded(widths[l + 1]);
      const float* a = inputs[l] + at * K;
      product<After::SLOPE, ACTIVATION>(count, K, widths[l + 1], d, N, 1, back[l], K, nullptr, spare, K, a);
      std::swap(d, spare);
    }
    int64_t K = padded(widths[0]), from = first / VECTOR * VECTOR;
    product<After::STORE>(count, K - from, widths[1], d, padded(widths[1]), 1, back[0] + from, K, nullptr, spare + from, K, nullptr);
    return spare;
  }

  // Leaves the sums without padding.
  void finish(float* const* dweights, float* const* dbiases) const {
    for (int l = 0; l < layers; l++) {
      int64_t K = widths[l], N = widths[l + 1];
      for (int64_t n = 0; n < N && !is_whole(l); n++)
        std::memcpy(dweights[l] + n * K, dweight[l] + n * padded(K), sizeof(float) * K);
      std::memcpy(dbiases[l], dbias[l], sizeof(float) * N);
    }
  }
};

// Floats of the inputs of every layer, padded.
int64_t kept_size(int64_t rows, const int64_t* shape) {
  const Network network(shape);
  int64_t total = 0;
  for (int l = 0; l < network.layers; l++) total += rows * padded(network.widths[l]);
  return total;
}

// Floats of a gradient, and of two tiles as wide as the widest layer.
int64_t scratch_size(const int64_t* shape) {
  const Network network(shape);
  int64_t gradient = 0;
  for (int l = 0; l < network.layers; l++) gradient += (padded(network.widths[l]) + 1) * padded(network.widths[l + 1]);
  return gradient + 2 * TILE * network.widest();
}

}  // namespace
