#include "devices/byte_ring.hpp"

#include <algorithm>
#include <cassert>

namespace vmm::devices {

ByteRing::ByteRing(std::size_t capacity)
    // NOLINTNEXTLINE(modernize-avoid-c-arrays): see the declaration.
    : capacity_(capacity), bytes_(std::make_unique_for_overwrite<std::byte[]>(capacity)) {
    assert(capacity > 0);
}

std::size_t ByteRing::push(std::span<const std::byte> bytes) noexcept {
    const std::size_t count = std::min(bytes.size(), room());
    const std::size_t to_the_end = capacity_ - oldest_;
    const std::size_t free = size_ < to_the_end ? oldest_ + size_ : size_ - to_the_end;
    const std::size_t before_the_end = std::min(count, capacity_ - free);
    std::copy_n(bytes.begin(), before_the_end, bytes_.get() + free);
    std::copy_n(bytes.begin() + static_cast<std::ptrdiff_t>(before_the_end), count - before_the_end, bytes_.get());
    size_ += count;
    return count;
}

std::size_t ByteRing::pop(std::span<std::byte> out) noexcept {
    const std::size_t count = std::min(out.size(), size_);
    const std::size_t before_the_end = std::min(count, capacity_ - oldest_);
    std::copy_n(bytes_.get() + oldest_, before_the_end, out.begin());
    std::copy_n(bytes_.get(), count - before_the_end, out.begin() + static_cast<std::ptrdiff_t>(before_the_end));
    drop(count);
    return count;
}

std::span<const std::byte> ByteRing::front() const noexcept {
    return {bytes_.get() + oldest_, std::min(size_, capacity_ - oldest_)};
}

std::vector<std::byte> ByteRing::contents() const {
    const std::span<const std::byte> first = front();
    std::vector<std::byte> all(first.begin(), first.end());
    all.insert(all.end(), bytes_.get(), bytes_.get() + (size_ - first.size())); // The bytes that wrapped to the front.
    return all;
}

void ByteRing::drop(std::size_t count) noexcept {
    assert(count <= size_);
    size_ -= count;
    // An empty ring starts again at the front, so that little traffic touches few pages.
    oldest_ = size_ == 0 ? 0 : (oldest_ + count) % capacity_;
}

} // namespace vmm::devices
