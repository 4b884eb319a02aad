// Both ends of a connection between hosts, in one process.
#pragma once

#include <chrono>
#include <cstddef>
#include <exception>
#include <future>
#include <memory>
#include <optional>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#include "support/host_waiting.hpp"
#include "vmm/migration/channel.hpp"
#include "vmm/migration/listener.hpp"

namespace vmm::testing {

struct MigrationLink {
    std::unique_ptr<Channel> listening;
    std::unique_ptr<Channel> connecting;
};

/// Accepts the next caller, when one comes.
inline MigrationListener::Caller take_caller(MigrationListener& listener) {
    std::optional<MigrationListener::Caller> caller;
    if (!eventually([&] {
            caller = listener.take();
            return caller.has_value();
        })) {
        throw std::runtime_error("nobody has connected");
    }
    return std::move(*caller);
}

/// Connects to `listener`. Throws the exception of establish(), or else that of connect_channel().
inline MigrationLink make_link(MigrationListener& listener, const MigrationSecurity& connecting = {},
                               int listening_stop = -1, int connecting_stop = -1) {
    MigrationLink link;
    auto connected = std::async(std::launch::async, [&] {
        return connect_channel(listener.address(), connecting, connecting_stop, kPatience);
    });
    std::exception_ptr failure;
    try {
        link.listening = listener.establish(take_caller(listener), listening_stop, kPatience);
    } catch (const Error&) {
        failure = std::current_exception();
    }
    try {
        link.connecting = connected.get();
    } catch (const Error&) {
        failure = failure ? failure : std::current_exception();
    }
    if (failure) {
        std::rethrow_exception(failure);
    }
    link.listening->set_patience(kPatience);
    link.connecting->set_patience(kPatience);
    return link;
}

/// Bytes without a shorter repeating pattern.
inline std::vector<std::byte> random_bytes(std::size_t count) {
    std::mt19937 generator(20261129);
    std::vector<std::byte> bytes(count);
    for (std::byte& byte : bytes) {
        byte = static_cast<std::byte>(generator());
    }
    return bytes;
}

} // namespace vmm::testing
