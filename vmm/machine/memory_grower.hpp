// Makes the memory that a guest plugs while it runs, and takes back what it unplugs.
#pragma once

#include <stop_token>
#include <string>
#include <thread>

#include "devices/virtio/memory_device.hpp"
#include "vmm/machine/embedder.hpp"
#include "vmm/machine/first_state.hpp"
#include "vmm/machine/machine_second_level.hpp"
#include "vmm/stop_request.hpp"

namespace vmm {

/// A thread that plugs and unplugs memory for one device. It makes threads, pins memory and runs prefault vCPUs. The
/// device's own threads may not do this, because a guest can reach them.
///
/// It begins when all of memory has its content. While somebody else fills, adds or saves memory, it makes no change,
/// and the guest waits. It ends when the machine stops; destruction waits for that, so a stop must have been requested
/// before.
///
/// Threads: the one that made it.
class MemoryGrower {
  public:
    /// All arguments must outlive it. Throws Error if the host gives no thread.
    MemoryGrower(devices::virtio::MemoryDevice& device, FirstState& first, MachineSecondLevel& second_level,
                 const StopRequest& stop, Embedder& embedder);
    ~MemoryGrower();
    MemoryGrower(const MemoryGrower&) = delete;
    MemoryGrower& operator=(const MemoryGrower&) = delete;

  private:
    void body() noexcept;
    void serve(const std::stop_token& stop);
    [[nodiscard]] devices::virtio::MemoryOutcome make(const MachineSecondLevel::Hold& hold,
                                                      const devices::virtio::MemoryChange& change,
                                                      const std::stop_token& stop);
    void warn_once(const std::string& line);

    devices::virtio::MemoryDevice& device_;
    FirstState& first_;
    MachineSecondLevel& second_level_;
    const StopRequest& stop_;
    Embedder& embedder_;
    std::string warned_; ///< the last warning; a guest tries again and again
    std::thread thread_; // last: it uses all of the above
};

} // namespace vmm
