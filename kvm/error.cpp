#include "kvm/error.hpp"

#include <system_error>

namespace vmm {

std::string errno_reason(int error_number) {
    return std::generic_category().message(error_number);
}

void throw_errno(int error_number, std::string_view tried, std::string_view advice) {
    std::string message = "cannot ";
    message += tried;
    message += ": ";
    message += errno_reason(error_number);
    if (!advice.empty()) {
        message += " (";
        message += advice;
        message += ')';
    }
    throw Error(message);
}

} // namespace vmm
