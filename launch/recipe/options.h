#pragma once
// From a recipe to the options of what carries it out.

#include "launch/recipe/recipe.h"
#include "parallel/checkpoint/writer.h"
#include "parallel/engine.h"
#include "parallel/watch/watchdog.h"

namespace supra {

EngineOptions engine_options(const Recipe& recipe);
CheckpointOptions checkpoint_options(const Recipe& recipe);
WatchdogOptions watchdog_options(const Recipe& recipe);

}  // namespace supra
