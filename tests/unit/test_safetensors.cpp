#include <cmath>
#include <cstring>
#include <limits>
#include <vector>

#include "model/huggingface/safetensors.h"
#include "tests/unit/temporary_folder.h"

using namespace supra;

namespace {

std::string with_length(const std::string& header, const std::string& data) {
  const uint64_t size = header.size();
  std::string bytes(8, '\0');
  std::memcpy(bytes.data(), &size, 8);
  return bytes + header + data;
}

template <class T>
std::string bytes_of(const std::vector<T>& values) {
  return {reinterpret_cast<const char*>(values.data()), values.size() * sizeof(T)};
}

/// A file of one fp32 [2, 2], one bf16 [3] and one fp16 [3] tensor.
std::string small_file() {
  const std::string data = bytes_of<float>({1.5F, -2, 3e-39F, 1.00390625F}) +
                           bytes_of<bf16>({bf16(1), bf16(-0.5F), bf16(INFINITY)}) +
                           bytes_of<uint16_t>({0x3c00, 0x8001, 0x7bff});
  return with_length(
      R"({"__metadata__":{"format":"pt"},"w":{"dtype":"F32","shape":[2,2],"data_offsets":[0,16]},)"
      R"("h":{"dtype":"F16","shape":[3],"data_offsets":[22,28]},)"
      R"("b":{"dtype":"BF16","shape":[3],"data_offsets":[16,22]}}   )",
      data);
}

/// The error that a folder with this model.safetensors gives.
std::string refusal(const TemporaryFolder& folder, const std::string& bytes) {
  write_file(folder / "model.safetensors", bytes);
  return bad_input([&] { SafetensorsFolder reader(folder.path()); });
}

bool contains(const std::string& text, const std::string& part) {
  if (text.find(part) != std::string::npos) return true;
  MESSAGE("'" << text << "' lacks '" << part << "'");
  return false;
}

std::vector<float> read(const SafetensorsFolder& weights, const std::string& name, int64_t n) {
  std::vector<float> values(static_cast<size_t>(n));
  weights.read(name, DType::fp32, 0, n, values.data());
  return values;
}

}  // namespace

TEST_CASE("safetensors: fp32, bf16 and fp16 are read exactly, and rounded once to bf16") {
  const TemporaryFolder folder;
  write_file(folder / "model.safetensors", small_file());
  const SafetensorsFolder weights(folder.path());
  CHECK(weights.tensors().size() == 3);
  CHECK(weights.tensors().at("w")->shape == std::vector<int64_t>{2, 2});
  CHECK(read(weights, "w", 4) == std::vector<float>{1.5F, -2, 3e-39F, 1.00390625F});
  CHECK(read(weights, "b", 3) == std::vector<float>{1, -0.5F, INFINITY});
  CHECK(read(weights, "h", 3) == std::vector<float>{1, -0x1p-24F, 65504});
  std::vector<bf16> narrow(2);
  weights.read("w", DType::bf16, 2, 2, narrow.data());
  CHECK(narrow[1].bits == bf16(1.00390625F).bits);
}

TEST_CASE("safetensors: every fp16 value becomes the fp32 of the same value") {
  const TemporaryFolder folder;
  std::vector<uint16_t> all(65536);
  for (size_t i = 0; i < all.size(); ++i) all[i] = static_cast<uint16_t>(i);
  write_file(folder / "model.safetensors",
             with_length(R"({"h":{"dtype":"F16","shape":[65536],"data_offsets":[0,131072]}})",
                         bytes_of(all)));
  const std::vector<float> values = read(SafetensorsFolder(folder.path()), "h", 65536);
  for (size_t i = 0; i < all.size(); ++i) {
    const int sign = i & 0x8000 ? -1 : 1, exponent = i >> 10 & 31, fraction = i & 1023;
    const double magnitude = exponent == 0    ? std::ldexp(fraction, -24)
                             : exponent == 31 ? (fraction ? NAN : INFINITY)
                                              : std::ldexp(1024 + fraction, exponent - 25);
    if (std::isnan(magnitude)) {
      CHECK(std::isnan(values[i]));
    } else if (values[i] != sign * magnitude || std::signbit(values[i]) != (sign < 0)) {
      FAIL_CHECK("fp16 bits " << i << " became " << values[i]);
    }
  }
}

TEST_CASE("safetensors: a file cut at any byte is refused by name") {
  const TemporaryFolder folder;
  const std::string whole = small_file();
  for (size_t size = 0; size < whole.size(); ++size) {
    CAPTURE(size);
    CHECK(contains(refusal(folder, whole.substr(0, size)), "model.safetensors"));
  }
  const std::string message = refusal(folder, whole.substr(0, whole.size() - 1));
  CHECK(contains(message, fmt::format("is truncated: {} bytes, its header describes {}",
                                      whole.size() - 1, whole.size())));
  CHECK(contains(refusal(folder, whole + "x"), "is corrupt"));
}

TEST_CASE("safetensors: no flipped bit or byte of the header crashes the reader") {
  const TemporaryFolder folder;
  const std::string whole = small_file();
  const size_t header_end = whole.size() - 28;
  int refused = 0;
  for (size_t at = 0; at < header_end; ++at) {
    for (const char flip : {'\x01', '\x02', '\x10', '\x20', '\x80', '\xff'}) {
      std::string bytes = whole;
      bytes[at] = static_cast<char>(bytes[at] ^ flip);
      write_file(folder / "model.safetensors", bytes);
      try {
        const SafetensorsFolder weights(folder.path());
        for (const auto& [name, entry] : weights.tensors()) {
          if (entry->stored == SafetensorsFile::Stored::other) continue;
          read(weights, name, entry->numel);
        }
      } catch (const Error& e) {
        CHECK(e.code() == ExitCode::bad_input);
        ++refused;
      }
    }
  }
  CHECK(refused > 500);  // what is left renames a tensor or swaps one dtype for another
}

TEST_CASE("safetensors: headers that break the format's rules are refused") {
  const TemporaryFolder folder;
  const auto header = [](const std::string& fields) {
    return with_length("{\"w\":{" + fields + "}}", std::string(16, '\0'));
  };
  const auto wanted = [&](const std::string& fields, const std::string& message) {
    CAPTURE(fields);
    CHECK(contains(refusal(folder, header(fields)), message));
  };
  wanted(R"("dtype":"F32","shape":[4])", "no 'data_offsets'");
  wanted(R"("dtype":"F99","shape":[4],"data_offsets":[0,16])", "unknown dtype 'F99'");
  wanted(R"("dtype":"F32","shape":[-4],"data_offsets":[0,16])", "list of sizes");
  wanted(R"("dtype":"F32","shape":[4.0],"data_offsets":[0,16])", "list of sizes");
  wanted(R"("dtype":"F32","shape":[99999999999999999999],"data_offsets":[0,16])", "list of sizes");
  wanted(R"("dtype":"F32","shape":4,"data_offsets":[0,16])", "list of sizes");
  wanted(R"("dtype":"F32","shape":[4],"data_offsets":[16,0])", "a begin and an end");
  wanted(R"("dtype":"F32","shape":[4],"data_offsets":[0,16,32])", "a begin and an end");
  wanted(R"("dtype":"F32","shape":[5],"data_offsets":[0,16])", "does not fill");
  wanted(R"("dtype":"F32","shape":[4294967296,4294967296],"data_offsets":[0,0])", "does not fill");
  wanted(R"("dtype":"F32","shape":[4611686018427387905],"data_offsets":[0,4])", "does not fill");
  wanted(R"("dtype":"F32","shape":[3],"data_offsets":[4,16])", "begins at byte 4");
  wanted(R"("dtype":"F32","shape":[3],"data_offsets":[0,12])", "is corrupt");
  wanted(R"("dtype":"F32","dtype":"F32","shape":[4],"data_offsets":[0,16])", "appears twice");

  const std::string tensor = R"({"dtype":"F32","shape":[2],"data_offsets":[0,8]})";
  const std::string overlap = R"({"dtype":"F32","shape":[3],"data_offsets":[4,16]})";
  const std::string data(16, '\0');
  CHECK(contains(refusal(folder, with_length("{\"a\":" + tensor + ",\"b\":" + overlap + "}", data)),
                 "the one before it ends at 8"));
  CHECK(contains(refusal(folder, with_length("{\"a\":" + tensor + ",\"a\":" + tensor + "}", data)),
                 "'a' appears twice"));
  CHECK(contains(refusal(folder, with_length("[1]", data)), "must be a JSON object"));
  CHECK(
      contains(refusal(folder, with_length(std::string(100000, '['), data)), "more than 64 deep"));
  CHECK(contains(refusal(folder, std::string(8, '\xff') + data), "beyond the format's limit"));
}

TEST_CASE("safetensors: shards hold exactly what the index says, inside the folder") {
  const TemporaryFolder folder;
  const auto shard = [](const std::string& name, float value) {
    return with_length("{\"" + name + R"(":{"dtype":"F32","shape":[1],"data_offsets":[0,4]}})",
                       bytes_of<float>({value}));
  };
  const auto index = [&](const std::string& map) {
    write_file(folder / "model.safetensors.index.json", "{\"weight_map\":" + map + "}");
  };
  const auto message = [&] { return bad_input([&] { SafetensorsFolder reader(folder.path()); }); };
  write_file(folder / "1.safetensors", shard("a", 1));
  write_file(folder / "2.safetensors", shard("b", 2));
  index(R"({"a":"1.safetensors","b":"2.safetensors"})");
  const SafetensorsFolder weights(folder.path());
  CHECK(read(weights, "a", 1) == std::vector<float>{1});
  CHECK(read(weights, "b", 1) == std::vector<float>{2});

  index(R"({"a":"1.safetensors","b":"2.safetensors","c":"2.safetensors"})");
  CHECK(contains(message(), "c is not in"));
  index(R"({"a":"1.safetensors","c":"2.safetensors"})");
  CHECK(contains(message(), "c is not in"));
  write_file(folder / "2.safetensors", shard("a", 2));
  index(R"({"a":"1.safetensors","b":"2.safetensors"})");
  CHECK(contains(message(), "is in another shard, too"));
  index(R"({"a":"3.safetensors"})");
  CHECK(contains(message(), "can't open"));
  for (const char* path : {"../1.safetensors", "/etc/passwd", "sub/1.safetensors", "", ".", ".."}) {
    index(std::string("{\"a\":\"") + path + "\"}");
    CHECK(contains(message(), "must be the name of a file in the same folder"));
  }
  index(R"({"a":7})");
  CHECK(contains(message(), "must be a string"));
  index("[]");
  CHECK(contains(message(), "must be an object"));
  std::filesystem::remove(folder / "model.safetensors.index.json");
  CHECK(contains(message(), "neither model.safetensors nor"));
}

TEST_CASE("safetensors: a tensor beside those of the index is refused") {
  const TemporaryFolder folder;
  write_file(folder / "model.safetensors", small_file());
  write_file(folder / "model.safetensors.index.json",
             R"({"weight_map":{"w":"model.safetensors","b":"model.safetensors"}})");
  CHECK(contains(bad_input([&] { SafetensorsFolder reader(folder.path()); }),
                 "h is in " + folder.path() + "/model.safetensors but not in the index"));
}
