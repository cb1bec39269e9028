#pragma once
// Which windows of the training file each rank trained on, step by step: samples-0000.jsonl and so
// on in the run's folder, a JSON line a step. With it one can prove that no sample was seen twice
// and none left out, whatever stops and other numbers of ranks lay between.

#include <cstdint>
#include <fstream>
#include <string>
#include <vector>

namespace supra {

class SampleLog {
 public:
  /// Goes on in the rank's file of a run's folder.
  SampleLog(const std::string& run_folder, int rank);
  /// `first_sample` is the number, in the run's order, of this rank's first window.
  void step(int64_t step, int64_t first_sample, const std::vector<int64_t>& windows);

  /// Drops what the files of all ranks, of this run or of others before, say of steps after `step`:
  /// those will be done again. One rank, before the logs are opened.
  static void drop_after(const std::string& run_folder, int64_t step);

 private:
  std::string path_;
  std::ofstream file_;
};

}  // namespace supra
