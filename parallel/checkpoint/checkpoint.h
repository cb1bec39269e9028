#pragma once
// Checkpoints: a folder a step, `step-00001000/`, with one shard file per rank, `shard-0000.h5`,
// and `index.h5`, whose virtual datasets show whole tensors under their Hugging Face names. Here
// they are read; writer.h writes them, catalog.h finds and checks them. docs/file-formats.md.

#include <string>
#include <vector>

#include "parallel/sharded_parameters.h"

namespace supra {

/// What a run needs besides its tensors to go on.
struct RunState {
  int64_t step = 0;                 ///< steps done
  int64_t tokens = 0;               ///< trained on
  int64_t samples = 0;              ///< the data cursor: windows taken from the order
  int64_t windows = 0;              ///< of the training file: the order is a permutation of them
  int64_t skipped = 0;              ///< batches passed over because of their loss or gradient
  std::vector<double> losses = {};  ///< of the last steps, for telling a spike; oldest first
  std::string recipe;               ///< resolved, TOML
  std::string commit;               ///< of the program
};

/// Of a checkpoint given by its folder or by its index file. Checks that its architecture is
/// `config`, naming the first difference.
RunState read_run_state(const std::string& checkpoint, const ModelConfig& config);

/// Fills master weights, moments and compute copies, each rank reading only its part: it opens the
/// shard files that hold some of it, each once. The number of ranks that wrote the checkpoint does
/// not matter; what is trained must have been trained then. Makes no collective calls.
void load_checkpoint(const std::string& checkpoint, ShardedParameters& parameters, Device& device,
                     Communicator& communicator);

}  // namespace supra
