#include "prefault/progress.hpp"

namespace vmm::prefault {

std::string_view to_string(Stage stage) noexcept {
    switch (stage) {
    case Stage::kHost:
        return "host memory";
    case Stage::kPin:
        return "pin";
    case Stage::kSecondLevel:
        return "second level";
    case Stage::kSmm:
        return "second level of SMM";
    }
    return "?";
}

} // namespace vmm::prefault
