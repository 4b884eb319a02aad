// Who connects to a migration's address, and what they want.
#pragma once

#include <chrono>
#include <cstddef>
#include <deque>
#include <functional>
#include <memory>
#include <mutex>
#include <optional>
#include <string>
#include <thread>
#include <vector>

#include "kvm/host/event_fd.hpp"
#include "vmm/migration/channel.hpp"
#include "vmm/migration/listener.hpp"
#include "vmm/migration/messages.hpp"

namespace vmm {

/// Takes whoever connects, makes sure who they are, and reads the first thing that they say. Each is served by a thread
/// of its own for that, so that nobody who is slow keeps another one waiting. Whoever says nothing is sent away, and so
/// is whoever says something that is no message. `warn` is told of both.
///
/// Threads: any; one at a time takes visitors.
class Reception {
  public:
    struct Visitor {
        std::unique_ptr<Channel> channel;
        Message first;
    };

    static constexpr std::size_t kMostVisitors = 48; ///< at once; the others wait for the kernel
    /// How long one has to prove who they are, and then to say what they want.
    static constexpr std::chrono::milliseconds kPatience{10'000};

    /// `warn` is called on threads of this object. Throws Error: it cannot listen there.
    Reception(const MigrationAddress& address, const MigrationSecurity& security,
              std::function<void(const std::string&)> warn, std::chrono::milliseconds patience = kPatience);
    /// Sends away those who are there.
    ~Reception();
    Reception(const Reception&) = delete;
    Reception& operator=(const Reception&) = delete;

    [[nodiscard]] const MigrationAddress& address() const noexcept { return listener_.address(); }

    /// Readable while there are visitors. On loan.
    [[nodiscard]] int fd() const noexcept { return arrived_.fd(); }
    /// The one who has waited longest; nothing if there is none. Does not wait.
    [[nodiscard]] std::optional<Visitor> take();

  private:
    void receive_all() noexcept;
    void receive(MigrationListener::Caller caller) noexcept;
    void join_finished(bool all);

    MigrationListener listener_;
    std::function<void(const std::string&)> warn_;
    const std::chrono::milliseconds patience_;
    EventFd arrived_;
    EventFd closing_;
    std::mutex lock_; ///< guards all below
    std::deque<Visitor> visitors_;
    std::deque<std::thread> served_; ///< those who are served, or were
    std::vector<std::thread::id> finished_;
    std::thread thread_; // last: it uses all of the above
};

} // namespace vmm
