#pragma once
// What an op_runner input file says of a call: the shapes of its datasets, and its root attributes.
// Whatever does not fit is bad input, by name.

#include <optional>
#include <string>
#include <string_view>

#include "runtime/files/hdf5.h"

namespace supra::test {

class OpInput {
 public:
  /// `recurrent`: the --recurrent of the command line.
  OpInput(const hdf5::File& file, bool recurrent) : file_(file), recurrent_(recurrent) {}

  bool has(const std::string& dataset) const { return file_.exists("/" + dataset); }
  /// The shape of a dataset that must be there, with as many dimensions as `dimensions` names: "[N,
  /// D]".
  Shape shape(const std::string& dataset, std::string_view dimensions) const;

  double number(const std::string& attribute, double otherwise) const;
  double number(const std::string& attribute) const;
  int64_t integer(const std::string& attribute, int64_t otherwise) const;
  std::string text(const std::string& attribute, const std::string& otherwise) const;
  bool recurrent() const { return recurrent_; }

  const std::string& path() const { return file_.path(); }

 private:
  const hdf5::File& file_;
  bool recurrent_;
};

}  // namespace supra::test
