// A proxy between the two ends of a migration, which cuts their connections.
#pragma once

#include <poll.h>
#include <sys/socket.h>

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <limits>
#include <memory>
#include <mutex>
#include <optional>
#include <shared_mutex>
#include <span>
#include <thread>
#include <utility>
#include <vector>

#include "kvm/host/error.hpp"
#include "kvm/host/event_fd.hpp"
#include "support/host_waiting.hpp"
#include "vmm/migration/channel.hpp"
#include "vmm/migration/listener.hpp"
#include "vmm/migration/messages.hpp"

namespace vmm::testing {

/// Forwards every connection that is made to it, until the time of a cut. Then all of them end.
class MigrationProxy {
  public:
    enum class Way { kToDestination, kToSource };
    struct Cut {
        Way way = Way::kToDestination;
        std::optional<MessageType> message{};                            ///< when it comes
        bool passes = false;                                             ///< the message is forwarded first
        std::uint64_t bytes = std::numeric_limits<std::uint64_t>::max(); ///< when so many have gone that way
        unsigned times = 1;                                              ///< so often, each after as many bytes
        bool for_good = false;                                           ///< nobody is let through afterwards
        /// Another cut before, when so many have gone to the destination.
        std::uint64_t bytes_before = std::numeric_limits<std::uint64_t>::max();
    };

    MigrationProxy(const MigrationAddress& listens_at, MigrationAddress destination, const Cut& cut)
        : cut_(cut), destination_(std::move(destination)), listener_(listens_at, {}, [](const std::string&) {}) {
        thread_ = std::thread([this] { accept_all(); });
    }
    ~MigrationProxy() {
        closing_.signal();
        thread_.join();
        {
            const std::lock_guard hold(lock_);
            is_closed_ = true;
            shut_down_all();
        }
        for (std::thread& thread : threads_) {
            thread.join();
        }
    }
    MigrationProxy(const MigrationProxy&) = delete;
    MigrationProxy& operator=(const MigrationProxy&) = delete;

    [[nodiscard]] const MigrationAddress& address() const { return listener_.address(); }
    /// How many cuts it has made.
    [[nodiscard]] unsigned cuts() const {
        const std::lock_guard hold(lock_);
        return cuts_;
    }

  private:
    struct Pair {
        std::unique_ptr<Channel> source;
        std::unique_ptr<Channel> destination;
    };
    struct MessageStart { // as in vmm/migration/messages.hpp
        std::uint32_t type;
        std::uint32_t body_bytes;
        std::uint64_t checksums;
    };

    void accept_all() {
        for (;;) {
            std::array<pollfd, 2> fds{{{closing_.fd(), POLLIN, 0}, {listener_.fd(), POLLIN, 0}}};
            ::poll(fds.data(), fds.size(), -1);
            if (fds[0].revents != 0) {
                return;
            }
            auto caller = listener_.take();
            const std::lock_guard hold(lock_);
            if (!caller || (cut_.for_good && cuts_ != 0)) {
                continue;
            }
            threads_.emplace_back([this, shared = std::make_shared<MigrationListener::Caller>(std::move(*caller))] {
                try {
                    serve(std::move(*shared));
                } catch (const Error&) { // one end has closed
                }
            });
        }
    }

    void serve(MigrationListener::Caller caller) {
        const auto pair = std::make_shared<Pair>();
        pair->source = listener_.establish(std::move(caller), -1, kPatience);
        pair->destination = connect_channel(destination_, {}, -1, kPatience);
        pair->source->set_patience(kPatience);
        pair->destination->set_patience(kPatience);
        {
            const std::lock_guard hold(lock_);
            if (is_closed_) {
                return;
            }
            pairs_.push_back(pair);
        }
        std::thread back;
        try {
            const MessageStart first = forward_message(*pair->source, *pair->destination, Way::kToDestination);
            const auto type = static_cast<MessageType>(first.type);
            const bool is_raw = type == MessageType::kStream || type == MessageType::kServe;
            back = std::thread(
                [this, pair, is_raw] { forward_all(*pair->destination, *pair->source, Way::kToSource, is_raw); });
            forward_all(*pair->source, *pair->destination, Way::kToDestination, is_raw);
        } catch (const Error&) {
            pair->destination->shut_down();
        }
        if (back.joinable()) {
            back.join();
        }
    }

    void forward_all(Channel& from, Channel& to, Way way, bool is_raw) {
        try {
            for (;;) {
                if (is_raw) {
                    forward_some(from, to, way);
                } else {
                    forward_message(from, to, way);
                }
            }
        } catch (const Error&) { // one end has closed, or all connections were cut
            from.shut_down();
            to.shut_down();
        }
    }

    MessageStart forward_message(Channel& from, Channel& to, Way way) {
        MessageStart start{};
        from.receive(std::as_writable_bytes(std::span(&start, 1)));
        std::vector<std::byte> bytes(sizeof start + start.body_bytes);
        std::memcpy(bytes.data(), &start, sizeof start);
        from.receive(std::span(bytes).subspan(sizeof start));
        const bool is_it = cut_.message && way == cut_.way && static_cast<MessageType>(start.type) == *cut_.message;
        if (!is_it) {
            const std::shared_lock passing(passing_);
            pass(to, bytes, way);
            return start;
        }
        // No answer to this message comes through before the cut.
        const std::unique_lock nobody_else_passes(passing_);
        if (!cut_.passes) {
            cut();
        }
        pass(to, bytes, way);
        cut();
        return start;
    }

    void forward_some(Channel& from, Channel& to, Way way) {
        std::array<std::byte, 16384> bytes{};
        if (!from.wait_readable(kPatience)) {
            throw LinkError("nothing comes");
        }
        const ssize_t count = ::recv(from.fd(), bytes.data(), bytes.size(), MSG_DONTWAIT);
        if (count <= 0) {
            throw LinkError("it has ended");
        }
        const std::shared_lock passing(passing_);
        pass(to, std::span(bytes).first(static_cast<std::size_t>(count)), way);
    }

    void pass(Channel& to, std::span<const std::byte> bytes, Way way) {
        std::size_t most = bytes.size();
        bool cuts_here = false;
        bool cuts_before = false;
        {
            const std::lock_guard hold(lock_);
            if (way == Way::kToDestination && !has_cut_before_ && bytes.size() >= cut_.bytes_before - passed_before_) {
                most = static_cast<std::size_t>(cut_.bytes_before - passed_before_);
                has_cut_before_ = cuts_before = true;
            } else if (way == Way::kToDestination) {
                passed_before_ += bytes.size();
            }
            if (way != cut_.way) {
                // Nothing is cut by its bytes.
            } else if (cuts_ < cut_.times && bytes.size() >= cut_.bytes - passed_) {
                most = static_cast<std::size_t>(cut_.bytes - passed_);
                cuts_here = true;
                passed_ = 0;
            } else {
                passed_ += bytes.size();
            }
        }
        to.send(bytes.first(most));
        if (cuts_here) {
            cut();
        }
        if (cuts_before) {
            const std::lock_guard hold(lock_);
            shut_down_all();
        }
    }

    void cut() {
        const std::lock_guard hold(lock_);
        if (cuts_ < cut_.times) {
            ++cuts_;
            shut_down_all();
        }
    }
    /// Must be called with the lock held.
    void shut_down_all() {
        for (const std::shared_ptr<Pair>& pair : pairs_) {
            pair->source->shut_down();
            pair->destination->shut_down();
        }
        pairs_.clear();
    }

    const Cut cut_;
    const MigrationAddress destination_;
    MigrationListener listener_;
    EventFd closing_;
    std::shared_mutex passing_; ///< shared by those who send on, but for the one whose message the cut is at
    mutable std::mutex lock_;   ///< guards all below
    bool is_closed_ = false;
    unsigned cuts_ = 0;
    std::uint64_t passed_ = 0; ///< bytes in the cut's way, since the last one
    bool has_cut_before_ = false;
    std::uint64_t passed_before_ = 0; ///< bytes to the destination, until the cut before
    std::vector<std::shared_ptr<Pair>> pairs_;
    std::vector<std::thread> threads_;
    std::thread thread_;
};

} // namespace vmm::testing
