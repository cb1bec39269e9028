#include "parallel/checkpoint/checkpoint.h"

#include <algorithm>
#include <map>

#include "parallel/checkpoint/index.h"
#include "runtime/files/plain_file.h"

namespace supra {
namespace {

constexpr int64_t most = int64_t{1} << 22;  // elements that pass through host memory at a time

/// A piece of a shard file, and where its elements belong.
struct Read {
  Piece piece;
  const Region* region;
  NamedShard to;
  int64_t local;  ///< index of its first element there
  bool is_weight() const { return to.name == "parameter"; }
};

std::map<std::string, size_t> tensors_by_name(const CheckpointLayout& layout) {
  std::map<std::string, size_t> found;
  for (size_t t = 0; t < layout.tensors.size(); ++t) found.emplace(layout.tensors[t].name, t);
  return found;
}

/// The index of a dataset in the stored region of a tensor.
size_t find_dataset(const CheckpointLayout& layout, const StoredTensor& tensor,
                    const std::string& name, const std::string& checkpoint) {
  const auto& datasets = layout.regions[tensor.region].datasets;
  const auto found = std::find_if(datasets.begin(), datasets.end(),
                                  [&](const StoredDataset& d) { return d.name == name; });
  if (found == datasets.end()) {
    fail_input(
        "checkpoint {} has no {} of {}, which was not trained there; to train it from here on, "
        "begin a new run with model.base = \"{}\"",
        checkpoint, name, tensor.name, checkpoint);
  }
  return static_cast<size_t>(found - datasets.begin());
}

/// Everything this rank needs, by shard.
std::map<int64_t, std::vector<Read>> plan_reads(const CheckpointLayout& layout,
                                                const ShardedParameters& parameters, int rank,
                                                const std::string& checkpoint) {
  const std::map<std::string, size_t> tensors = tensors_by_name(layout);
  std::map<int64_t, std::vector<Read>> reads;
  for (const Place& p : parameters.places()) {
    const auto found = tensors.find(p.spec->name);
    if (found == tensors.end() || layout.tensors[found->second].size != p.spec->shape.numel()) {
      fail_input("checkpoint {} has no {} of shape {}", checkpoint, p.spec->name,
                 p.spec->shape.to_string());
    }
    const Region& region = parameters.regions()[static_cast<size_t>(p.region)];
    const int64_t first = region.shard_size * rank;
    const int64_t begin = std::max(first - p.offset, int64_t{0});
    const int64_t end = std::min(first + region.shard_size - p.offset, p.spec->shape.numel());
    for (const NamedShard& wanted : stored_shards(region)) {
      const StoredTensor& tensor = layout.tensors[found->second];
      const size_t dataset = find_dataset(layout, tensor, wanted.name, checkpoint);
      for (const Piece& piece : layout.pieces(found->second, dataset, begin, end - begin)) {
        reads[piece.shard].push_back({piece, &region, wanted, p.offset + piece.begin - first});
      }
    }
  }
  return reads;
}

/// Elements of a shard file as fp32.
void read_elements(const InputFile& file, uint64_t position, DType stored,
                   std::vector<float>& out) {
  if (stored == DType::fp32) {
    file.read_at(position, out.data(), out.size() * sizeof(float));
    return;
  }
  std::vector<bf16> narrow(out.size());
  file.read_at(position, narrow.data(), narrow.size() * sizeof(bf16));
  std::copy(narrow.begin(), narrow.end(), out.begin());
}

}  // namespace

RunState read_run_state(const std::string& checkpoint, const ModelConfig& config) {
  const CheckpointIndex index = read_index(checkpoint);
  if (index.config != config) {
    fail_input("checkpoint {} is of another architecture than the recipe asks for: {}", checkpoint,
               first_difference(index.config, config));
  }
  return index.state;
}

void load_checkpoint(const std::string& checkpoint, ShardedParameters& parameters, Device& device,
                     Communicator& communicator) {
  const CheckpointIndex index = read_index(checkpoint);
  const CheckpointLayout& layout = index.layout;
  std::vector<float> host;
  for (const auto& [shard, reads] :
       plan_reads(layout, parameters, communicator.rank(), checkpoint)) {
    const InputFile file(find_shard(checkpoint_folder(checkpoint), index, shard));
    for (const Read& read : reads) {
      const StoredRegion& stored = layout.regions[layout.tensors[read.piece.tensor].region];
      const StoredDataset& dataset = stored.datasets[read.piece.dataset];
      for (int64_t done = 0; done < read.piece.count; done += most) {
        host.resize(static_cast<size_t>(std::min(most, read.piece.count - done)));
        const auto skipped = static_cast<uint64_t>(done) * size_of(dataset.type);
        read_elements(file, read.piece.position + skipped, dataset.type, host);
        const int64_t local = read.local + done;
        if (read.is_weight()) {
          parameters.set_weights(device, *read.region, local, host);
        } else {
          const auto n = static_cast<int64_t>(host.size());
          device.copy_in(host.data(), read.to.tensor.slice(local, local + n));
        }
      }
    }
  }
}

}  // namespace supra
