// Tests of what ranks do together: mpirun -n N mpi_tests. Every rank runs every case, rank 0
// prints, and the program fails on all ranks when a check failed on any.

#define DOCTEST_CONFIG_IMPLEMENT
#include <algorithm>
#include <cstdlib>
#include <sstream>
#include <unistd.h>

#include <doctest/doctest.h>
#include <fmt/format.h>

#include "parallel/communication/mpi_communicator.h"

int main(int argc, char** argv) {
  // A rank that waits for ever ends the whole run; NCCL takes its time to begin.
  ::alarm(std::getenv("SUPRA_TEST_DEVICE") ? 600 : 120);
  const supra::MpiSession session;
  const auto communicator = supra::make_mpi_communicator();
  doctest::Context context(argc, argv);
  context.setOption("no-colors", true);
  std::ostringstream said;
  if (session.rank() > 0) context.setCout(&said);
  const int failed = context.run();
  const auto failed_on = communicator->gather_values(failed);
  if (failed && session.rank() > 0) {
    fmt::print(stderr, "on rank {}:\n{}\n", session.rank(), said.str());
  }
  return static_cast<int>(std::count(failed_on.begin(), failed_on.end(), 0)) != session.size();
}
