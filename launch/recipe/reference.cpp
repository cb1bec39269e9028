#include <fmt/format.h>

#include "launch/recipe/keys.h"

namespace supra {
namespace {

class Reference {
 public:
  void section(std::string_view name, std::string_view doc) {
    text_ += fmt::format(
        "\n## [{}]\n\n{}\n\n| key | type | default | accepts | meaning |\n|---|---|---|---|---|\n",
        name, doc);
  }

  template <class T>
  void key(std::string_view name, const T& value, std::string_view doc, const Limits& limits = {}) {
    row<T>(name, fmt::format("`{}`", toml_text(value)), doc, limits);
  }

  void required(std::string_view name, const std::string&, std::string_view doc) {
    row<std::string>(name, "required", doc, {});
  }

  template <class T>
  void inherited(Inherited kind, std::string_view name, const std::optional<T>&,
                 std::string_view from_scratch, std::string_view doc, const Limits& limits = {}) {
    const std::string_view inherited_from =
        kind == Inherited::linear ? "a linear base's" : "the base's";
    row<T>(name, fmt::format("{}, else {}", inherited_from, from_scratch), doc, limits);
  }

  const std::string& text() const { return text_; }

 private:
  template <class T>
  void row(std::string_view name, std::string_view default_text, std::string_view doc,
           const Limits& limits) {
    const std::vector<std::string_view> words = words_of<T>(limits);
    const std::string accepts =
        words.empty() ? range_text(limits) : fmt::format("`{}`", fmt::join(words, "`, `"));
    text_ += fmt::format("| `{}` | {} | {} | {} | {} |\n", name, type_name<T>(), default_text,
                         accepts, doc);
  }

  std::string text_ =
      "# Recipe reference\n\n"
      "Generated from launch/recipe/recipe.h by `supra train --recipe-reference`; a test keeps the "
      "two "
      "equal.\n\n"
      "A recipe is a TOML file with the sections below. Any key can be given on the command line\n"
      "instead, `--set section.key=value`, which wins over the file. The resolved recipe, with "
      "every\n"
      "key that has a value, is written to `recipe.toml` in the run's folder and into each "
      "checkpoint.\n";
};

}  // namespace

std::string recipe_reference() {
  Reference reference;
  const Recipe defaults;
  Recipe::visit(defaults, reference);
  return reference.text();
}

}  // namespace supra
