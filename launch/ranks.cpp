#include "launch/ranks.h"

#include <cstdio>

#include "parallel/communication/communicator.h"

namespace supra {
namespace {

class Function final : public RankProgram {
 public:
  Function(const std::function<ExitCode(MpiSession&)>& function, MpiSession& session)
      : function_(function), session_(session) {}
  ExitCode run() override { return function_(session_); }

 private:
  const std::function<ExitCode(MpiSession&)>& function_;
  MpiSession& session_;
};

}  // namespace

ExitCode run_on_ranks(const std::function<std::unique_ptr<RankProgram>(MpiSession&)>& make) {
  MpiSession session;
  const std::unique_ptr<RankProgram> program = make(session);
  const auto alone = [&](ExitCode code, const std::string& report) {
    std::fflush(stdout);
    fmt::print(stderr, "supra: {}\n", report);
    const std::string why = program->explain_failure();
    if (!why.empty()) fmt::print(stderr, "supra: {}\n", why);
    if (session.size() > 1) session.abort(static_cast<int>(code));
    return code;
  };
  try {
    return program->run();
  } catch (const AgreedError& e) {
    std::fflush(stdout);
    if (session.rank() == 0) fmt::print(stderr, "supra: {}\n", e.what());
    return e.code();
  } catch (const Error& e) {
    return alone(e.code(), e.report());
  } catch (const std::exception& e) {
    return alone(ExitCode::internal, fmt::format("rank {}: {}", session.rank(), e.what()));
  }
}

ExitCode run_on_ranks(const std::function<ExitCode(MpiSession&)>& program) {
  return run_on_ranks([&](MpiSession& session) -> std::unique_ptr<RankProgram> {
    return std::make_unique<Function>(program, session);
  });
}

}  // namespace supra
