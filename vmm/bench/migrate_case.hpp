// One case of `vmm bench migrate`: the guest's work while it migrates, and the way of the migration.
#pragma once

#include <array>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/host/guest_memory.hpp"

namespace vmm::bench {

/// What the guest does, and how its memory is moved.
enum class MigrateMode {
    kIdle,     ///< it counts the time, and writes nothing
    kWorker,   ///< it writes an eighth of its memory in each second
    kWriter,   ///< it writes all of its memory over and over, as fast as it can
    kLocal,    ///< as kIdle; its memory is handed over, and no page is copied
    kPostCopy, ///< as kWriter; it goes over before all of its memory has
};
inline constexpr std::array kMigrateModes{MigrateMode::kIdle, MigrateMode::kWorker, MigrateMode::kWriter,
                                          MigrateMode::kLocal, MigrateMode::kPostCopy};

/// The connection over which memory is sent.
enum class MigrateLink {
    kUnix, ///< unix sockets
    kTcp,  ///< TCP over the loopback interface
};
inline constexpr std::array kMigrateLinks{MigrateLink::kUnix, MigrateLink::kTcp};

/// What the destination fills before the guest arrives.
enum class MigrateFill {
    kAll,  ///< both sides
    kNone, ///< neither
};
inline constexpr std::array kMigrateFills{MigrateFill::kAll, MigrateFill::kNone};

/// "idle", "worker", "writer", "local", "post-copy".
[[nodiscard]] std::string_view to_string(MigrateMode mode) noexcept;
/// "all", "none".
[[nodiscard]] std::string_view to_string(MigrateFill fill) noexcept;
/// "unix", "tcp".
[[nodiscard]] std::string_view to_string(MigrateLink link) noexcept;

struct MigrateCase {
    MigrateMode mode = MigrateMode::kIdle;
    PageSize page_size = PageSize::kThp;
    unsigned vcpus = 1;
    MigrateLink link = MigrateLink::kUnix;
    unsigned streams = 1;
    MigrateFill fill = MigrateFill::kAll;

    friend bool operator==(const MigrateCase&, const MigrateCase&) = default;
};

/// "idle, 4K, 1 vCPU, unix"; "idle, 4K, 2 vCPUs, tcp x 4, none" with four streams and without a fill.
[[nodiscard]] std::string to_string(const MigrateCase& each);

/// Whether the guest writes all the time.
[[nodiscard]] bool writes_always(MigrateMode mode) noexcept;
/// Whether memory is copied while the guest runs at the source.
[[nodiscard]] bool copies_first(MigrateMode mode) noexcept;
/// Whether such a migration is possible. Memory can be handed over only by a unix socket, without streams, and with one
/// choice of what is filled. Post-copy needs a full fill, with pages of at most 2 MiB.
[[nodiscard]] bool can_migrate(const MigrateCase& each) noexcept;

/// The values that are varied. No list may be empty.
struct MigrateLists {
    std::vector<MigrateMode> modes{};
    std::vector<PageSize> page_sizes{};
    std::vector<unsigned> vcpus{};
    std::vector<MigrateLink> links{};
    std::vector<unsigned> streams{};
    std::vector<MigrateFill> fills{};

    friend bool operator==(const MigrateLists&, const MigrateLists&) = default;
};

/// The cases in the order in which they are shown, each once. If `every`, these are all possible combinations.
/// Otherwise they are the first value of every list, and the cases that differ from it in one value.
[[nodiscard]] std::vector<MigrateCase> migrate_cases(const MigrateLists& lists, bool every);

} // namespace vmm::bench
