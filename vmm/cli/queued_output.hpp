// Text for readers who may never read it.
#pragma once

#include <cstddef>
#include <cstdint>
#include <functional>
#include <memory>
#include <span>
#include <string>
#include <string_view>

#include "vmm/output/nonblocking_output.hpp"
#include "vmm/output/patient_write.hpp"

namespace vmm {

/// The target of queued text. Threads: one at a time.
class OutputTarget {
  public:
    OutputTarget() = default;
    OutputTarget(const OutputTarget&) = delete;
    OutputTarget& operator=(const OutputTarget&) = delete;
    virtual ~OutputTarget() = default;

    [[nodiscard]] virtual NonblockingOutput::Result write(std::span<const std::byte> bytes) = 0;
    /// The descriptor to wait on after kWouldBlock.
    [[nodiscard]] virtual int fd() const noexcept = 0;
    /// Whether write() may wait, as it may for a file's storage. If so, a thread calls it.
    [[nodiscard]] virtual bool may_wait() const noexcept = 0;
};

/// A descriptor of the process, on loan.
class DescriptorTarget final : public OutputTarget {
  public:
    explicit DescriptorTarget(int fd) : output_(fd) {}
    [[nodiscard]] NonblockingOutput::Result write(std::span<const std::byte> bytes) override {
        return output_.write(bytes);
    }
    [[nodiscard]] int fd() const noexcept override { return output_.fd(); }
    [[nodiscard]] bool may_wait() const noexcept override { return output_.may_wait(); }

  private:
    NonblockingOutput output_;
};

/// Writes text to a target, and never makes the caller wait. Text that the target takes at once is written at once. The
/// rest waits in a queue of a fixed size for a thread, which starts when text first has to wait. Text that finds no
/// room is dropped and counted. Threads: any, except for finish() and destruction.
class QueuedOutput {
  public:
    enum class Overrun {
        kDropOldest, ///< for messages, because the last ones count most
        kDropNewest, ///< for a stream, so that its beginning stays whole
    };
    struct Options {
        std::size_t capacity_bytes = 256 * 1024;
        Overrun overrun = Overrun::kDropOldest;
        /// Returns the text that replaces this number of dropped texts. Empty: there is no such text.
        std::function<std::string(std::uint64_t texts)> gap{};
        /// It is called once, on any thread, with the errno when the target has refused text. Empty: nothing is called.
        std::function<void(int error_number)> refused{};
    };
    struct Lost {
        std::uint64_t bytes = 0;
        std::uint64_t texts = 0; ///< how many whole texts found no room
        int error_number = 0;    ///< the target's first error; 0: it took texts too slowly
    };

    QueuedOutput(std::shared_ptr<OutputTarget> target, Options options);
    /// Drops the text that still waits, so call finish() before.
    ~QueuedOutput();
    QueuedOutput(const QueuedOutput&) = delete;
    QueuedOutput& operator=(const QueuedOutput&) = delete;

    /// Creates the writing thread now, because callers may later be unable to create one. Throws Error.
    void start();
    /// Never waits.
    void write(std::string_view text);
    /// Writes `text` only if all earlier text has been written. It is for a picture that is soon out of date.
    void write_if_idle(std::string_view text);

    /// Waits for the queue as `patience` says, and gives up the rest. Returns true if nothing was given up. Later text
    /// is written if the target takes it at once.
    bool finish(const WritePatience& patience = {});
    [[nodiscard]] Lost lost() const;

  private:
    struct State;
    void start_thread();

    std::shared_ptr<State> state_; ///< shared with the thread, which may outlive this object while stuck in the kernel
};

} // namespace vmm
