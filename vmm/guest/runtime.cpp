// The functions that a compiler may call by itself, even if there is no C library. They use string instructions.
// Otherwise the compiler might turn a loop here into a call to the same function.
#include <cstddef>

extern "C" {

void* memcpy(void* to, const void* from, std::size_t size) noexcept {
    void* const start = to;
    asm volatile("rep movsb" : "+D"(to), "+S"(from), "+c"(size) : : "memory");
    return start;
}

void* memset(void* to, int value, std::size_t size) noexcept {
    void* const start = to;
    asm volatile("rep stosb" : "+D"(to), "+c"(size) : "a"(value) : "memory");
    return start;
}

void* memmove(void* to, const void* from, std::size_t size) noexcept {
    auto* const target = static_cast<std::byte*>(to);
    const auto* const source = static_cast<const std::byte*>(from);
    if (target <= source || target >= source + size) {
        return memcpy(to, from, size);
    }
    for (std::size_t i = size; i > 0; --i) {
        const_cast<volatile std::byte&>(target[i - 1]) = source[i - 1];
    }
    return to;
}

int memcmp(const void* left, const void* right, std::size_t size) noexcept {
    const auto* const a = static_cast<const volatile unsigned char*>(left);
    const auto* const b = static_cast<const volatile unsigned char*>(right);
    for (std::size_t i = 0; i < size; ++i) {
        if (a[i] != b[i]) {
            return a[i] < b[i] ? -1 : 1;
        }
    }
    return 0;
}

void* memchr(const void* bytes, int value, std::size_t size) noexcept {
    const auto* const first = static_cast<const volatile unsigned char*>(bytes);
    for (std::size_t i = 0; i < size; ++i) {
        if (first[i] == static_cast<unsigned char>(value)) {
            return const_cast<unsigned char*>(first + i);
        }
    }
    return nullptr;
}

std::size_t strlen(const char* text) noexcept {
    std::size_t size = 0;
    while (static_cast<const volatile char*>(text)[size] != '\0') {
        ++size;
    }
    return size;
}

} // extern "C"
