#include "runtime/timed_device.h"

#include <algorithm>
#include <array>
#include <chrono>
#include <compare>
#include <initializer_list>
#include <string_view>
#include <utility>

#include "runtime/linear_sizes.h"

namespace supra {
namespace {

class HostTimeline final : public Timeline {
 public:
  void mark() override { marks_.push_back(Clock::now()); }
  std::vector<double> take() override {
    std::vector<double> seconds;
    for (size_t i = 1; i < marks_.size(); ++i) {
      seconds.push_back(std::chrono::duration<double>(marks_[i] - marks_[i - 1]).count());
    }
    if (!marks_.empty()) marks_ = {marks_.back()};
    return seconds;
  }

 private:
  using Clock = std::chrono::steady_clock;
  std::vector<Clock::time_point> marks_;
};

/// What a call computes and moves.
struct Cost {
  double flops = 0, bytes = 0;
};

double numel(const Tensor& t) {
  return static_cast<double>(t.numel());
}

double bytes_of(std::initializer_list<Tensor> tensors) {
  double bytes = 0;
  for (const Tensor& t : tensors) {
    if (t) bytes += static_cast<double>(t.bytes());
  }
  return bytes;
}

/// Pairs of a query and a key that a causal mask keeps, over all heads.
double kept_pairs(const Tensor& q, const Tensor& k, int64_t window) {
  const auto queries = static_cast<double>(q.size(1)), keys = static_cast<double>(k.size(1));
  const double most = window > 0 ? std::min<double>(static_cast<double>(window), keys) : keys;
  // Query i of n sees min(most, keys - n + i + 1) of them.
  const double first = keys - queries + 1;
  const double growing = std::clamp(most - first, 0.0, queries);
  const double seen = growing * first + growing * (growing - 1) / 2 + (queries - growing) * most;
  return static_cast<double>(q.size(0) * q.size(2)) * seen;
}

/// The sizes of a call: numbers, each after its name, and a dtype where that is not the same in all
/// calls of the op. Cheap to make and to compare; the text comes at the end.
struct Sizes {
  std::string_view names;  ///< "N I O"
  std::array<int64_t, 5> numbers;
  std::string_view dtype = {};
  auto operator<=>(const Sizes&) const = default;

  std::string text() const {
    std::string all;
    size_t begin = 0;
    for (const int64_t number : numbers) {
      if (begin >= names.size()) break;
      const size_t end = std::min(names.find(' ', begin), names.size());
      all += fmt::format("{}{} {}", begin ? " " : "", names.substr(begin, end - begin), number);
      begin = end + 1;
    }
    return dtype.empty() ? all : fmt::format("{} {}", all, dtype);
  }
};

Sizes sizes_of(const Tensor& t) {
  constexpr std::array<std::string_view, Shape::max_rank + 1> names{"", "n", "N D", "N H d",
                                                                    "B T H d"};
  Sizes sizes{.names = names[static_cast<size_t>(t.shape().rank())],
              .numbers = {},
              .dtype = name_of(t.dtype())};
  std::ranges::copy(t.shape().dims(), sizes.numbers.begin());
  return sizes;
}

Sizes sizes_of(const Tensor& q, const Tensor& k) {
  return {"B T H Hkv d", {q.size(0), q.size(1), q.size(2), k.size(2), q.size(3)}};
}

Sizes sizes_of(const LinearSizes& s) {
  if (s.groups == 1) return {"N I O", {s.rows, s.in, s.out}};
  return {"N G I O", {s.rows, s.groups, s.in, s.out}};
}

double flops_of(const LinearSizes& s) {
  return 2 * static_cast<double>(s.rows * s.groups) * static_cast<double>(s.in * s.out);
}

}  // namespace

class TimedDevice::TimedOps final : public Ops {
 public:
  explicit TimedOps(Device& inner) : inner_(inner.ops()), timeline_(inner.make_timeline()) {
    if (!timeline_) timeline_ = std::make_unique<HostTimeline>();
  }

  std::vector<OpTime> take() {
    const std::vector<double> seconds = timeline_->take();
    for (const double each : seconds) {
      if (OpTime* const call = marked_.front()) call->seconds += each;
      marked_.pop_front();
    }
    std::vector<OpTime> taken;
    for (auto& [key, seen] : kinds_) {
      if (seen.calls == 0) continue;
      taken.push_back(seen);
      taken.back().op = key.first;
      taken.back().sizes = key.second.text();
      seen = {};
    }
    return taken;
  }

  void zero(const Tensor& t) override {
    timed("zero", sizes_of(t), {.bytes = bytes_of({t})}, [&] { inner_.zero(t); });
  }
  void cast(const Tensor& from, const Tensor& to) override {
    timed("cast", sizes_of(from), {.bytes = bytes_of({from, to})}, [&] { inner_.cast(from, to); });
  }
  void accumulate(const Tensor& x, const Tensor& sum) override {
    timed("accumulate", sizes_of(x), {.bytes = bytes_of({x, sum, sum})},
          [&] { inner_.accumulate(x, sum); });
  }
  void add_sum(const Tensor& x, const Tensor& total) override {
    timed("add_sum", sizes_of(x), {.bytes = bytes_of({x})}, [&] { inner_.add_sum(x, total); });
  }
  void add_sum_squares(const Tensor& x, const Tensor& total) override {
    timed("add_sum_squares", sizes_of(x), {.bytes = bytes_of({x})},
          [&] { inner_.add_sum_squares(x, total); });
  }

  void linear_forward(const LinearForward& op) override {
    const LinearSizes s(op.x, op.w, op.y);
    timed("linear_forward", sizes_of(s),
          {.flops = flops_of(s), .bytes = bytes_of({op.x, op.w, op.bias, op.residual, op.y})},
          [&] { inner_.linear_forward(op); });
  }
  void linear_backward_input(const Tensor& dy, const Tensor& w, const Tensor& dx,
                             bool add) override {
    const LinearSizes s(dx, w, dy);
    timed("linear_backward_input", sizes_of(s),
          {.flops = flops_of(s), .bytes = bytes_of({dy, w, dx, add ? dx : Tensor()})},
          [&] { inner_.linear_backward_input(dy, w, dx, add); });
  }
  void linear_backward_weight(const Tensor& dy, const Tensor& x, const Tensor& dw) override {
    const LinearSizes s(x, dw, dy);
    timed("linear_backward_weight", sizes_of(s),
          {.flops = flops_of(s), .bytes = bytes_of({dy, x, dw, dw})},
          [&] { inner_.linear_backward_weight(dy, x, dw); });
  }
  void relu_bias_backward(const Tensor& y, const Tensor& dy, const Tensor& dz,
                          const Tensor& dbias) override {
    timed("relu_bias_backward", sizes_of(y), {.bytes = bytes_of({y, dy, dz, dbias, dbias})},
          [&] { inner_.relu_bias_backward(y, dy, dz, dbias); });
  }

  void embedding_forward(const Tensor& tokens, const Tensor& weight, const Tensor& y) override {
    timed("embedding_forward", sizes_of(y), {.bytes = bytes_of({tokens, y, y})},
          [&] { inner_.embedding_forward(tokens, weight, y); });
  }
  void embedding_backward(const Tensor& tokens, const Tensor& dy, const Tensor& dweight) override {
    timed("embedding_backward", sizes_of(dy),
          {.bytes = bytes_of({tokens, dy}) + 2 * sizeof(float) * numel(dy)},
          [&] { inner_.embedding_backward(tokens, dy, dweight); });
  }

  void rms_norm_forward(const Tensor& x, const Tensor& weight, float eps, const Tensor& y,
                        const Tensor& rstd) override {
    timed("rms_norm_forward", sizes_of(x), {.bytes = bytes_of({x, weight, y, rstd})},
          [&] { inner_.rms_norm_forward(x, weight, eps, y, rstd); });
  }
  void rms_norm_backward(const Tensor& x, const Tensor& weight, const Tensor& rstd,
                         const Tensor& dy, const Tensor& residual, const Tensor& dx,
                         const Tensor& dweight) override {
    timed("rms_norm_backward", sizes_of(x),
          {.bytes = bytes_of({x, weight, rstd, dy, residual, dx, dweight, dweight})},
          [&] { inner_.rms_norm_backward(x, weight, rstd, dy, residual, dx, dweight); });
  }

  void swiglu_forward(const Tensor& gate, const Tensor& up, const Tensor& y) override {
    timed("swiglu_forward", sizes_of(y), {.bytes = bytes_of({gate, up, y})},
          [&] { inner_.swiglu_forward(gate, up, y); });
  }
  void swiglu_backward(const Tensor& gate, const Tensor& up, const Tensor& dy, const Tensor& dgate,
                       const Tensor& dup) override {
    timed("swiglu_backward", sizes_of(dy), {.bytes = bytes_of({gate, up, dy, dgate, dup})},
          [&] { inner_.swiglu_backward(gate, up, dy, dgate, dup); });
  }

  void repeat_heads_forward(const Tensor& x, const Tensor& y) override {
    timed("repeat_heads_forward", sizes_of(y), {.bytes = bytes_of({x, y})},
          [&] { inner_.repeat_heads_forward(x, y); });
  }
  void repeat_heads_backward(const Tensor& dy, const Tensor& dx) override {
    timed("repeat_heads_backward", sizes_of(dy), {.bytes = bytes_of({dy, dx})},
          [&] { inner_.repeat_heads_backward(dy, dx); });
  }

  void rotate(const Tensor& x, const Tensor& rope_cos, const Tensor& rope_sin,
              const Tensor& y) override {
    timed("rotate", sizes_of(x), {.bytes = bytes_of({x, rope_cos, rope_sin, y})},
          [&] { inner_.rotate(x, rope_cos, rope_sin, y); });
  }

  void linear_attention_forward(const LinearAttentionForward& op) override {
    timed("linear_attention_forward", sizes_of(op.q, op.k), cost_of(op),
          [&] { inner_.linear_attention_forward(op); });
  }
  void linear_attention_backward(const LinearAttentionBackward& op) override {
    const auto width = static_cast<double>(op.v.size(3));
    timed("linear_attention_backward", sizes_of(op.q, op.k),
          {.flops = 8 * numel(op.q) * width,
           .bytes = bytes_of({op.q, op.k, op.v, op.state_in, op.key_sum_in, op.y, op.statistics,
                              op.dy, op.dstate_out, op.dq, op.dk, op.dv, op.dstate_in})},
          [&] { inner_.linear_attention_backward(op); });
  }
  void linear_attention_recurrent(const LinearAttentionForward& op) override {
    timed("linear_attention_recurrent", sizes_of(op.q, op.k), cost_of(op),
          [&] { inner_.linear_attention_recurrent(op); });
  }

  void softmax_attention_forward(const SoftmaxAttentionForward& op) override {
    timed("softmax_attention_forward", sizes_of(op.q, op.k),
          {.flops = 4 * kept_pairs(op.q, op.k, op.window) * static_cast<double>(op.q.size(3)),
           .bytes = bytes_of({op.q, op.k, op.v, op.y, op.lse})},
          [&] { inner_.softmax_attention_forward(op); });
  }
  void softmax_attention_backward(const SoftmaxAttentionBackward& op) override {
    timed("softmax_attention_backward", sizes_of(op.q, op.k),
          {.flops = 8 * kept_pairs(op.q, op.k, op.window) * static_cast<double>(op.q.size(3)),
           .bytes = bytes_of({op.q, op.k, op.v, op.y, op.lse, op.dy, op.dq, op.dk, op.dv})},
          [&] { inner_.softmax_attention_backward(op); });
  }

  void cross_entropy(const CrossEntropy& op) override {
    timed("cross_entropy", sizes_of(op.logits),
          {.bytes = bytes_of({op.logits, op.targets, op.nll, op.lse, op.dlogits})},
          [&] { inner_.cross_entropy(op); });
  }
  void adamw(const AdamW& op) override {
    timed("adamw", sizes_of(op.parameter),
          {.bytes = bytes_of({op.parameter, op.parameter, op.gradient, op.first_moment,
                              op.first_moment, op.second_moment, op.second_moment, op.copy})},
          [&] { inner_.adamw(op); });
  }

 private:
  static Cost cost_of(const LinearAttentionForward& op) {
    const auto width = static_cast<double>(op.v.size(3));
    return {.flops = 4 * numel(op.q) * width,
            .bytes = bytes_of({op.q, op.k, op.v, op.state_in, op.key_sum_in, op.y, op.statistics,
                               op.state_out, op.key_sum_out})};
  }

  template <class Call>
  void timed(std::string_view op, const Sizes& sizes, const Cost& cost, const Call& call) {
    OpTime& seen = kinds_[{op, sizes}];
    mark(nullptr);
    call();
    mark(&seen);
    ++seen.calls;
    seen.flops += cost.flops;
    seen.bytes += cost.bytes;
  }

  /// The time since the last mark is that of a call, or of none.
  void mark(OpTime* call) {
    timeline_->mark();
    if (began_) marked_.push_back(call);
    began_ = true;
  }

  Ops& inner_;
  std::unique_ptr<Timeline> timeline_;
  bool began_ = false;
  std::deque<OpTime*> marked_;  ///< what lies between two marks whose time is not taken yet
  std::map<std::pair<std::string_view, Sizes>, OpTime> kinds_;
};

TimedDevice::TimedDevice(Device& inner) : inner_(inner), ops_(std::make_unique<TimedOps>(inner)) {}

TimedDevice::~TimedDevice() = default;

Ops& TimedDevice::ops() {
  return *ops_;
}

std::vector<OpTime> TimedDevice::take() {
  inner_.synchronize();
  return ops_->take();
}

}  // namespace supra
