#include "kvm/host/text.hpp"

#include <algorithm>

namespace vmm {

std::string joined(std::span<const std::string> words, std::string_view between) {
    std::string text;
    for (std::size_t i = 0; i < words.size(); ++i) {
        text += i == 0 ? "" : between;
        text += words[i];
    }
    return text;
}

std::vector<std::string> split(std::string_view text, char at) {
    std::vector<std::string> words;
    for (std::size_t start = 0; start <= text.size();) {
        const std::size_t end = std::min(text.find(at, start), text.size());
        words.emplace_back(text.substr(start, end - start));
        start = end + 1;
    }
    return words;
}

std::string lower_case(std::string_view text) {
    std::string lower(text);
    for (char& c : lower) {
        c = static_cast<char>(c >= 'A' && c <= 'Z' ? c - 'A' + 'a' : c);
    }
    return lower;
}

std::string shown(std::string_view text, std::size_t most) {
    std::string line(text.substr(0, most));
    std::ranges::replace_if(
        line, [](char c) { return c < ' ' || c > '~'; }, '?');
    return text.size() > most ? line + "..." : line;
}

} // namespace vmm
