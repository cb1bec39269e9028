#include "runtime/cuda/timeline.h"

namespace supra::cuda {

void StreamTimeline::mark() {
  if (spare_.empty()) spare_.emplace_back();
  marks_.push_back(std::move(spare_.back()));
  spare_.pop_back();
  marks_.back().record(stream_);
}

std::vector<double> StreamTimeline::take() {
  std::vector<double> seconds;
  while (marks_.size() > 1 && marks_[1].is_past()) {
    seconds.push_back(marks_[1].seconds_since(marks_[0]));
    spare_.push_back(std::move(marks_.front()));
    marks_.pop_front();
  }
  return seconds;
}

}  // namespace supra::cuda
