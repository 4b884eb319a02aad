// What puts the first state into a machine's hardware.
#pragma once

#include <cstddef>
#include <span>
#include <string>
#include <vector>

#include "vmm/config.hpp"
#include "vmm/machine/embedder.hpp"
#include "vmm/machine/guest_images.hpp"
#include "vmm/machine/hardware.hpp"
#include "vmm/stop_request.hpp"

namespace vmm {

/// The boot of a kernel: from a file, from memory, or built in. Another way to begin, such as a snapshot, has the same
/// shape: it is opened before there is hardware, and put_into() is called once, before the guest runs.
///
/// Threads: one.
class KernelBoot {
  public:
    /// Opens and checks the kernel and the initrd. `config` outlives this, and `stop` ends the wait for a pipe. Throws
    /// Error: a file is missing, is not a kernel, or is damaged. Throws StoppedError.
    KernelBoot(const Config& config, const StopRequest& stop);

    /// True if the guest goes on with the page tables of the prefault vCPUs. Without a second level in hardware, what
    /// they filled belongs to these tables; a guest that says so (the built-in one does) adopts them.
    [[nodiscard]] bool adopts_page_tables(const prefault::SecondLevelHost& host) const;

    /// Writes the kernel, the initrd and all tables to guest memory and sets the first vCPU's registers. The second
    /// level has to be prepared if adopts_page_tables(). Closes the files. Throws Error if something does not fit, and
    /// what the log throws.
    void put_into(Hardware& hardware, Embedder& embedder);

    /// The device tree as it was written; empty if the guest has none. After put_into().
    [[nodiscard]] std::span<const std::byte> device_tree() const noexcept { return device_tree_; }

  private:
    [[nodiscard]] std::string command_line(const Hardware& hardware) const;

    const Config& config_;
    GuestFiles files_;
    std::vector<std::byte> device_tree_;
};

} // namespace vmm
