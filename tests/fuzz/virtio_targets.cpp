// The virtio devices, each with a host that the program also drives.

#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cstring>
#include <map>
#include <memory>
#include <string>
#include <utility>
#include <vector>

#include "devices/disk_image.hpp"
#include "devices/tap.hpp"
#include "devices/virtio/balloon.hpp"
#include "devices/virtio/block.hpp"
#include "devices/virtio/console.hpp"
#include "devices/virtio/net.hpp"
#include "devices/virtio/rng.hpp"
#include "devices/virtio/vsock.hpp"
#include "fuzz/input.hpp"
#include "fuzz/require.hpp"
#include "fuzz/targets.hpp"
#include "fuzz/virtio_program.hpp"
#include "kvm/host/unique_fd.hpp"
#include "support/devices_echo_device.hpp"
#include "support/host_temporary_directory.hpp"

namespace vmm::fuzz {
namespace {

constexpr std::size_t kDiskBytes = 1 << 20;

template <typename T>
std::vector<std::byte> bytes_of(const T& object) {
    const auto bytes = std::as_bytes(std::span(&object, 1));
    return {bytes.begin(), bytes.end()};
}

// ---- A disk

struct BlockHeader {
    std::uint32_t type = 0;
    std::uint32_t reserved = 0;
    std::uint64_t sector = 0;
};

/// A file in memory. The file and the device are made once, because making an io_uring takes longer than most programs.
class Disk {
  public:
    Disk() : file_(::memfd_create("disk", MFD_CLOEXEC)) {
        require(file_ && ::ftruncate(file_.get(), kDiskBytes) == 0, "there is no disk");
        devices::virtio::BlockConfig config;
        config.queues = 2;
        config.id = "fuzz";
        device_ = std::make_unique<devices::virtio::Block>(
            "blk0", devices::DiskImage("/proc/self/fd/" + std::to_string(file_.get()), {}), config);
    }
    devices::virtio::Block& device() { return *device_; }
    void resize(std::size_t bytes) { require(::ftruncate(file_.get(), static_cast<off_t>(bytes)) == 0, "no disk"); }

  private:
    UniqueFd file_;
    std::unique_ptr<devices::virtio::Block> device_;
};

std::vector<std::byte> block_front(Input& input) {
    static constexpr std::array<std::uint32_t, 8> kTypes{0, 1, 4, 8, 11, 13, 0, 1};
    const std::uint8_t choice = input.byte();
    BlockHeader header{kTypes[choice & 7], 0, input.byte()};
    if ((choice & 0x80) != 0) {
        header.sector = input.take<std::uint64_t>();
    }
    if ((choice & 0x40) != 0) {
        header.type = input.byte();
    }
    std::vector<std::byte> front = bytes_of(header);
    if ((choice & 0x20) != 0) { // a range behind the file
        struct {
            std::uint64_t sector;
            std::uint32_t sectors;
            std::uint32_t flags;
        } const range{input.byte(), input.take<std::uint16_t>(), input.byte() & 3U};
        const std::vector<std::byte> more = bytes_of(range);
        front.insert(front.end(), more.begin(), more.end());
    }
    return front;
}

// ---- A network

class Cable {
  public:
    Cable() {
        std::array<int, 2> fds{-1, -1};
        require(::socketpair(AF_UNIX, SOCK_DGRAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0, fds.data()) == 0, "no cable");
        device_ = UniqueFd(fds[0]);
        host_ = UniqueFd(fds[1]);
        const int bytes = 1 << 20; // large enough for any frame
        require(::setsockopt(fds[0], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes)) == 0, "a short cable");
        require(::setsockopt(fds[1], SOL_SOCKET, SO_SNDBUF, &bytes, sizeof(bytes)) == 0, "a short cable");
    }
    UniqueFd take_device_end() { return std::move(device_); }

    void move(Input& input) {
        static constexpr std::array<std::size_t, 8> kSizes{1, 12, 13, 72, 1526, 4096, 65000, 65565};
        const std::uint8_t choice = input.byte();
        if (choice == 0xff) {
            host_.reset(); // the cable is pulled
            return;
        }
        if ((choice & 0x80) != 0) {
            drain();
            return;
        }
        std::vector<std::byte> frame(kSizes[choice & 7]);
        std::ranges::copy(input.take_bytes(std::min<std::size_t>(frame.size(), choice >> 3 & 15)), frame.begin());
        static_cast<void>(::send(host_.get(), frame.data(), frame.size(), MSG_NOSIGNAL));
    }
    void drain() {
        static std::vector<std::byte> frame(1 << 17);
        while (::recv(host_.get(), frame.data(), frame.size(), 0) >= 0) {
        }
    }

  private:
    UniqueFd device_;
    UniqueFd host_;
};

// ---- Sockets

struct VsockHeader {
    std::uint64_t source_cid = 3;
    std::uint64_t destination_cid = 2;
    std::uint32_t source_port = 0;
    std::uint32_t destination_port = 0;
    std::uint32_t length = 0;
    std::uint16_t type = 1;
    std::uint16_t operation = 0;
    std::uint32_t flags = 0;
    std::uint32_t buffer_bytes = 4096;
    std::uint32_t forwarded_bytes = 0;
};
constexpr std::size_t kVsockHeaderBytes = 44;

/// Programs of the host: some listen for the guest, others connect to it.
class Programs {
  public:
    Programs() : path_(directory_ / "v") {
        for (int port = 0; port < 2; ++port) {
            UniqueFd& listener = listeners_.emplace_back(socket());
            const sockaddr_un address = address_of(path_ + "_" + std::to_string(port));
            require(::bind(listener.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) == 0 &&
                        ::listen(listener.get(), 8) == 0,
                    "a program cannot listen");
        }
    }
    [[nodiscard]] const std::string& path() const { return path_; }

    /// All connections of the last program end.
    void leave() {
        programs_.clear();
        for (const UniqueFd& listener : listeners_) {
            while (UniqueFd(::accept4(listener.get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC))) {
            }
        }
    }

    void move(Input& input) {
        const std::uint8_t choice = input.byte();
        if (choice < 0x20) {
            connect(input, choice);
            return;
        }
        if (choice < 0x30) {
            accept(choice % listeners_.size());
            return;
        }
        if (programs_.empty()) {
            return;
        }
        const std::size_t index = input.below(programs_.size());
        const UniqueFd& program = programs_[index];
        if (choice < 0x70) {
            static const std::array<char, 70000> kText{};
            const std::size_t bytes = choice < 0x50 ? choice - 0x2fU : kText.size();
            static_cast<void>(::send(program.get(), kText.data(), bytes, MSG_NOSIGNAL));
        } else if (choice < 0xb0) {
            read(program);
        } else if (choice < 0xd0) {
            ::shutdown(program.get(), choice % 3);
        } else {
            programs_.erase(programs_.begin() + static_cast<std::ptrdiff_t>(index));
        }
    }

  private:
    static UniqueFd socket() { return UniqueFd(::socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)); }
    static sockaddr_un address_of(const std::string& path) {
        sockaddr_un address{};
        address.sun_family = AF_UNIX;
        path.copy(address.sun_path, sizeof(address.sun_path) - 1);
        return address;
    }
    void connect(Input& input, std::uint8_t choice) {
        const sockaddr_un address = address_of(path_);
        UniqueFd program = socket();
        if (programs_.size() == 16 ||
            ::connect(program.get(), reinterpret_cast<const sockaddr*>(&address), sizeof(address)) != 0) {
            return;
        }
        std::string line = "CONNECT " + std::to_string(choice & 3) + "\n";
        if ((choice & 0x10) != 0) {
            const Bytes bytes = input.take_bytes(input.below(48));
            line.assign(reinterpret_cast<const char*>(bytes.data()), bytes.size());
        }
        static_cast<void>(::send(program.get(), line.data(), line.size(), MSG_NOSIGNAL));
        programs_.push_back(std::move(program));
    }
    void accept(std::size_t listener) {
        UniqueFd program(::accept4(listeners_[listener].get(), nullptr, nullptr, SOCK_NONBLOCK | SOCK_CLOEXEC));
        if (program && programs_.size() < 16) {
            programs_.push_back(std::move(program));
        }
    }
    static void read(const UniqueFd& program) {
        static std::vector<char> text(1 << 16);
        static_cast<void>(::recv(program.get(), text.data(), text.size(), 0));
    }

    vmm::testing::TemporaryDirectory directory_;
    std::string path_;
    std::vector<UniqueFd> listeners_;
    std::vector<UniqueFd> programs_;
};

std::vector<std::byte> bytes_of(const VsockHeader& header) {
    const auto bytes = std::as_bytes(std::span(&header, 1)).first(kVsockHeaderBytes);
    return {bytes.begin(), bytes.end()};
}

std::vector<std::byte> vsock_front(Input& input) {
    VsockHeader header;
    const std::uint8_t choice = input.byte();
    header.operation = static_cast<std::uint16_t>(choice & 7);
    const std::uint8_t ports = input.byte();
    header.source_port = ports & 3U;
    // Connections that programs of the host begin have ports from 1 << 30 on.
    header.destination_port = (ports >> 2 & 3U) + ((ports & 0x10) != 0 ? 1U << 30 : 0U);
    header.length = input.byte();
    if ((choice & 0x08) != 0) {
        header.length = input.take<std::uint32_t>();
    }
    if ((choice & 0x10) != 0) {
        header.flags = input.byte();
    }
    if ((choice & 0x20) != 0) {
        header.buffer_bytes = input.take<std::uint32_t>();
        header.forwarded_bytes = input.take<std::uint32_t>();
    }
    if ((choice & 0xc0) == 0xc0) {
        header.source_cid = input.byte();
        header.destination_cid = input.byte();
        header.type = input.byte();
    }
    return bytes_of(header);
}

} // namespace

void block(Bytes program) {
    static Disk disk;
    disk.resize(0); // so it is all zeros
    disk.resize(kDiskBytes);
    VirtioSubject subject;
    subject.device = &disk.device();
    subject.host = [](Input& input) { disk.resize(input.byte() < 0x80 ? kDiskBytes / 4 : kDiskBytes); };
    subject.front = block_front;
    subject.answered_queues = 0b11;
    subject.probe = bytes_of(BlockHeader{});
    subject.probe_room = 513;
    run_virtio_program(program, subject);
}

void net(Bytes program) {
    Cable cable;
    devices::virtio::Net device("net0", devices::Tap(cable.take_device_end()), devices::make_mac_address("fuzz"));
    VirtioSubject subject;
    subject.device = &device;
    subject.host = [&](Input& input) { cable.move(input); };
    subject.drain = [&] { cable.drain(); };
    subject.answered_queues = 0b10;
    subject.probe_queue = 1;
    subject.probe.resize(72);
    run_virtio_program(program, subject);
}

void net_pairs(Bytes program) {
    std::array<Cable, 2> cables;
    std::vector<std::unique_ptr<devices::FrameLink>> links;
    for (Cable& cable : cables) {
        links.push_back(std::make_unique<devices::Tap>(cable.take_device_end()));
    }
    devices::virtio::Net device("net0", std::move(links), devices::make_mac_address("fuzz"));
    VirtioSubject subject;
    subject.device = &device;
    subject.host = [&](Input& input) { cables[input.below(cables.size())].move(input); };
    subject.drain = [&] {
        for (Cable& cable : cables) {
            cable.drain();
        }
    };
    // The number of pairs to use (VIRTIO_NET_CTRL_MQ_VQ_PAIRS_SET), or any other class and command.
    subject.front = [](Input& input) {
        constexpr std::byte kPairs{4};
        const std::uint8_t choice = input.byte();
        std::vector<std::byte> front{kPairs, std::byte{0}, std::byte(choice & 3U), std::byte{0}};
        if ((choice & 0x80) != 0) {
            const Bytes any = input.take_bytes(front.size());
            std::ranges::copy(any, front.begin());
        }
        return front;
    };
    subject.answered_queues = 0b10;
    subject.probe_queue = 1;
    subject.probe.resize(72);
    run_virtio_program(program, subject);
}

void rng(Bytes program) {
    devices::virtio::Rng device("rng0", [](std::span<std::byte> bytes) {
        std::ranges::fill(bytes, std::byte{0x5a});
        return true;
    });
    VirtioSubject subject;
    subject.device = &device;
    subject.answered_queues = 0b1;
    subject.probe.resize(1);
    subject.probe_room = 64;
    run_virtio_program(program, subject);
}

void console(Bytes program) {
    devices::virtio::Console device("con0", {}, devices::virtio::ConsoleSize{80, 25}, 4096);
    VirtioSubject subject;
    subject.device = &device;
    subject.host = [&](Input& input) {
        const std::uint8_t choice = input.byte();
        if (choice < 0x80) {
            static_cast<void>(device.feed_input(input.take_bytes(choice)));
        } else if (choice < 0xa0) {
            static const std::array<std::byte, 5000> kMuch{};
            static_cast<void>(device.feed_input(kMuch));
        } else if (choice < 0xd0) {
            device.resize({input.byte(), input.byte()});
        } else {
            std::array<std::byte, 256> out{};
            static_cast<void>(device.take_output(std::span(out).first(input.byte())));
        }
    };
    subject.answered_queues = 0b10;
    subject.probe_queue = 1;
    subject.probe.resize(5);
    run_virtio_program(program, subject);
}

void balloon(Bytes program) {
    constexpr std::uint64_t kPage = devices::virtio::Balloon::kPageBytes;
    devices::virtio::Balloon device("balloon0", 16 * kPage, true);
    VirtioSubject subject;
    subject.device = &device;
    subject.host = [&](Input& input) { device.set_target(input.take<std::uint16_t>() * kPage); };
    // Page numbers: some are in RAM, behind the queues. It is not required that a request comes back, because a driver
    // may give away the pages that hold its queues.
    subject.front = [](Input& input) {
        std::vector<std::byte> pages;
        for (std::size_t count = 1 + input.below(16); count != 0; --count) {
            const std::uint8_t choice = input.byte();
            const std::uint32_t page = choice < 0xf0 ? 8U + choice : input.take<std::uint32_t>();
            const std::vector<std::byte> bytes = bytes_of(page);
            pages.insert(pages.end(), bytes.begin(), bytes.end());
        }
        return pages;
    };
    subject.probe_queue = 1;
    subject.probe = bytes_of(std::uint32_t{8});
    run_virtio_program(program, subject);
}

void vsock(Bytes program) {
    static Programs programs;
    {
        devices::virtio::Vsock device("vsock0", {3, programs.path()});
        VirtioSubject subject;
        subject.device = &device;
        subject.host = [](Input& input) { programs.move(input); };
        subject.front = vsock_front;
        subject.answered_queues = 0b10;
        subject.answered_requests = 200; // Then replies may wait for buffers of the guest.
        subject.probe_queue = 1;
        VsockHeader header;
        header.operation = 3;
        subject.probe = bytes_of(header);
        run_virtio_program(program, subject);
    }
    programs.leave();
}

void registers(Bytes program) {
    devices::testing::EchoDevice device;
    VirtioSubject subject;
    subject.device = &device;
    subject.host = [&](Input& input) {
        if (input.byte() < 0x80) {
            device.hold();
        } else {
            device.release();
        }
    };
    subject.drain = [&] { device.release(); };
    subject.answered_queues = 0b11;
    subject.probe.resize(64);
    subject.probe_room = 64;
    run_virtio_program(program, subject);
}

} // namespace vmm::fuzz
