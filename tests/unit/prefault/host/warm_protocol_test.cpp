#include "prefault/host/warm_protocol.hpp"

#include <gtest/gtest.h>
#include <sys/socket.h>

#include <array>
#include <cerrno>
#include <cstring>
#include <filesystem>
#include <iterator>
#include <vector>

#include "support/prefault_warm.hpp"

namespace vmm::prefault::warm {
namespace {

using testing::make_connection;
using testing::make_memfd;
using testing::request_for;

std::optional<Status> refusal_of(const Request& request) {
    const auto parsed = parse_request(bytes_of(request));
    const auto* const status = std::get_if<Status>(&parsed);
    return status != nullptr ? std::optional(*status) : std::nullopt;
}

std::ptrdiff_t open_descriptors() {
    return std::distance(std::filesystem::directory_iterator("/proc/self/fd"), std::filesystem::directory_iterator());
}

TEST(WarmProtocol, SensibleRequestIsUnderstood) {
    const auto parsed = parse_request(bytes_of(request_for(3 * kMiB)));
    ASSERT_TRUE(std::holds_alternative<Request>(parsed));
    EXPECT_EQ(std::get<Request>(parsed).shares[0].bytes, 3 * kMiB);
}

TEST(WarmProtocol, RequestOfAnySizeButItsOwnIsNotUnderstood) {
    const Request request = request_for(kMiB);
    const auto bytes = bytes_of(request);
    for (std::size_t size = 0; size < bytes.size(); ++size) {
        EXPECT_EQ(std::get<Status>(parse_request(bytes.first(size))), Status::kNotUnderstood) << size;
    }
    std::vector<std::byte> longer(bytes.begin(), bytes.end());
    longer.push_back(std::byte{0});
    EXPECT_EQ(std::get<Status>(parse_request(longer)), Status::kNotUnderstood);
}

TEST(WarmProtocol, OtherMagicIsNotUnderstoodAndOtherVersionIsSaid) {
    Request request = request_for(kMiB);
    request.header.magic = 1;
    EXPECT_EQ(refusal_of(request), Status::kNotUnderstood);
    request = request_for(kMiB);
    request.header.version = Header::kVersion + 1;
    EXPECT_EQ(refusal_of(request), Status::kOtherVersion);
}

TEST(WarmProtocol, SizesThatLieAreNotUnderstood) {
    for (const std::uint64_t bytes : {std::uint64_t{0}, std::uint64_t{4095}, std::uint64_t{UINT64_MAX}, 17 * kTiB}) {
        EXPECT_EQ(refusal_of(request_for(bytes)), Status::kNotUnderstood) << bytes;
    }
    Request wraps = request_for(align_down(UINT64_MAX, 4096));
    wraps.share_count = 2;
    wraps.shares[1].bytes = 8192;
    EXPECT_EQ(refusal_of(wraps), Status::kNotUnderstood);
}

TEST(WarmProtocol, CountsAndChoicesThatAreNoneAreNotUnderstood) {
    for (const std::uint32_t count : {0U, 65U, UINT32_MAX}) {
        Request request = request_for(kMiB);
        request.share_count = count;
        EXPECT_EQ(refusal_of(request), Status::kNotUnderstood) << count;
    }
    Request request = request_for(kMiB);
    request.page_size = 4;
    EXPECT_EQ(refusal_of(request), Status::kNotUnderstood);
    request = request_for(kMiB);
    request.may_be_less = 2;
    EXPECT_EQ(refusal_of(request), Status::kNotUnderstood);
}

TEST(WarmProtocol, PageSizesHaveNumbers) {
    for (const PageSize page_size : {PageSize::k4K, PageSize::kThp, PageSize::k2M, PageSize::k1G}) {
        EXPECT_EQ(page_size_of(number_of(page_size)), page_size);
    }
    EXPECT_EQ(page_size_of(UINT32_MAX), std::nullopt);
}

TEST(WarmProtocol, DescriptorArrives) {
    const auto ends = make_connection();
    const UniqueFd file = make_memfd(4096, 0);
    const Piece piece{.bytes = 4096};
    ASSERT_EQ(send_packet(ends.pool.get(), bytes_of(piece), file.get()), 0);
    std::array<std::byte, sizeof(Piece) + 1> room;
    Packet packet;
    ASSERT_EQ(receive_packet(ends.client.get(), room, packet), 0);
    EXPECT_EQ(packet.bytes, sizeof(Piece));
    EXPECT_TRUE(packet.whole);
    EXPECT_TRUE(packet.fd);
}

TEST(WarmProtocol, DescriptorsTooManyAreClosed) {
    const auto ends = make_connection();
    const UniqueFd file = make_memfd(4096, 0);
    const auto before = open_descriptors();
    for (const std::size_t count : {std::size_t{2}, std::size_t{200}}) {
        std::vector<int> fds(count, file.get());
        std::vector<std::byte> control(CMSG_SPACE(sizeof(int) * count));
        std::array<char, 4> text{'w', 'h', 'a', 't'};
        iovec part{text.data(), text.size()};
        msghdr message{};
        message.msg_iov = &part;
        message.msg_iovlen = 1;
        message.msg_control = control.data();
        message.msg_controllen = control.size();
        cmsghdr* const head = CMSG_FIRSTHDR(&message);
        head->cmsg_level = SOL_SOCKET;
        head->cmsg_type = SCM_RIGHTS;
        head->cmsg_len = CMSG_LEN(sizeof(int) * count);
        std::memcpy(CMSG_DATA(head), fds.data(), sizeof(int) * count);
        ASSERT_EQ(::sendmsg(ends.client.get(), &message, 0), 4) << std::strerror(errno);
        std::array<std::byte, 16> room;
        Packet packet;
        ASSERT_EQ(receive_packet(ends.pool.get(), room, packet), 0);
        EXPECT_FALSE(packet.whole);
        packet.fd.reset();
        EXPECT_EQ(open_descriptors(), before);
    }
}

TEST(WarmProtocol, PacketThatIsTooLongIsNotWhole) {
    const auto ends = make_connection();
    const Request request = request_for(kMiB);
    ASSERT_EQ(send_packet(ends.client.get(), bytes_of(request)), 0);
    std::array<std::byte, 16> room;
    Packet packet;
    ASSERT_EQ(receive_packet(ends.pool.get(), room, packet), 0);
    EXPECT_FALSE(packet.whole);
}

TEST(WarmProtocol, OwnUserAndRootAreTrusted) {
    EXPECT_TRUE(is_trusted(1000, 1000));
    EXPECT_TRUE(is_trusted(0, 1000));
    EXPECT_FALSE(is_trusted(1000, 0));
    EXPECT_FALSE(is_trusted(1001, 1000));
}

} // namespace
} // namespace vmm::prefault::warm
