// The state of a machine, as bytes of a file.

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <span>
#include <vector>

#include "fuzz/require.hpp"
#include "fuzz/targets.hpp"
#include "kvm/host/error.hpp"
#include "vmm/state/crc32c.hpp"
#include "vmm/state/state_container.hpp"
#include "vmm/state/state_file.hpp"

namespace vmm::fuzz {

namespace {

using namespace state_container;

void put(std::span<std::byte> file, std::size_t offset, std::uint64_t value, std::size_t bytes) {
    std::memcpy(file.data() + offset, &value, bytes);
}

/// Makes the length of the file and its checksums right, as far as the bytes have them: a fuzzer does not find those by
/// chance.
std::vector<std::byte> repaired(Bytes bytes) {
    constexpr std::size_t kChecksum = 4;
    std::vector<std::byte> file(bytes.begin(), bytes.end());
    if (file.size() < kHeaderBytes + kChecksum) {
        return file;
    }
    put(file, 16, file.size(), 8);
    const std::size_t end = file.size() - kChecksum;
    for (std::size_t at = kHeaderBytes; at <= end && end - at >= kSectionHeaderBytes;) {
        std::uint64_t length = 0;
        std::memcpy(&length, file.data() + at + 32, sizeof length);
        // If the last section says that it is longer than the file, it ends at the end of the file.
        length = std::min<std::uint64_t>(length, end - at - kSectionHeaderBytes);
        put(file, at + 32, length, 8);
        const auto content = std::span(file).subspan(at + kSectionHeaderBytes, static_cast<std::size_t>(length));
        put(file, at + 40, crc32c(content), 4);
        at += kSectionHeaderBytes + static_cast<std::size_t>(length);
    }
    put(file, end, crc32c(std::span(file).first(end)), kChecksum);
    return file;
}

void decode(Bytes file) {
    SnapshotState read;
    try {
        read = decode_state(file);
    } catch (const Error& error) {
        require(error.what()[0] != '\0', "a state is refused without a word");
        require(std::strchr(error.what(), '\n') == nullptr, "a state is refused in more than one line");
        return;
    }
    // A state that was read can be written, and is then read with the same content.
    const std::vector<std::byte> once = encode_state(read);
    require(encode_state(decode_state(once)) == once, "a state is another when it is read again");
}

} // namespace

void state(Bytes file) {
    decode(file);
    decode(repaired(file));
}

} // namespace vmm::fuzz
