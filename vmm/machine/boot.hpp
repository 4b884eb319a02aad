// A machine that begins by booting a kernel.
#pragma once

#include <cstddef>
#include <optional>
#include <span>
#include <string>
#include <vector>

#include "vmm/config.hpp"
#include "vmm/machine/embedder.hpp"
#include "vmm/machine/first_state.hpp"
#include "vmm/machine/guest_images.hpp"
#include "vmm/machine/hardware.hpp"
#include "vmm/machine/memory_map.hpp"
#include "vmm/stop_request.hpp"

namespace vmm {

/// The boot of a kernel: from a file, from memory, or built in.
///
/// Threads: one.
class KernelBoot final : public FirstState {
  public:
    /// Opens and checks the kernel and the initrd. `config` must outlive this object. If the kernel comes through a
    /// pipe, `stop` ends the wait for it. Throws Error if a file is missing, is not a kernel, or is damaged. Throws
    /// StoppedError.
    KernelBoot(const Config& config, const StopRequest& stop);

    [[nodiscard]] bool adopts_page_tables(const prefault::SecondLevelHost& host) const override;
    /// Writes the kernel, the initrd, all tables and a generation identifier to guest memory, sets the first vCPU's
    /// registers, and closes the files. Throws Error if something does not fit, and what the log throws.
    void put_into(Hardware& hardware, Embedder& embedder) override;
    [[nodiscard]] std::optional<GuestAddress> generation_id_at() const noexcept override {
        return memory_map::kGenerationId.base;
    }
    [[nodiscard]] std::span<const std::byte> device_tree() const noexcept override { return device_tree_; }

  private:
    [[nodiscard]] std::string command_line(const Hardware& hardware) const;

    const Config& config_;
    GuestFiles files_;
    std::vector<std::byte> device_tree_;
};

} // namespace vmm
