#pragma once
// All device memory of a run comes out of one arena, in stack order: what lives for the whole run
// first, then the activations of a step, each released when its scope ends. Every byte has a class,
// and the arena keeps the high-water mark of each. A measuring arena has no memory and only counts:
// a step run over it, on the dry device, tells what the real arena must hold.

#include <array>
#include <cstddef>
#include <string_view>

#include "runtime/device.h"

namespace supra {

enum class MemoryClass : uint8_t {
  parameters,     ///< this rank's shards: fp32 master and compute copy
  gathered,       ///< whole units while they are used: parameters, and gradients being summed
  gradients,      ///< fp32 gradient shards
  optimizer,      ///< Adam moments
  activations,    ///< kept from forward to backward
  workspace,      ///< scratch inside a layer
  communication,  ///< what collectives receive into
};
inline constexpr int memory_classes = 7;
std::string_view name_of(MemoryClass c);

/// Bytes of each class.
using MemoryTable = std::array<size_t, memory_classes>;

class Arena {
 public:
  static constexpr size_t alignment = 64;

  /// An arena that only counts; the tensors it gives out must not be touched.
  explicit Arena() = default;
  /// With `poison`, fresh tensors are filled with NaN, so that what an op leaves unwritten shows.
  /// `device` must outlive the arena.
  Arena(Device& device, size_t capacity, bool poison = false);

  /// Uninitialised. Throws when the arena is full.
  Tensor allocate(MemoryClass c, DType dtype, Shape shape);

  size_t used() const { return used_; }
  size_t capacity() const { return buffer_.bytes(); }
  /// The largest `used()` so far.
  size_t high_water() const { return high_water_; }
  /// What was in use by class when the total stood highest.
  const MemoryTable& table() const { return table_; }

  /// Gives back, when it goes, everything allocated since it came.
  class Scope {
   public:
    explicit Scope(Arena& arena) : arena_(arena), used_(arena.used_), by_class_(arena.by_class_) {}
    ~Scope() {
      arena_.used_ = used_;
      arena_.by_class_ = by_class_;
    }
    Scope(const Scope&) = delete;
    Scope& operator=(const Scope&) = delete;

   private:
    Arena& arena_;
    size_t used_;
    MemoryTable by_class_;
  };

 private:
  Buffer buffer_;
  bool measuring_ = true;
  Device* poisoner_ = nullptr;
  size_t used_ = 0;
  size_t high_water_ = 0;
  MemoryTable by_class_{};
  MemoryTable table_{};
};

}  // namespace supra
