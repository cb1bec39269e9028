// ldmatrix and mma.sync, fragment layouts from the PTX ISA ("Matrix fragments for mma.m16n8k16",
// "ldmatrix"). Products are exact, sums in fp32 in order of k: the hardware's order is unspecified.

#include <algorithm>
#include <cstring>

#include "tests/emulator/block.h"
#include "tests/emulator/shared_memory.h"
#include "tests/emulator/statistics.h"
#include "tests/emulator/symbols.h"

namespace emu {
namespace {

struct Load {
  const char* row;
  uint32_t* registers;
};

struct Product {
  float* d;
  const uint32_t* a;
  uint32_t b[2];
};

using Matrix = uint16_t[8][8];

float low(uint32_t pair) {
  return __builtin_bit_cast(float, pair << 16);
}
float high(uint32_t pair) {
  return __builtin_bit_cast(float, pair & 0xffff0000U);
}
uint32_t pair(uint16_t low_half, uint16_t high_half) {
  return low_half | static_cast<uint32_t>(high_half) << 16;
}

/// Turns of the shared memory to read eight rows of 16 bytes: rows in one group of four banks wait
/// for each other, unless they are the same bytes.
unsigned turns(const std::array<uintptr_t, 8>& rows) {
  std::array<unsigned, 8> in_group{};
  for (size_t i = 0; i < rows.size(); ++i) {
    if (std::find(rows.begin(), rows.begin() + i, rows[i]) == rows.begin() + i) {
      ++in_group[rows[i] / 16 % 8];
    }
  }
  return *std::ranges::max_element(in_group);
}

template <bool transposed>
void execute_load(const Warp& warp, unsigned) {
  const auto load = [&](unsigned lane) { return static_cast<const Load*>(warp.payloads[lane]); };
  ++running_kernel.matrix_loads;
  for (unsigned m = 0; m < 4; ++m) {
    Matrix x;
    std::array<uintptr_t, 8> rows{};
    for (unsigned i = 0; i < 8; ++i) {
      std::memcpy(x[i], load(8 * m + i)->row, 16);
      rows[i] = reinterpret_cast<uintptr_t>(load(8 * m + i)->row);
    }
    running_kernel.bank_conflicts += turns(rows) - 1;
    for (unsigned lane = 0; lane < lanes; ++lane) {
      const unsigned g = lane / 4, t = lane % 4 * 2;
      load(lane)->registers[m] =
          transposed ? pair(x[t][g], x[t + 1][g]) : pair(x[g][t], x[g][t + 1]);
    }
  }
}

void execute_product(const Warp& warp, unsigned) {
  const auto product = [&](unsigned lane) {
    return static_cast<const Product*>(warp.payloads[lane]);
  };
  float a[16][16], b[16][8], c[16][8];
  for (unsigned lane = 0; lane < lanes; ++lane) {
    const unsigned g = lane / 4, t = lane % 4 * 2;
    const Product& p = *product(lane);
    for (unsigned i = 0; i < 4; ++i) {
      const unsigned row = g + i % 2 * 8, column = t + i / 2 * 8;
      a[row][column] = low(p.a[i]);
      a[row][column + 1] = high(p.a[i]);
      c[g + i / 2 * 8][t + i % 2] = p.d[i];
    }
    for (unsigned i = 0; i < 2; ++i) {
      b[t + 8 * i][g] = low(p.b[i]);
      b[t + 8 * i + 1][g] = high(p.b[i]);
    }
  }
  for (unsigned i = 0; i < 16; ++i) {
    for (unsigned k = 0; k < 16; ++k) {
      for (unsigned j = 0; j < 8; ++j) c[i][j] += a[i][k] * b[k][j];
    }
  }
  for (unsigned lane = 0; lane < lanes; ++lane) {
    const unsigned g = lane / 4, t = lane % 4 * 2;
    for (unsigned i = 0; i < 4; ++i) product(lane)->d[i] = c[g + i / 2 * 8][t + i % 2];
  }
}

}  // namespace

void load_matrices(uint32_t (&registers)[4], uint32_t row, bool transposed, Loc where) {
  Load load{shared_pointer(row, "ldmatrix"), registers};
  access_shared(load.row, 16, false, code_offset(__builtin_return_address(0)));
  meet(WarpOperation::load_matrices, ~0U, &load,
       transposed ? execute_load<true> : execute_load<false>, where);
}

void multiply_matrices(float (&d)[4], const uint32_t (&a)[4], uint32_t b0, uint32_t b1, Loc where) {
  Product product{d, a, {b0, b1}};
  meet(WarpOperation::multiply_matrices, ~0U, &product, execute_product, where);
}

}  // namespace emu
