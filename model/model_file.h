#pragma once
// A model in HDF5: `/model/<Hugging Face name>` datasets in their logical shapes, attribute
// `config` (JSON) and `format` "supra-model 1". A checkpoint's index file presents the same
// datasets, so that whatever reads a model reads a checkpoint. docs/file-formats.md.

#include <memory>
#include <string>

#include "model/config.h"
#include "model/parameters.h"
#include "runtime/files/hdf5.h"

namespace supra {

class ModelFile {
 public:
  /// Opens a model file, a checkpoint's index file, or a checkpoint folder (its index.h5). Checks
  /// the format, and that every parameter of the config is there with its shape and a float type
  /// and that none is extra; each is named.
  explicit ModelFile(const std::string& path);

  const ModelConfig& config() const { return config_; }
  const hdf5::File& file() const { return file_; }
  /// Elements [begin, begin + count) of a parameter, counted row-major, converted to fp32 or bf16.
  void read(const std::string& parameter, DType dtype, int64_t begin, int64_t count,
            void* out) const;

 private:
  hdf5::File file_;
  ModelConfig config_;
};

/// Creates a file with every parameter of `config` as an empty dataset of `dtype` (fp32 or bf16)
/// under /model, and its attributes. The caller writes the datasets.
hdf5::File create_model_file(const std::string& path, const ModelConfig& config, DType dtype);

/// What a shard of a checkpoint says in its first line: read without HDF5, which may not survive
/// damage.
std::string shard_label(const std::string& checkpoint_id, int64_t shard);
/// "shard-0000.h5"
std::string shard_file(int64_t shard);
/// The path of a shard in a checkpoint's folder. One that is missing, or says that it is another,
/// is bad input.
std::string find_shard(const std::string& folder, const std::string& checkpoint_id, int64_t shard);
/// HDF5 reads a missing shard of a virtual dataset as fill values, so whoever reads an index asks
/// this first: all of its `shards` are beside it. A file without attribute `shards` has none.
void check_shards(const hdf5::File& index);

/// The dataset of a parameter: "/model/<name>".
std::string model_dataset(const std::string& parameter);

}  // namespace supra
