// The OpenAPI document of the control socket.
#pragma once

#include <string>
#include <string_view>

namespace vmm::control {

/// The document (OpenAPI 3.0.3), made from the table of verbs. Ends in a newline. Threads: any.
[[nodiscard]] std::string openapi_document();

} // namespace vmm::control
