#pragma once
// What both attentions share: rows of heads, rotation, and the scratch memory of tiles. A tile has
// rows of `padded(d)` elements, its padding zero; so products over padded columns need no masks and
// change nothing.

#include <cstdint>
#include <vector>

#include "runtime/cpu/parallel.h"
#include "runtime/cpu/scratch.h"
#include "runtime/tensor.h"

namespace supra::cpu {

/// Row stride of a tile of this many columns: a multiple of two 64-byte vectors.
constexpr int64_t padded(int64_t columns) {
  return (columns + 31) / 32 * 32;
}

/// A head's rows inside a tensor [.., T, heads, d]: the first row's address, and the elements
/// between rows.
struct HeadRows {
  void* first;
  DType dtype;
  int64_t stride;

  HeadRows at(int64_t row) const {
    const auto bytes = row * stride * static_cast<int64_t>(size_of(dtype));
    return {static_cast<char*>(first) + bytes, dtype, stride};
  }
};

/// Head h of sequence b of a tensor [B, T, H, d].
HeadRows head_rows(const Tensor& t, int64_t b, int64_t h);

/// The rotary tables' rows for a tile, or null: no rotation.
struct Rotation {
  const float* cos = nullptr;
  const float* sin = nullptr;

  Rotation() = default;
  Rotation(const float* c, const float* s) : cos(c), sin(s) {}
  Rotation(const Tensor& c, const Tensor& s) : cos(c.data<float>()), sin(s.data<float>()) {}

  Rotation at(int64_t row, int64_t d) const {
    return cos ? Rotation{cos + row * (d / 2), sin + row * (d / 2)} : Rotation{};
  }
};

/// tile[r] = factor * rotate(row r), zero-padded to padded(d).
void tile_load(const HeadRows& from, int64_t rows, int64_t d, const Rotation& rotation,
               float factor, float* tile);
/// row r = rotate_back(factor * tile[r]), rounded to the tensor's dtype.
void tile_store(const float* tile, int64_t rows, int64_t d, const Rotation& rotation, float factor,
                const HeadRows& to);

/// y *= factor, respectively y += factor * x, over n floats.
void tile_scale(float* y, float factor, int64_t n);
void tile_add(float* y, const float* x, float factor, int64_t n);
float tile_dot(const float* x, const float* y, int64_t n);

/// Hands out consecutive pieces of a thread's scratch memory; without memory, counts what a task
/// will need.
class TileMemory {
 public:
  TileMemory() = default;
  explicit TileMemory(float* first) : first_(first) {}
  /// `floats` is rounded up to 64 bytes.
  float* take(int64_t floats) {
    float* p = first_ ? first_ + taken_ : nullptr;
    taken_ += (floats + 15) / 16 * 16;
    return p;
  }
  uint32_t* words(int64_t count) { return reinterpret_cast<uint32_t*>(take(count)); }
  int64_t taken() const { return taken_; }

 private:
  float* first_ = nullptr;
  int64_t taken_ = 0;
};

/// Floats that Tiles(memory, sizes) takes.
template <class Tiles, class Sizes>
int64_t floats_of(const Sizes& sizes) {
  TileMemory counter;
  Tiles(counter, sizes);
  return counter.taken();
}

/// `count` consecutive Tiles; `memory` is moved past them.
template <class Tiles, class Sizes>
std::vector<Tiles> carve(int64_t count, const Sizes& sizes, float*& memory) {
  std::vector<Tiles> tiles;
  for (int64_t i = 0; i < count; ++i) {
    TileMemory mine(memory);
    tiles.emplace_back(mine, sizes);
    memory += mine.taken();
  }
  return tiles;
}

/// Runs task(i, tiles) for i in [0, n), each thread with a `Tiles` of its own, made by
/// Tiles(memory, sizes).
template <class Tiles, class Sizes, class Task>
void run_tiled(int threads, Scratch& scratch, int64_t n, const Sizes& sizes, const Task& task) {
  TileMemory counter;
  Tiles(counter, sizes);
  float* memory = scratch.get<float>(counter.taken() * threads);
  parallel_for(threads, n, [&](int64_t i) {
    TileMemory mine(memory + thread_index() * counter.taken());
    task(i, Tiles(mine, sizes));
  });
}

}  // namespace supra::cpu
