// Multilayer perceptrons with ELU, ReLU or tanh between their layers, float32: forward, gradients of the weights, and a minibatch of PPO.
//
// What BLAS cannot do for them: bias, activation and their derivatives happen while a block is still in registers, and rows are
// taken in tiles that stay in the second-level cache, from the table they are gathered from to the gradients they are added to.
// One thread, and the caller shares rows among threads; only `infer` has helpers of its own.
//
// Widths are padded with zeros to whole vectors, so that no kernel has a tail.  Legend: R rows, K inputs, N outputs of a layer.

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <cstring>
#include <vector>

#include "helpers.hpp"

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
  int64_t i = 0;
  for (; i + ROWS <= M; i += ROWS)
    block<ROWS, V, AFTER, ACTIVATION>(K, a + i * row, row, step, b, ldb, bias, c + i * ldc, ldc, active ? active + i * ldc : nullptr);
  for (; i < M; i++)
    block<1, V, AFTER, ACTIVATION>(K, a + i * row, row, step, b, ldb, bias, c + i * ldc, ldc, active ? active + i * ldc : nullptr);
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
constexpr int64_t PIECE = 96;  // rows that a helper takes at a time
constexpr int MOST_LAYERS = 16, MOST_ACTIONS = 256;

// A network at work on tiles: its weights as the products want them, and what its layers were given.  Its shape: how many layers,
// the activation between them, inputs of the first, outputs of each.
struct Network {
  explicit Network(const int64_t* shape) : layers((int)shape[0]), activation((Activation)shape[1]), widths(shape + 2) {}

  const int layers;
  const Activation activation;
  const int64_t* const widths;
  float *inputs[MOST_LAYERS];                                         // of each layer, padded rows
  float *forth[MOST_LAYERS], *bias[MOST_LAYERS], *back[MOST_LAYERS];  // W^T, b and W, padded
  float *dweight[MOST_LAYERS], *dbias[MOST_LAYERS];                   // sums over tiles, padded

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

  // Where `prepare` has left the weights.
  void read(float* prepared) {
    for (int l = 0; l < layers; l++) {
      int64_t K = padded(widths[l]), N = padded(widths[l + 1]);
      forth[l] = prepared, bias[l] = forth[l] + K * N, back[l] = bias[l] + N, prepared = back[l] + N * K;
    }
  }

  // Room for the gradient, zero; what is left of the memory.
  float* make_gradient(float* memory) {
    for (int l = 0; l < layers; l++) {
      int64_t K = padded(widths[l]), N = padded(widths[l + 1]);
      dweight[l] = memory, dbias[l] = memory + N * K, memory = dbias[l] + N;
      std::memset(dweight[l], 0, sizeof(float) * (N * K + N));
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

  // The sums, without padding.
  void finish(float* const* dweights, float* const* dbiases) const {
    for (int l = 0; l < layers; l++) {
      int64_t K = widths[l], N = widths[l + 1];
      for (int64_t n = 0; n < N; n++) std::memcpy(dweights[l] + n * K, dweight[l] + n * padded(K), sizeof(float) * K);
      std::memcpy(dbiases[l], dbias[l], sizeof(float) * N);
    }
  }
};

Helpers& helpers = *new Helpers;  // never destroyed: its threads wait in it when the process ends

}  // namespace

extern "C" {

// Floats of the inputs of every layer, padded.
static int64_t kept_size(int64_t rows, const int64_t* shape) {
  const Network network(shape);
  int64_t total = 0;
  for (int l = 0; l < network.layers; l++) total += rows * padded(network.widths[l]);
  return total;
}

// Floats that `prepare` fills.
int64_t prepared_size(const int64_t* shape) {
  const Network network(shape);
  int64_t total = 0;
  for (int l = 0; l < network.layers; l++) {
    int64_t K = padded(network.widths[l]), N = padded(network.widths[l + 1]);
    total += 2 * K * N + N;
  }
  return total;
}

// Leaves the weights as the products want them: W^T, b and W of each layer, padded.
void prepare(const int64_t* shape, const float* const* weights, const float* const* biases, float* prepared) {
  Network network(shape);
  network.read(prepared);
  std::memset(prepared, 0, sizeof(float) * prepared_size(shape));
  for (int l = 0; l < network.layers; l++) {
    int64_t K = network.widths[l], N = network.widths[l + 1];
    for (int64_t k = 0; k < K; k++)
      for (int64_t n = 0; n < N; n++) network.forth[l][k * padded(N) + n] = weights[l][n * K + k];
    std::memcpy(network.bias[l], biases[l], sizeof(float) * N);
    for (int64_t n = 0; n < N; n++) std::memcpy(network.back[l] + n * padded(K), weights[l] + n * K, sizeof(float) * K);
  }
}

// Floats of a gradient, and of two tiles as wide as the widest layer.
static int64_t scratch_size(const int64_t* shape) {
  const Network network(shape);
  int64_t gradient = 0;
  for (int l = 0; l < network.layers; l++) gradient += (padded(network.widths[l]) + 1) * padded(network.widths[l + 1]);
  return gradient + 2 * TILE * network.widest();
}

// y, (rows, outputs), of x, (rows, inputs), whose rows stand `ldx` apart, with up to `others` helpers: what lies between the two
// stays in a thread's own memory, call after call.
void infer(int64_t rows, const int64_t* shape, const float* x, int64_t ldx, float* prepared, float* y, int others) {
  helpers.share((rows + PIECE - 1) / PIECE, others, [&](int64_t piece) {
    static thread_local std::vector<float> memory;
    Network network(shape);
    const size_t needed = kept_size(PIECE, shape) + PIECE * network.last();
    if (memory.size() < needed) memory.resize(needed);
    network.read(prepared);
    const int64_t r = piece * PIECE;
    float* scratch = network.make_room(PIECE, memory.data());
    network.answer(std::min(PIECE, rows - r), 0, x + r * ldx, ldx, y + r * network.widths[network.layers], scratch);
  });
}

// A minibatch of PPO with a Gaussian policy: where everything stands.  Columns are counted in a row of the table.
struct Minibatch {
  const float* table;
  int64_t columns;  // of a row of it
  int64_t actor[2], critic[2];  // observations, and mirrored ones
  int64_t action, output, log_prob, value, target, advantage, weight;
  int64_t copies, actions;        // 2: each transition also mirrored; A
  const int64_t* mirror;          // of actions: what comes from where, and its sign, (A,)
  const float* sign;
  const float *std, *old_std;     // (A,)
  const float *scale, *entropy;   // mean and deviation of the advantages; c_H
  float clip, value_coef;
  int64_t clip_value;
};

// Floats of scratch memory that `learn` needs.
int64_t learn_size(const int64_t* actor_shape, const int64_t* critic_shape) {
  int64_t total = 0;
  for (const int64_t* shape : {actor_shape, critic_shape}) total += kept_size(TILE, shape) + scratch_size(shape);
  return total;
}

// Sums over `count` rows of the table of the gradient of PPO's loss, and of what `PPO._losses` sums beside it, in its order:
// the two are one formula in two languages, and a test holds them together.
void learn(const Minibatch* batch, const int64_t* rows, int64_t count, const int64_t* actor_shape,
           float* actor_prepared, const int64_t* critic_shape, float* critic_prepared,
           float* const* actor_dweights, float* const* actor_dbiases, float* const* critic_dweights, float* const* critic_dbiases,
           float* dstd, float* sums, float* scratch) {
  const Minibatch& b = *batch;
  Network actor(actor_shape), critic(critic_shape);
  actor.read(actor_prepared);
  critic.read(critic_prepared);
  float* free = critic.make_room(TILE, actor.make_room(TILE, scratch));
  free = critic.make_gradient(actor.make_gradient(free));
  float *mean = free, *spare_actor = mean + TILE * actor.widest();
  float *value = spare_actor + TILE * actor.widest(), *spare_critic = value + TILE * critic.widest();

  const int64_t A = b.actions;
  // what is the same in every state: log sigma + log(2 pi) / 2, the entropy, KL's part of the deviations; summed over actions
  double log_norm = 0.0, entropy_each = 0.0, kl_each = 0.0;
  for (int64_t a = 0; a < A; a++) {
    double log_std = std::log((double)b.std[a]), ratio = b.old_std[a] / (double)b.std[a];
    log_norm += log_std + 0.5 * std::log(2.0 * M_PI);
    entropy_each += log_std + 0.5 + 0.5 * std::log(2.0 * M_PI);
    kl_each += 0.5 * ratio * ratio - std::log(ratio) - 0.5;
  }
  double slopes[MOST_ACTIONS] = {};  // dL/dsigma
  double weights = 0.0, surrogate = 0.0, value_loss = 0.0, kl = 0.0, outside = 0.0;
  const float low = 1.0f - b.clip, high = 1.0f + b.clip, share = 1.0f / (float)b.copies;

  for (int64_t copy = 0; copy < b.copies; copy++)
    for (int64_t r = 0; r < count; r += TILE) {
      const int64_t n = std::min(TILE, count - r);
      for (int64_t i = 0; i < n; i++) {
        const float* row = b.table + rows[r + i] * b.columns;
        actor.give(i, row + b.actor[copy]);
        critic.give(i, row + b.critic[copy]);
      }
      actor.forward(n, 0, mean);
      critic.forward(n, 0, value);
      for (int64_t i = 0; i < n; i++) {
        const float* row = b.table + rows[r + i] * b.columns;
        const float *action = row + b.action, *old_mean = row + b.output, weight = row[b.weight];
        float *mu = mean + i * actor.last(), *v = value + i * critic.last();
        const float advantage = (row[b.advantage] - b.scale[0]) / b.scale[1];
        // log pi(a|s), and r = pi(a|s) / pi_old(a|s)
        float distance = 0.0f, apart = 0.0f, z[MOST_ACTIONS];
        for (int64_t a = 0; a < A; a++) {
          const float acted = copy ? action[b.mirror[a]] * b.sign[a] : action[a], inverse = 1.0f / b.std[a];
          if (!copy) {
            const float shift = (old_mean[a] - mu[a]) * inverse;
            apart += shift * shift;
          }
          z[a] = (acted - mu[a]) * inverse;
          distance += z[a] * z[a];
        }
        const float ratio = std::exp(-0.5f * distance - (float)log_norm - row[b.log_prob]);
        const float clipped = ratio < low ? low : ratio > high ? high : ratio;
        // L_clip = max(-A r, -A clip(r)); what is not finite stays so
        const float free_loss = -advantage * ratio, clipped_loss = -advantage * clipped;
        const bool moves = (ratio >= low && ratio <= high) || !(free_loss <= clipped_loss);
        surrogate += (free_loss <= clipped_loss ? clipped_loss : free_loss) * weight * share;
        const float dlog = moves ? -advantage * ratio * weight * share : 0.0f;
        for (int64_t a = 0; a < A; a++) {
          mu[a] = dlog * z[a] / b.std[a];                         // d log pi / d mu = (a - mu) / sigma^2
          slopes[a] += dlog * (z[a] * z[a] - 1.0f) / b.std[a];  // d log pi / d sigma = (a - mu)^2 / sigma^3 - 1 / sigma
        }
        for (int64_t a = A; a < actor.last(); a++) mu[a] = 0.0f;
        // L_V = (V - R)^2, or the larger of it and that of the clipped value
        float error = v[0] - row[b.target], square = error * error, slope = 2.0f * error;
        if (b.clip_value) {
          const float step = v[0] - row[b.value], bounded = step < -b.clip ? -b.clip : step > b.clip ? b.clip : step;
          const float other = row[b.value] + bounded - row[b.target];
          if (square < other * other) {
            square = other * other;
            if (bounded != step) slope = 0.0f;
          }
        }
        value_loss += square * weight * share;
        v[0] = b.value_coef * slope * weight * share;
        for (int64_t a = 1; a < critic.last(); a++) v[a] = 0.0f;
        outside += std::fabs(ratio - 1.0f) > b.clip ? weight * share : 0.0f;
        if (!copy) {
          weights += weight;
          kl += (0.5f * apart + kl_each) * weight;
        }
      }
      actor.backward(n, 0, mean, spare_actor);
      critic.backward(n, 0, value, spare_critic);
    }
  for (int64_t a = 0; a < A; a++) dstd[a] = (float)(slopes[a] - *b.entropy * weights / b.std[a]);  // - c_H H
  actor.finish(actor_dweights, actor_dbiases);
  critic.finish(critic_dweights, critic_dbiases);
  const double all[] = {weights, surrogate, value_loss, entropy_each * weights, kl, outside, 0.0};
  for (int i = 0; i < 7; i++) sums[i] = (float)all[i];
}
}
