// A guest that has announced itself: what Machine needs of an IncomingGuest.
#pragma once

#include <memory>
#include <optional>
#include <stop_token>
#include <string>
#include <vector>

#include "kvm/host/unique_fd.hpp"
#include "vmm/migration.hpp"
#include "vmm/migration/channel.hpp"
#include "vmm/migration/messages.hpp"
#include "vmm/migration/reception.hpp"
#include "vmm/state/snapshot_state.hpp"

namespace vmm {

class IncomingGuest::Impl {
  public:
    Impl(const Options& wanted, LogSink sink);

    void wait(const std::stop_token& stop);
    void refuse(std::string_view why) noexcept;
    /// Throws UsageError unless a guest has announced itself and is waited for.
    void check_announced() const;

    /// What has come of a guest; it belongs to whoever takes it.
    struct Announced {
        std::unique_ptr<Channel> control;
        Hello hello;
        SnapshotState first_state;
        SharedMemory shared_memory;  ///< empty: pages will come
        std::vector<UniqueFd> files; ///< that SharedMemory speaks of
    };

    const Options options;
    const LogSink log;
    std::optional<Reception> reception; ///< nothing once nobody is waited for any more
    const MigrationAddress address;     ///< where it listens, or listened
    bool may_post_copy = false;
    bool hands_memory_over = false; ///< the guest that announced itself last
    Announced announced;            ///< after wait(); its control is null before, and when somebody has taken it

  private:
    void receive(Reception::Visitor visitor, const std::stop_token& stop);
};

} // namespace vmm
