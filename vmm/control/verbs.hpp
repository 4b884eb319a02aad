// The table of verbs: everything that a client can ask of a machine. Dispatch, the OpenAPI document, `vmm ctl` with its
// help, its manual page and its completions are made from it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <map>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <utility>
#include <variant>
#include <vector>

#include <nlohmann/json_fwd.hpp>

#include "kvm/host/unique_fd.hpp"
#include "vmm/control/http.hpp"

namespace vmm::control {

/// One argument of a verb.
struct Parameter {
    enum class Kind {
        kFlag,   ///< true or false
        kNumber, ///< a whole number within `least` and `most`
        kBytes,  ///< the same, in bytes; people write 512M
        kChoice, ///< one of `choices`
        kName,   ///< of a device or a network interface, or an address: at most `most` printable characters
        kPath,  ///< the absolute name of a file or a directory, at most kMostPathBytes; people may write a relative one
        kPorts, ///< that are forwarded (parse_port_forwards()): at most `most` characters
        kAddress, ///< of a migration (MigrationAddress), with an absolute path; people may write a relative one
    };
    static constexpr std::size_t kMostPathBytes = 4095; ///< PATH_MAX

    enum class Place { kBody, kPath, kQuery };

    std::string name; ///< "within"
    Kind kind = Kind::kFlag;
    std::string help{};
    Place place = Place::kBody;
    bool is_required = false;
    bool is_positional = false; ///< for `vmm ctl`: a word of its own, and no option
    std::uint64_t least = 0;
    std::uint64_t most = 0;
    std::vector<std::string> choices{};
    std::string standard{}; ///< the default, for people; empty: help does not show one
    std::string example{};  ///< a value, as JSON; empty: the example request leaves it out
};

/// One request that a client can make.
struct Verb {
    std::string name; ///< of `vmm ctl`, and the operationId: "add-memory"
    std::string method;
    std::string path; ///< "/jobs/{id}"
    std::string help{};
    std::vector<Parameter> parameters{};
    unsigned status = 200;
    std::string answer{}; ///< the schema of the answer's body; empty: it is text
    std::string content_type = "application/json";
};

/// Says what values `parameter` allows, for a message about a wrong one: "one of on, off".
[[nodiscard]] std::string what_it_takes(const Parameter& parameter);

[[nodiscard]] std::span<const Verb> verbs();
/// The verb of that name; null if there is none.
[[nodiscard]] const Verb* find_verb(std::string_view name);

/// The arguments of a request, by the parameters' names. Each value has been checked against the table.
class Arguments {
  public:
    using Value = std::variant<bool, std::uint64_t, std::string>;

    void set(const std::string& name, Value value) { values_[name] = std::move(value); }
    [[nodiscard]] std::optional<std::uint64_t> number(const std::string& name) const;
    [[nodiscard]] std::optional<std::string> word(const std::string& name) const;
    [[nodiscard]] bool flag(const std::string& name, bool standard = false) const;

    /// The descriptors that the client has handed over with the request; null: none.
    void set_descriptors(std::shared_ptr<std::vector<UniqueFd>> descriptors) { descriptors_ = std::move(descriptors); }
    [[nodiscard]] const std::shared_ptr<std::vector<UniqueFd>>& descriptors() const { return descriptors_; }

  private:
    std::map<std::string, Value> values_;
    std::shared_ptr<std::vector<UniqueFd>> descriptors_;
};

/// A request that is in the table.
struct Call {
    const Verb* verb = nullptr;
    Arguments arguments{};
};

/// Returns the call that `request` makes, or the answer to a request that is wrong: 400, 404, 405.
[[nodiscard]] std::variant<Call, HttpAnswer> understand(const HttpRequest& request);

/// Returns the example of a verb's body, made from its parameters; an empty object if no parameter has an example.
[[nodiscard]] nlohmann::ordered_json example_body(const Verb& verb);

} // namespace vmm::control
