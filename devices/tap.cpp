#include "devices/tap.hpp"

#include <fcntl.h>
#include <linux/if.h>
#include <linux/if_tun.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstdlib>
#include <iterator>
#include <utility>

#include "kvm/host/error.hpp"
#include "kvm/host/retry.hpp"

namespace vmm::devices {

namespace {

/// Returns the caller's error for a failed call: a call that was interrupted again and again should be repeated later.
int error_of_try(int error_number) noexcept {
    return error_number == EINTR ? EAGAIN : error_number;
}

constexpr std::uint8_t kGroup = 1;
constexpr std::uint8_t kLocallyAdministered = 2;

int digit(char c) noexcept {
    if (c >= '0' && c <= '9') {
        return c - '0';
    }
    const char lower = static_cast<char>(c | 0x20);
    return lower >= 'a' && lower <= 'f' ? lower - 'a' + 10 : -1;
}

UniqueFd open_tap(const std::string& name, bool has_queues) {
    const std::string tried = "connect to the tap interface " + name;
    check_interface_name(name);
    UniqueFd fd(::open("/dev/net/tun", O_RDWR | O_NONBLOCK | O_CLOEXEC));
    if (!fd) {
        throw_errno(
            errno, "open /dev/net/tun for the tap interface " + name,
            {{ENOENT, "load the module tun"},
             {ENODEV, "load the module tun"},
             {ENXIO, "load the module tun"},
             {EACCES, "let this user open it: `chmod 666 /dev/net/tun`"},
             {EPERM, "the device rules of a container forbid it: allow it there, as by --device /dev/net/tun"}});
    }
    ifreq request{};
    name.copy(request.ifr_name, IFNAMSIZ - 1);
    request.ifr_flags = static_cast<short>(IFF_TAP | IFF_NO_PI | IFF_VNET_HDR | (has_queues ? IFF_MULTI_QUEUE : 0));
    if (::ioctl(fd.get(), TUNSETIFF, &request) != 0) {
        const int error = errno;
        const std::string queues = has_queues ? " multi_queue" : "";
        const std::string make =
            "make it for this user beforehand: `ip tuntap add " + name + " mode tap" + queues + " user $USER`";
        throw_errno(
            error, tried,
            {{EPERM, make},
             {EACCES, make},
             {EBUSY, "another process has it: end that one, or take another interface"},
             {E2BIG, "it has as many queues as it can: give the guest fewer, or end the process that has them"},
             {EINVAL, has_queues ? "there is an interface of that name that is no tap, or one of a single queue: make "
                                   "it anew by `ip tuntap add " +
                                       name + " mode tap multi_queue`"
                                 : "there is an interface of that name that is no tap, or one of several queues: take "
                                   "another name, or make it anew"}});
    }
    const int header_bytes = FrameLink::kHeaderBytes;
    if (::ioctl(fd.get(), TUNSETVNETHDRSZ, &header_bytes) != 0) {
        throw_errno(errno, "set the header size of the tap interface " + name,
                    {{EINVAL, "this kernel's taps do not know it: a newer kernel is needed"}});
    }
    return fd;
}

} // namespace

void check_interface_name(const std::string& name) {
    const bool good =
        !name.empty() && name.size() < IFNAMSIZ && name != "." && name != ".." &&
        std::ranges::all_of(name, [](char c) { return c > ' ' && c < '\x7f' && c != '/' && c != ':' && c != '%'; });
    if (!good) {
        throw Error("cannot connect to the tap interface '" + name +
                    "': a name has 1 to 15 characters, without '/', ':', '%' and spaces");
    }
}

MacAddress parse_mac_address(const std::string& text) {
    MacAddress address{};
    bool good = text.size() == 17;
    for (std::size_t i = 0; good && i < address.size(); ++i) {
        const int high = digit(text[3 * i]);
        const int low = digit(text[(3 * i) + 1]);
        good = high >= 0 && low >= 0 && (i == 5 || text[(3 * i) + 2] == ':');
        address[i] = static_cast<std::uint8_t>((high << 4) | low);
    }
    if (!good) {
        throw Error("cannot use '" + text + "' as a MAC address: it must look like 52:54:00:12:34:56");
    }
    if ((address[0] & kGroup) != 0) {
        throw Error("cannot use '" + text + "' as a MAC address: it is one of a group (its first byte must be even)");
    }
    if (address == MacAddress{}) {
        throw Error("cannot use '" + text + "' as a MAC address: nobody can have it");
    }
    return address;
}

MacAddress make_mac_address(std::string_view text) noexcept {
    std::uint64_t hash = 14695981039346656037ULL; // FNV-1a
    for (const char c : text) {
        hash = (hash ^ static_cast<std::uint8_t>(c)) * 1099511628211ULL;
    }
    MacAddress address{};
    for (std::uint8_t& byte : address) {
        byte = static_cast<std::uint8_t>(hash);
        hash >>= 8;
    }
    address[0] = static_cast<std::uint8_t>((address[0] & ~kGroup) | kLocallyAdministered);
    return address;
}

Tap::Tap(const std::string& name) : Tap(open_tap(name, false), false) {}

Tap::Tap(UniqueFd fd, bool has_queues) : fd_(std::move(fd)), is_tap_(true), has_queues_(has_queues) {
    set_offloads({});
}

Tap::Tap(UniqueFd fd, const std::string& name) : fd_(std::move(fd)), is_tap_(true) {
    const std::string tried = "cannot use the descriptor that came for the tap interface " + name + ": ";
    const std::string advice = " (open it as `vmm ctl` does)";
    check_interface_name(name);
    const int flags = ::fcntl(fd_.get(), F_GETFL);
    if (flags < 0 || (flags & O_PATH) != 0 || (flags & O_ACCMODE) != O_RDWR) {
        throw Error(tried + "it is not open for reading and writing" + advice);
    }
    constexpr int kWanted = IFF_TAP | IFF_NO_PI | IFF_VNET_HDR;
    ifreq request{};
    int header_bytes = 0;
    if (::ioctl(fd_.get(), TUNGETIFF, &request) != 0 || (request.ifr_flags & kWanted) != kWanted ||
        ::ioctl(fd_.get(), TUNGETVNETHDRSZ, &header_bytes) != 0 || header_bytes != static_cast<int>(kHeaderBytes)) {
        throw Error(tried + "it is no tap interface with virtio headers of " + std::to_string(kHeaderBytes) + " bytes" +
                    advice);
    }
    has_queues_ = (request.ifr_flags & IFF_MULTI_QUEUE) != 0;
    request.ifr_name[IFNAMSIZ - 1] = '\0';
    if (name != request.ifr_name) {
        throw Error(tried + "it is another interface" + advice);
    }
    if (::fcntl(fd_.get(), F_SETFL, O_NONBLOCK) != 0) {
        throw_errno(errno, "set up the tap interface " + name);
    }
    set_offloads({});
}

void Tap::set_offloads(const FrameOffloads& offloads) noexcept {
    const unsigned flags = offloads.checksum
                               ? static_cast<unsigned>(TUN_F_CSUM) | (offloads.tso4 ? TUN_F_TSO4 : 0U) |
                                     (offloads.tso6 ? TUN_F_TSO6 : 0U) |
                                     (offloads.ecn && (offloads.tso4 || offloads.tso6) ? TUN_F_TSO_ECN : 0U)
                               : 0U;
    if (is_tap_) { // Every kernel with virtio headers knows these flags.
        static_cast<void>(::ioctl(fd_.get(), TUNSETOFFLOAD, flags));
    }
}

std::vector<UniqueFd> Tap::open_queues(const std::string& name, unsigned queues) {
    std::vector<UniqueFd> opened;
    while (opened.size() < queues) {
        opened.push_back(open_tap(name, queues > 1));
    }
    return opened;
}

bool Tap::is_attached() const noexcept {
    ifreq request{};
    return ::ioctl(fd_.get(), TUNGETIFF, &request) == 0 && (request.ifr_flags & IFF_DETACH_QUEUE) == 0;
}

std::vector<std::unique_ptr<FrameLink>> Tap::with_all_frames_in_first(std::vector<std::unique_ptr<Tap>> taps,
                                                                      const std::string& name) {
    std::vector<std::unique_ptr<FrameLink>> links;
    for (std::size_t i = 1; i < taps.size(); ++i) {
        if (!taps[i]->set_attached(false)) {
            throw_errno(errno, "do without a queue of the tap interface " + name);
        }
    }
    std::ranges::move(taps, std::back_inserter(links));
    return links;
}

std::vector<std::unique_ptr<FrameLink>> Tap::make_queues(const std::string& name, unsigned queues) {
    std::vector<std::unique_ptr<Tap>> taps;
    for (UniqueFd& queue : open_queues(name, queues)) {
        taps.push_back(std::unique_ptr<Tap>(new Tap(std::move(queue), queues > 1)));
    }
    return with_all_frames_in_first(std::move(taps), name);
}

std::vector<std::unique_ptr<FrameLink>> Tap::take_queues(std::vector<UniqueFd> queues, const std::string& name) {
    std::vector<std::unique_ptr<Tap>> taps;
    for (UniqueFd& queue : queues) {
        taps.push_back(std::make_unique<Tap>(std::move(queue), name));
        if (queues.size() > 1 && !taps.back()->has_queues_) {
            throw Error("cannot use the descriptors that came for the tap interface " + name +
                        ": it was opened as one of a single queue (open it as `vmm ctl` does)");
        }
    }
    const Tap* const first = taps.empty() ? nullptr : taps.front().get();
    auto links = with_all_frames_in_first(std::move(taps), name);
    if (first != nullptr && !first->is_attached()) {
        throw Error("cannot use the descriptors that came for the tap interface " + name +
                    ": one queue came more than once, or the first is detached (open it as `vmm ctl` does)");
    }
    return links;
}

bool Tap::set_attached(bool attached) noexcept {
    ifreq request{};
    request.ifr_flags = attached ? IFF_ATTACH_QUEUE : IFF_DETACH_QUEUE;
    return !has_queues_ || ::ioctl(fd_.get(), TUNSETQUEUE, &request) == 0;
}

std::ptrdiff_t Tap::receive(std::span<const iovec> buffers) noexcept {
    const ssize_t count =
        uninterrupted([&] { return ::readv(fd_.get(), buffers.data(), static_cast<int>(buffers.size())); });
    const int error = count < 0 ? error_of_try(errno) : 0;
    // In these cases the interface is deleted (linux: tun_chr_read_iter), or the socket's peer has closed.
    up_ = up_ && count != 0 && error != EBADFD;
    return count < 0 ? -error : count;
}

int Tap::send(std::span<const iovec> frame) noexcept {
    const ssize_t count =
        uninterrupted([&] { return ::writev(fd_.get(), frame.data(), static_cast<int>(frame.size())); });
    const int error = count < 0 ? error_of_try(errno) : 0;
    up_ = up_ && error != EBADFD;
    return -error;
}

} // namespace vmm::devices
