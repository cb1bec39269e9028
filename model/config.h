#pragma once
// The architecture of a model: everything needed to compute with its weights. Stored as JSON in
// every model file and checkpoint; two models are the same architecture when these structs are
// equal.

#include <cstdint>
#include <string>

#include "runtime/ops.h"

namespace supra {

enum class Attention : uint8_t { softmax, linear };
enum class FeatureMap : uint8_t {
  dense,     ///< one matrix over all heads; its own one for k under grouped queries
  per_head,  ///< one [d, d] matrix per kv head, the same for q and k
};
enum class Slopes : uint8_t { lightning, retnet, none };
enum class InvFreqRounding : uint8_t { fp32, bf16 };

/// Rotary position embedding. The frequencies are inv_freq_i = base^(-2i/d), then scaled.
struct RopeConfig {
  double base = 1e4;
  double scale = 1;  ///< linear position interpolation: positions are divided by it
  InvFreqRounding inv_freq = InvFreqRounding::fp32;
  /// Llama 3's scaling by wavelength, off when `llama3_factor` is 0.
  double llama3_factor = 0, llama3_low_freq_factor = 1, llama3_high_freq_factor = 4;
  int64_t llama3_original_positions = 8192;
  bool operator==(const RopeConfig&) const = default;
};

/// What replaces softmax attention. Meaningful when `ModelConfig::attention` is linear.
struct LinearAttentionConfig {
  FeatureMap feature_map = FeatureMap::dense;
  Slopes slopes = Slopes::lightning;
  Normalization normalization = Normalization::group_norm;
  double eps = 1e-5;  ///< of the GroupNorm, or the floor of the denominator
  bool qk_norm = false;
  bool operator==(const LinearAttentionConfig&) const = default;
};

struct ModelConfig {
  std::string family = "llama";  ///< llama | mistral: the Hugging Face architecture it came from
  Attention attention = Attention::softmax;
  int64_t vocabulary = 32000;
  int64_t width = 4096;  ///< D
  int64_t layers = 32;
  int64_t heads = 32;        ///< H
  int64_t kv_heads = 32;     ///< Hkv, divides H
  int64_t head_width = 128;  ///< d, even
  int64_t ffn = 11008;       ///< F
  bool tied_head = false;    ///< the head is the embedding
  double norm_eps = 1e-5;
  int64_t window = 0;  ///< of softmax attention, 0: none. Linear attention ignores it
  RopeConfig rope;
  LinearAttentionConfig linear;
  bool operator==(const ModelConfig&) const = default;
};

/// Throws a bad-input error, naming the field, unless the sizes make a model.
void validate(const ModelConfig& c);

/// The first field in which two architectures differ, with both values: "ffn is 128 and 256"; empty
/// when equal.
std::string first_difference(const ModelConfig& a, const ModelConfig& b);

/// JSON text, one key per field; `from_json` refuses unknown, missing and mistyped keys, naming
/// `source`.
std::string to_json(const ModelConfig& c);
ModelConfig model_config_from_json(const std::string& text, const std::string& source);

/// "softmax", "lightning", "group_norm", ... and back; the error lists the possible values.
std::string_view name_of(Attention v);
std::string_view name_of(FeatureMap v);
std::string_view name_of(Slopes v);
std::string_view name_of(InvFreqRounding v);
std::string_view name_of(Normalization v);
template <class Enum>
Enum parse_enum(std::string_view text, std::string_view what);

}  // namespace supra
