// The figures of one run, by name.
#pragma once

#include <array>
#include <cstddef>
#include <optional>
#include <string_view>

namespace vmm::bench {

struct FigureFacts {
    std::string_view name; ///< in JSON and CSV
    bool is_time;          ///< in seconds
};

/// A value for each of the `count` figures that `Figure` names. It is nothing if the measured program does not report
/// it, or if it does not apply. The values of `Figure` must begin at 0 and have no gaps.
template <typename Figure, std::size_t count>
class FigureValues {
  public:
    [[nodiscard]] std::optional<double>& operator[](Figure figure) noexcept { return values_[index_of(figure)]; }
    [[nodiscard]] const std::optional<double>& operator[](Figure figure) const noexcept {
        return values_[index_of(figure)];
    }
    [[nodiscard]] const std::array<std::optional<double>, count>& values() const noexcept { return values_; }
    [[nodiscard]] std::array<std::optional<double>, count>& values() noexcept { return values_; }

    friend bool operator==(const FigureValues&, const FigureValues&) = default;

  private:
    static constexpr std::size_t index_of(Figure figure) noexcept { return static_cast<std::size_t>(figure); }

    std::array<std::optional<double>, count> values_{};
};

} // namespace vmm::bench
