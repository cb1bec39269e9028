#pragma once
// How long watchdogs wait for each other. Together they bound the time between a limit that is
// exceeded and the end of every rank.

#include <chrono>

namespace supra::patience {

using std::chrono::milliseconds;

constexpr milliseconds tick{100};        ///< between two looks at limits
constexpr milliseconds heartbeat{1000};  ///< between signs of life
constexpr milliseconds silence{30000};   ///< the least without one that counts as an end
constexpr milliseconds connect{5000};    ///< for one address of rank 0
constexpr milliseconds meet{30000};      ///< for all of them
constexpr milliseconds record{5000};     ///< for a rank's record; one that takes longer is silent
constexpr milliseconds file{5000};       ///< for a file; its file system may be what is stuck
constexpr milliseconds print{2000};      ///< for a line on standard error, and for the last message
constexpr milliseconds hub{25000};       ///< for all that the hub does between alarm and end
constexpr milliseconds quiet_hub{5000};  ///< without a sign of life from the hub after an alarm
constexpr milliseconds leave{10000};     ///< for the other ranks, when the hub's rank has finished
/// For the launcher, which ends the other ranks when one has died and says so itself.
constexpr milliseconds launcher{2000};
/// The same after an error that a rank ends all others for.
constexpr milliseconds failed{5000};

/// A thread that was kept from running for so long was stopped, with its whole process or host: it
/// cannot say how long the others have been silent.
constexpr milliseconds stopped{2000};

}  // namespace supra::patience
