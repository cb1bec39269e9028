// Fragment layouts of the matrix instructions, one element at a time, against the PTX ISA's own
// statements ("Matrix Fragments for mma.m16n8k16 with floating point type", "ldmatrix"). Run on a
// GPU they test the hardware against the same statements, and so the emulator against the hardware.

#include <cstddef>
#include <cstdint>
#include <vector>

#include <doctest/doctest.h>

#include "tests/cuda/ptx_kernels.h"

using namespace supra::test;

namespace {

constexpr int lanes = 32;
constexpr uint32_t bf16_one = 0x3f80;

// The PTX ISA's formulas for m16n8k16, in its terms: groupID = %laneid >> 2,
// threadID_in_group = %laneid % 4, and i the number of the element in the lane's fragment.
struct Place {
  int row, column;
};

Place element_of_a(int lane, int i) {
  const int group_id = lane >> 2, thread_in_group = lane % 4;
  const bool upper_rows = (0 <= i && i < 2) || (4 <= i && i < 6);
  return {upper_rows ? group_id : group_id + 8,
          i < 4 ? thread_in_group * 2 + (i & 0x1) : thread_in_group * 2 + (i & 0x1) + 8};
}

Place element_of_b(int lane, int i) {
  const int group_id = lane >> 2, thread_in_group = lane % 4;
  return {i < 2 ? thread_in_group * 2 + (i & 0x1) : thread_in_group * 2 + (i & 0x1) + 8, group_id};
}

Place element_of_c(int lane, int i) {
  const int group_id = lane >> 2, thread_in_group = lane % 4;
  return {i < 2 ? group_id : group_id + 8, thread_in_group * 2 + (i & 0x1)};
}

/// Sets the bf16 element i of the lane's fragment of `elements` elements; two lie in a register,
/// the lower first.
void set(std::vector<uint32_t>& fragments, int elements, int lane, int i, uint32_t bits) {
  uint32_t& pair = fragments[static_cast<size_t>(lane * elements / 2 + i / 2)];
  const int shift = i % 2 * 16;
  pair = (pair & ~(0xffffU << shift)) | bits << shift;
}

}  // namespace

TEST_CASE(
    "ptx: ldmatrix gives lane l elements 2 (l % 4) and the next of row l / 4 of each matrix") {
  std::vector<uint16_t> matrices(4 * 64);
  for (size_t i = 0; i < matrices.size(); ++i) matrices[i] = static_cast<uint16_t>(1000 + i);
  const auto plain = load_matrices(matrices, false), transposed = load_matrices(matrices, true);
  for (int lane = 0; lane < lanes; ++lane) {
    for (int m = 0; m < 4; ++m) {
      const auto element = [&](int row, int column) {
        return uint32_t{matrices[static_cast<size_t>(m * 64 + row * 8 + column)]};
      };
      const int row = lane / 4, column = lane % 4 * 2;
      const auto at = static_cast<size_t>(lane * 4 + m);
      CHECK(plain[at] == (element(row, column) | element(row, column + 1) << 16));
      // .trans: the same lanes, of the matrix read column by column.
      CHECK(transposed[at] == (element(column, row) | element(column + 1, row) << 16));
    }
  }
}

TEST_CASE("ptx: every element of mma's a and b lies in the lane and register that the ISA states") {
  // One element of a is 1, so the products are its column of b in its row. b's elements are all
  // different: 1 + their index times 2^-7 (exact in bf16).
  std::vector<uint32_t> b(lanes * 2);
  std::vector<float> value(16 * 8);
  for (int lane = 0; lane < lanes; ++lane) {
    for (int i = 0; i < 4; ++i) {
      const auto [k, n] = element_of_b(lane, i);
      const auto bits = static_cast<uint32_t>(bf16_one + k * 8 + n);
      set(b, 4, lane, i, bits);
      value[static_cast<size_t>(k * 8 + n)] = static_cast<float>(1 + (k * 8 + n) * 0x1p-7);
    }
  }
  int wrong = 0;
  for (int lane = 0; lane < lanes; ++lane) {
    for (int i = 0; i < 8; ++i) {
      std::vector<uint32_t> a(lanes * 4);
      set(a, 8, lane, i, bf16_one);
      const auto [row, k] = element_of_a(lane, i);
      const std::vector<float> d = multiply(a, b, std::vector<float>(lanes * 4));
      for (int l = 0; l < lanes; ++l) {
        for (int j = 0; j < 4; ++j) {
          const auto [m, n] = element_of_c(l, j);
          const float expected = m == row ? value[static_cast<size_t>(k * 8 + n)] : 0;
          wrong += d[static_cast<size_t>(l * 4 + j)] != expected;
        }
      }
    }
  }
  CHECK(wrong == 0);
}

TEST_CASE("ptx: mma adds to d") {
  std::vector<float> d(lanes * 4);
  for (size_t i = 0; i < d.size(); ++i) d[i] = static_cast<float>(i);
  CHECK(multiply(std::vector<uint32_t>(lanes * 4), std::vector<uint32_t>(lanes * 2), d) == d);
  const uint32_t ones = bf16_one | bf16_one << 16;
  auto sums = d;
  for (float& sum : sums) sum += 16;
  CHECK(multiply(std::vector<uint32_t>(lanes * 4, ones), std::vector<uint32_t>(lanes * 2, ones),
                 d) == sums);
}

TEST_CASE("ptx: cp.async copies the valid bytes and makes the rest zero") {
  std::vector<uint8_t> from(lanes * 16);
  std::vector<uint32_t> valid(lanes);
  for (size_t i = 0; i < from.size(); ++i) from[i] = static_cast<uint8_t>(i * 37 + 1);
  for (size_t i = 0; i < valid.size(); ++i) valid[i] = static_cast<uint32_t>(i % 17);
  const std::vector<uint8_t> to = copy_async(from, valid);
  for (size_t i = 0; i < to.size(); ++i) {
    CHECK(int{to[i]} == (i % 16 < valid[i / 16] ? int{from[i]} : 0));
  }
}
