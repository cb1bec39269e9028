#pragma once
// How the parameters of a model lie in the tensors of a Hugging Face folder. A softmax model's lie
// one by one under their own names, as Llama's and Mistral's do. A model with linear attention has
// the layout of the weights released with SUPRA, model_type `openlm`: q, k and v are stacked, so
// are gate and up, and feature maps are matrices over all heads. What reads a folder and what
// writes one follow the same list.

#include <cstdint>
#include <string>
#include <vector>

#include "model/config.h"

namespace supra {

/// Rows of a stored tensor that hold one parameter. A vector's rows are its elements.
struct LayoutPart {
  std::string parameter;
  int64_t rows;     ///< of the stored tensor
  int64_t columns;  ///< of a row of the parameter
  /// 0: the parameter's rows, one after the other. Else its rows in blocks of so many, each block
  /// `repeat` times; where the stored row is longer than the parameter's, the blocks lie on its
  /// diagonal and the rest is zero.
  int64_t block = 0;
  int64_t repeat = 1;
};

enum class Presence : uint8_t {
  required,
  repeated,   ///< the embedding again, for loaders that do not tie; not needed when read
  tolerated,  ///< the embedding again: never written, accepted when read
};

struct LayoutTensor {
  std::string name;
  std::vector<int64_t> shape;
  std::vector<LayoutPart> parts;  ///< from the first row to the last
  Presence presence = Presence::required;

  int64_t numel() const;
  /// Elements of a row.
  int64_t columns() const { return numel() / shape[0]; }
};

/// In the order of the forward pass. Every parameter is in a required tensor; the per-head maps of
/// grouped queries are in two.
std::vector<LayoutTensor> describe_layout(const ModelConfig& config);

}  // namespace supra
