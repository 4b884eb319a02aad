// The JSON schema of the configuration file (docs/config.schema.json), made from the table of options.
#pragma once

#include <string>

namespace vmm {

/// The schema, with a newline at its end. It describes each value alone, and no rules between values.
[[nodiscard]] std::string config_schema();

} // namespace vmm
