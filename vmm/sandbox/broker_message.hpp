// The messages between a confined process and its broker.
#pragma once

#include <array>
#include <climits>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/host/unique_fd.hpp"

namespace vmm::broker_message {

enum class Act : std::uint32_t {
    kOpen,
    kMakeDirectory,
    kRemove,
    kRename,
    kSyncDirectory,
    kCanonical,
    kWriteOutput,
    kStart,
    kOpenProcessOfPeer,
    kAddSocket,
    kSettle,
};

/// The fixed part of a message; its texts and descriptors follow. An answer has an error number in `value`, or 0.
struct Head {
    std::uint32_t act = 0;
    std::uint32_t sequence = 0;
    std::int32_t value = 0; ///< flags of an opening, a removal or a renaming
    std::uint32_t mode = 0;
    std::uint32_t first_bytes = 0;
    std::uint32_t second_bytes = 0;
    std::uint32_t places = 0; ///< bit i: descriptor i of the question is among those that come
    std::int32_t pid = -1;
};

constexpr std::size_t kMostTextBytes = 2UL * PATH_MAX;
constexpr std::size_t kMostFds = 4;

struct Parcel {
    Head head{};
    std::string first{};
    std::string second{};
    std::array<UniqueFd, kMostFds> fds{}; ///< at their places
};

/// Sends a message. The descriptors are loans; -1 stands for none. Returns 0 or an errno.
int send(int socket, Head head, std::string_view first, std::string_view second,
         const std::array<int, kMostFds>& fds) noexcept;

/// Receives a message. Returns nothing if that failed, with errno set: errno is 0 if the other end is gone, and EPROTO
/// if the bytes were no message.
std::optional<Parcel> receive(int socket) noexcept;

} // namespace vmm::broker_message
