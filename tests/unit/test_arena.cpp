#include <cmath>
#include <cstdint>

#include <doctest/doctest.h>

#include "runtime/arena.h"

using namespace supra;

namespace {

size_t of_class(const Arena& arena, MemoryClass c) {
  return arena.table()[static_cast<size_t>(c)];
}

}  // namespace

TEST_CASE("arena: tensors are aligned and do not overlap") {
  const auto device = make_cpu_device(1);
  Arena arena(*device, 4096);
  const Tensor a = arena.allocate(MemoryClass::workspace, DType::bf16, {3, 5});
  const Tensor b = arena.allocate(MemoryClass::workspace, DType::fp32, {7});
  for (const Tensor& t : {a, b}) {
    CHECK(reinterpret_cast<uintptr_t>(t.address()) % Arena::alignment == 0);
  }
  CHECK(static_cast<char*>(b.address()) >= static_cast<char*>(a.address()) + a.bytes());
  CHECK(a.shape() == Shape{3, 5});
  CHECK(b.dtype() == DType::fp32);
}

TEST_CASE("arena: a scope gives back what was allocated in it, and only that") {
  const auto device = make_cpu_device(1);
  Arena arena(*device, 4096);
  arena.allocate(MemoryClass::parameters, DType::fp32, {16});
  const size_t before = arena.used();
  void* first = nullptr;
  {
    const Arena::Scope scope(arena);
    first = arena.allocate(MemoryClass::activations, DType::fp32, {100}).address();
    {
      const Arena::Scope inner(arena);
      arena.allocate(MemoryClass::workspace, DType::fp32, {16});
    }
    CHECK(arena.used() == before + 448);
  }
  CHECK(arena.used() == before);
  CHECK(arena.allocate(MemoryClass::workspace, DType::fp32, {1}).address() == first);
}

TEST_CASE("arena: the table is the one of the moment at which most was in use") {
  Arena arena;
  arena.allocate(MemoryClass::parameters, DType::fp32, {16});
  {
    const Arena::Scope scope(arena);
    arena.allocate(MemoryClass::activations, DType::fp32, {32});
    arena.allocate(MemoryClass::workspace, DType::bf16, {32});
  }
  {
    const Arena::Scope scope(arena);
    arena.allocate(MemoryClass::workspace, DType::fp32, {32});
  }
  CHECK(arena.high_water() == 256);
  CHECK(of_class(arena, MemoryClass::parameters) == 64);
  CHECK(of_class(arena, MemoryClass::activations) == 128);
  CHECK(of_class(arena, MemoryClass::workspace) == 64);
  CHECK(of_class(arena, MemoryClass::optimizer) == 0);
}

TEST_CASE("arena: one that is full says so, with the tensor that did not fit") {
  const auto device = make_cpu_device(1);
  Arena arena(*device, 256);
  arena.allocate(MemoryClass::workspace, DType::fp32, {64});
  try {
    arena.allocate(MemoryClass::gathered, DType::bf16, {2, 3});
    FAIL("nothing was thrown");
  } catch (const Error& e) {
    const std::string said = e.what();
    CHECK(e.code() == ExitCode::internal);
    CHECK(said.find("[2, 3]") != std::string::npos);
    CHECK(said.find("gathered") != std::string::npos);
  }
}

TEST_CASE("arena: poisoned memory is NaN whenever it is handed out") {
  const auto device = make_cpu_device(1);
  Arena arena(*device, 1024, true);
  for (int round = 0; round < 2; ++round) {
    const Arena::Scope scope(arena);
    const Tensor wide = arena.allocate(MemoryClass::workspace, DType::fp32, {9});
    const Tensor narrow = arena.allocate(MemoryClass::workspace, DType::bf16, {9});
    for (int i = 0; i < 9; ++i) {
      CHECK(std::isnan(wide.data<float>()[i]));
      CHECK(std::isnan(narrow.data<bf16>()[i]));
      wide.data<float>()[i] = 1;
    }
  }
}

TEST_CASE("arena: a measuring one counts as a real one does, without end") {
  const auto device = make_cpu_device(1);
  Arena real(*device, 1 << 16), measuring;
  for (Arena* arena : {&real, &measuring}) {
    for (int64_t n = 1; n < 40; ++n) arena->allocate(MemoryClass::optimizer, DType::fp32, {n, 3});
  }
  CHECK(measuring.high_water() == real.high_water());
  CHECK(measuring.table() == real.table());
  CHECK(measuring.allocate(MemoryClass::gathered, DType::fp32, {1 << 30, 1 << 10}));
  CHECK(measuring.high_water() > size_t{1} << 42);
}
