#pragma once
// Where layers get their weights and leave their gradients. Sharding, gathering and reducing lie
// behind it; a layer sees whole tensors for as long as it holds a unit. Units are numbered as in
// describe_parameters().

#include <span>

#include "runtime/tensor.h"

namespace supra {

class ParameterStore {
 public:
  virtual ~ParameterStore() = default;

  /// Starts gathering a unit that will soon be acquired. Only a hint.
  virtual void prefetch(int unit) = 0;
  /// The unit's whole parameters in the compute dtype, in the order of its UnitSpec, until
  /// release().
  virtual std::span<const Tensor> acquire(int unit) = 0;
  virtual void release(int unit) = 0;

  /// fp32 tensors, in the same order, that gradients are added to; empty where a parameter is
  /// frozen.
  virtual std::span<const Tensor> gradients(int unit) = 0;
  /// This micro-batch adds no more to the unit's gradients: they may be summed over ranks.
  virtual void reduce(int unit) = 0;

  /// Holds a unit for a scope.
  class Held {
   public:
    Held(ParameterStore& store, int unit)
        : store_(store), unit_(unit), tensors_(store.acquire(unit)) {}
    ~Held() { store_.release(unit_); }
    Held(const Held&) = delete;
    Held& operator=(const Held&) = delete;
    std::span<const Tensor> tensors() const { return tensors_; }

   private:
    ParameterStore& store_;
    int unit_;
    std::span<const Tensor> tensors_;
  };
};

}  // namespace supra
