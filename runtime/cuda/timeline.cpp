#include "runtime/cuda/timeline.h"

namespace supra::cuda {

void StreamTimeline::mark() {
  if (broken_) return;
  try {
    if (spare_.empty()) spare_.emplace_back();
    spare_.back().record(stream_);
  } catch (const Error&) {
    // An error of the device has its own way out; a mark may be made while it is on it.
    broken_ = true;
    return;
  }
  marks_.push_back(std::move(spare_.back()));
  spare_.pop_back();
}

std::vector<double> StreamTimeline::take() {
  std::vector<double> seconds;
  while (!broken_ && marks_.size() > 1 && marks_[1].is_past()) {
    seconds.push_back(marks_[1].seconds_since(marks_[0]));
    spare_.push_back(std::move(marks_.front()));
    marks_.pop_front();
  }
  return seconds;
}

}  // namespace supra::cuda
