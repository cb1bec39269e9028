#include "commit.h"

#include "launch/report/run_log.h"

namespace supra {

std::string run_commit() {
  return SUPRA_COMMIT;
}

}  // namespace supra
