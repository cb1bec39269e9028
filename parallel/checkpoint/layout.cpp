#include "parallel/checkpoint/layout.h"

#include <algorithm>
#include <array>
#include <string_view>

#include "runtime/files/checksum.h"
#include "runtime/files/json.h"

namespace supra {
namespace {

constexpr std::array<std::string_view, 3> dataset_names{"parameter", "first_moment",
                                                        "second_moment"};
/// Beyond any real tensor or file, and far enough below the largest integer to add and multiply.
constexpr int64_t limit = int64_t{1} << 48;

/// The array under a key; anything else there is bad input.
const Json& array_of(const Json& object, const char* key, const std::string& source) {
  const auto found = object.find(key);
  if (found == object.end() || !found->is_array()) {
    fail_input("{} must have an array '{}'", source, key);
  }
  return *found;
}

int64_t size_in(JsonReader& reader, const char* key, int64_t least) {
  const auto value = reader.get<int64_t>(key);
  if (value < least || value > limit) {
    fail_input("{}: '{}' is {}, which cannot be", reader.source(), key, value);
  }
  return value;
}

uint64_t checksum_in(const Json& value, const std::string& source) {
  uint64_t checksum = 0;
  if (!value.is_string() || !parse_checksum(value.get_ref<const std::string&>(), checksum)) {
    fail_input("{}: a checksum must be 16 hexadecimal digits, not {}", source, value.dump());
  }
  return checksum;
}

StoredDataset dataset_from(const Json& json, const std::string& source) {
  JsonReader reader(json, source);
  StoredDataset dataset{.name = reader.get<std::string>("name")};
  if (std::find(dataset_names.begin(), dataset_names.end(), dataset.name) == dataset_names.end()) {
    fail_input("{}: there is no dataset '{}'", source, dataset.name);
  }
  const auto type = reader.get<std::string>("type");
  if (type != name_of(DType::fp32) && type != name_of(DType::bf16)) {
    fail_input("{}: dataset '{}' is {}, neither fp32 nor bf16", source, dataset.name, type);
  }
  dataset.type = type == name_of(DType::fp32) ? DType::fp32 : DType::bf16;
  dataset.position = static_cast<uint64_t>(size_in(reader, "position", 0));
  return dataset;
}

StoredRegion region_from(const Json& json, const std::string& source) {
  JsonReader reader(json, source);
  StoredRegion region{.name = reader.get<std::string>("name"),
                      .size = size_in(reader, "size", 1),
                      .shard_size = size_in(reader, "shard_size", 1)};
  for (const Json& dataset : array_of(json, "datasets", source)) {
    region.datasets.push_back(dataset_from(dataset, fmt::format("{}, {}", source, region.name)));
  }
  return region;
}

StoredTensor tensor_from(const Json& json, const std::string& source) {
  JsonReader reader(json, source);
  StoredTensor tensor{.name = reader.get<std::string>("name"),
                      .region = static_cast<size_t>(size_in(reader, "region", 0)),
                      .offset = size_in(reader, "offset", 0),
                      .size = size_in(reader, "size", 1)};
  for (const Json& dataset : array_of(json, "checksums", source)) {
    if (!dataset.is_array()) fail_input("{}, {}: checksums must be arrays", source, tensor.name);
    auto& checksums = tensor.checksums.emplace_back();
    for (const Json& value : dataset) checksums.push_back(checksum_in(value, source));
  }
  return tensor;
}

StoredShard shard_from(const Json& json, const std::string& source) {
  JsonReader reader(json, source);
  return {.bytes = static_cast<uint64_t>(size_in(reader, "bytes", 0)),
          .checksum = checksum_in(reader.get<Json>("checksum"), source)};
}

uint64_t end_of(const StoredRegion& region, const StoredDataset& dataset) {
  return dataset.position + static_cast<uint64_t>(region.shard_size) * size_of(dataset.type);
}

/// Regions hold all their elements, and their datasets lie side by side within every shard file.
void check_regions(const CheckpointLayout& layout, const std::string& source) {
  std::vector<std::pair<uint64_t, uint64_t>> taken;
  for (const StoredRegion& r : layout.regions) {
    const auto shards = static_cast<int64_t>(layout.shards.size());
    if (r.shard_size > limit / shards || r.shard_size * shards < r.size) {
      fail_input("{}: region {} has {} elements, {} shards of {} do not hold them", source, r.name,
                 r.size, shards, r.shard_size);
    }
    for (const StoredDataset& d : r.datasets) taken.emplace_back(d.position, end_of(r, d));
  }
  std::sort(taken.begin(), taken.end());
  for (size_t i = 1; i < taken.size(); ++i) {
    if (taken[i].first < taken[i - 1].second) {
      fail_input("{}: two datasets share byte {} of a shard", source, taken[i].first);
    }
  }
  for (size_t s = 0; s < layout.shards.size(); ++s) {
    if (!taken.empty() && taken.back().second > layout.shards[s].bytes) {
      fail_input("{}: {} of {} bytes is too short for its datasets", source,
                 shard_file(static_cast<int64_t>(s)), layout.shards[s].bytes);
    }
  }
}

/// Tensors follow each other within their regions, and have as many checksums as pieces.
void check_tensors(const CheckpointLayout& layout, const std::string& source) {
  std::vector<int64_t> used(layout.regions.size());
  for (size_t t = 0; t < layout.tensors.size(); ++t) {
    const StoredTensor& tensor = layout.tensors[t];
    if (tensor.region >= layout.regions.size()) {
      fail_input("{}: {} lies in region {}, and there are {}", source, tensor.name, tensor.region,
                 layout.regions.size());
    }
    const StoredRegion& region = layout.regions[tensor.region];
    if (tensor.offset < used[tensor.region] || tensor.size > region.size - tensor.offset) {
      fail_input("{}: {} elements from {} on cannot be {} in region {}", source, tensor.size,
                 tensor.offset, tensor.name, region.name);
    }
    used[tensor.region] = tensor.offset + tensor.size;
    const int64_t pieces = (tensor.offset + tensor.size - 1) / region.shard_size -
                           tensor.offset / region.shard_size + 1;
    const bool fits = tensor.checksums.size() == region.datasets.size() &&
                      std::all_of(tensor.checksums.begin(), tensor.checksums.end(),
                                  [&](const std::vector<uint64_t>& checksums) {
                                    return static_cast<int64_t>(checksums.size()) == pieces;
                                  });
    if (!fits) fail_input("{}: {} must have a checksum of each piece", source, tensor.name);
  }
}

}  // namespace

std::vector<Piece> CheckpointLayout::pieces(size_t tensor, size_t dataset, int64_t begin,
                                            int64_t count) const {
  const StoredTensor& t = tensors[tensor];
  const StoredRegion& r = regions[t.region];
  const StoredDataset& d = r.datasets[dataset];
  std::vector<Piece> all;
  for (int64_t at = begin; at < begin + count;) {
    const int64_t shard = (t.offset + at) / r.shard_size;
    const int64_t source = (t.offset + at) % r.shard_size;
    const int64_t n = std::min(begin + count - at, r.shard_size - source);
    all.push_back({.tensor = tensor,
                   .dataset = dataset,
                   .shard = shard,
                   .begin = at,
                   .source = source,
                   .count = n,
                   .position = d.position + static_cast<uint64_t>(source) * size_of(d.type),
                   .bytes = static_cast<uint64_t>(n) * size_of(d.type)});
    at += n;
  }
  return all;
}

std::vector<Piece> CheckpointLayout::pieces_of_tensor(size_t tensor, size_t dataset) const {
  return pieces(tensor, dataset, 0, tensors[tensor].size);
}

std::vector<Piece> CheckpointLayout::pieces_of_shard(int64_t shard) const {
  std::vector<Piece> all;
  for (size_t t = 0; t < tensors.size(); ++t) {
    const StoredTensor& tensor = tensors[t];
    const StoredRegion& region = regions[tensor.region];
    const int64_t begin = std::max(shard * region.shard_size - tensor.offset, int64_t{0});
    const int64_t end = std::min((shard + 1) * region.shard_size - tensor.offset, tensor.size);
    if (begin >= end) continue;
    for (size_t d = 0; d < region.datasets.size(); ++d) {
      all.push_back(pieces(t, d, begin, end - begin).front());
    }
  }
  std::sort(all.begin(), all.end(),
            [](const Piece& a, const Piece& b) { return a.position < b.position; });
  return all;
}

uint64_t& CheckpointLayout::checksum_of(const Piece& piece) {
  StoredTensor& t = tensors[piece.tensor];
  const int64_t first = t.offset / regions[t.region].shard_size;
  return t.checksums[piece.dataset][static_cast<size_t>(piece.shard - first)];
}

uint64_t CheckpointLayout::checksum_of(const Piece& piece) const {
  const StoredTensor& t = tensors[piece.tensor];
  const int64_t first = t.offset / regions[t.region].shard_size;
  return t.checksums[piece.dataset][static_cast<size_t>(piece.shard - first)];
}

CheckpointLayout layout_of(const ShardedParameters& parameters, int ranks) {
  CheckpointLayout layout;
  layout.shards.resize(static_cast<size_t>(ranks));
  for (const Region& r : parameters.regions()) {
    StoredRegion region{.name = r.name, .size = r.size, .shard_size = r.shard_size};
    for (const NamedShard& shard : stored_shards(r)) {
      region.datasets.push_back({.name = shard.name, .type = shard.tensor.dtype()});
    }
    layout.regions.push_back(std::move(region));
  }
  for (const Place& p : parameters.places()) {
    layout.tensors.push_back({.name = p.spec->name,
                              .region = static_cast<size_t>(p.region),
                              .offset = p.offset,
                              .size = p.spec->shape.numel()});
    StoredTensor& tensor = layout.tensors.back();
    const StoredRegion& region = layout.regions[tensor.region];
    for (size_t d = 0; d < region.datasets.size(); ++d) {
      const size_t t = layout.tensors.size() - 1;
      tensor.checksums.emplace_back(layout.pieces_of_tensor(t, d).size());
    }
  }
  return layout;
}

std::vector<NamedShard> stored_shards(const Region& region) {
  const std::vector<std::string> names(dataset_names.begin(), dataset_names.end());
  if (!region.trained) return {{names[0], region.compute}};
  return {
      {names[0], region.master}, {names[1], region.first_moment}, {names[2], region.second_moment}};
}

std::string to_json(const CheckpointLayout& layout) {
  Json regions = Json::array(), tensors = Json::array(), shards = Json::array();
  for (const StoredRegion& r : layout.regions) {
    Json datasets = Json::array();
    for (const StoredDataset& d : r.datasets) {
      datasets.push_back({{"name", d.name}, {"type", name_of(d.type)}, {"position", d.position}});
    }
    regions.push_back({{"name", r.name},
                       {"size", r.size},
                       {"shard_size", r.shard_size},
                       {"datasets", std::move(datasets)}});
  }
  for (const StoredTensor& t : layout.tensors) {
    Json checksums = Json::array();
    for (const std::vector<uint64_t>& dataset : t.checksums) {
      Json& texts = checksums.emplace_back(Json::array());
      for (const uint64_t value : dataset) texts.push_back(checksum_text(value));
    }
    tensors.push_back({{"name", t.name},
                       {"region", t.region},
                       {"offset", t.offset},
                       {"size", t.size},
                       {"checksums", std::move(checksums)}});
  }
  for (const StoredShard& s : layout.shards) {
    shards.push_back({{"bytes", s.bytes}, {"checksum", checksum_text(s.checksum)}});
  }
  const Json all{{"regions", std::move(regions)},
                 {"tensors", std::move(tensors)},
                 {"shards", std::move(shards)}};
  return all.dump();
}

CheckpointLayout layout_from_json(const std::string& text, const std::string& source) {
  const Json json = parse_json(text, source);
  if (!json.is_object()) fail_input("{} must be a JSON object", source);
  CheckpointLayout layout;
  for (const Json& r : array_of(json, "regions", source)) {
    layout.regions.push_back(region_from(r, source + ", regions"));
  }
  for (const Json& t : array_of(json, "tensors", source)) {
    layout.tensors.push_back(tensor_from(t, source + ", tensors"));
  }
  for (const Json& s : array_of(json, "shards", source)) {
    layout.shards.push_back(shard_from(s, source + ", shards"));
  }
  if (layout.shards.empty()) fail_input("{} has no shards", source);
  check_regions(layout, source);
  check_tensors(layout, source);
  return layout;
}

std::string shard_dataset(const StoredRegion& region, const StoredDataset& dataset) {
  return fmt::format("/{}/{}", region.name, dataset.name);
}

std::string index_dataset(const std::string& tensor, const std::string& dataset) {
  return dataset == dataset_names[0] ? model_dataset(tensor)
                                     : fmt::format("/optimizer/{}/{}", dataset, tensor);
}

}  // namespace supra
