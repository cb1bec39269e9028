#pragma once
// From a recipe to the engine that carries it out.

#include "launch/recipe/recipe.h"
#include "parallel/engine.h"

namespace supra {

EngineOptions engine_options(const Recipe& recipe);

}  // namespace supra
