// The JSON schema of the configuration file (docs/config.schema.json), made from the options of `vmm run` themselves.
#pragma once

#include <string>
#include <vector>

namespace vmm {

/// One option, as the command line defines it.
struct SchemaOption {
    enum class Kind { kFlag, kNumber, kText, kChoice };
    std::string name; ///< without the dashes
    Kind kind = Kind::kText;
    std::string help;
    std::string form;                 ///< what its help shows for the value: "SIZE"
    std::vector<std::string> choices; ///< of kChoice
};

/// The schema, with a newline at its end. Options that describe devices are known by their names (device_options).
[[nodiscard]] std::string config_schema(const std::vector<SchemaOption>& options);

} // namespace vmm
