#include "vmm/state/fields.hpp"

#include <cstring>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"
#include "kvm/host/text.hpp"
#include "vmm/state/state_container.hpp"

namespace vmm {

std::string FieldPath::text() const {
    std::string text = parent == nullptr ? "" : parent->text();
    if (!name.empty()) {
        text += (text.empty() ? "" : ".") + std::string(name);
    }
    return index ? text + "[" + std::to_string(*index) + "]" : text;
}

void FieldPath::refuse(const std::string& why) const {
    const FieldPath* first = this;
    while (first->parent != nullptr) {
        first = first->parent;
    }
    if (first->is_saving) {
        throw Error(format("cannot save the state of this machine: {} {} (report this)", text(), why));
    }
    throw Error(format("cannot use this state: {} {} (take a snapshot that is whole)", text(), why));
}

void FieldSize::check(const FieldPath& path, std::size_t size, std::string_view what) const {
    if (size < least || size > most) {
        const std::string wanted = least == most ? std::to_string(least) : format("{} to {}", least, most);
        path.refuse(format("has {} {}, and has to have {}", size, what, wanted));
    }
}

CborValue FieldWriter::binary(std::span<const std::byte> bytes) {
    std::vector<std::uint8_t> copy(bytes.size());
    std::ranges::transform(bytes, copy.begin(), [](std::byte byte) { return static_cast<std::uint8_t>(byte); });
    return CborValue::binary(std::move(copy));
}

void FieldWriter::put(std::string_view name, CborValue value) {
    object_[std::string(name)] = std::move(value);
}

namespace detail {

std::uint64_t read_unsigned(const CborValue& value, std::uint64_t least, std::uint64_t most, const FieldPath& path) {
    if (!value.is_number_integer()) {
        path.refuse("is no number");
    }
    if (!value.is_number_unsigned()) {
        path.refuse(vmm::format("is {}, and has to be {} to {}", value.get<std::int64_t>(), least, most));
    }
    const auto number = value.get<std::uint64_t>();
    if (number < least || number > most) {
        path.refuse(vmm::format("is {}, and has to be {} to {}", number, least, most));
    }
    return number;
}

std::int64_t read_signed(const CborValue& value, std::int64_t least, std::int64_t most, const FieldPath& path) {
    if (!value.is_number_integer()) {
        path.refuse("is no number");
    }
    if (value.is_number_unsigned() && value.get<std::uint64_t>() > INT64_MAX) {
        path.refuse(vmm::format("is {}, and has to be {} to {}", value.get<std::uint64_t>(), least, most));
    }
    const auto number = value.get<std::int64_t>();
    if (number < least || number > most) {
        path.refuse(vmm::format("is {}, and has to be {} to {}", number, least, most));
    }
    return number;
}

} // namespace detail

RowReader::RowReader(const CborValue& row, const FieldPath& path) : row_(row), path_(path) {
    if (!row_.is_array()) {
        path_.refuse("is no row of numbers");
    }
}

const CborValue& RowReader::next() {
    if (taken_ == row_.size()) {
        path_.refuse(format("has too few numbers: {}", row_.size()));
    }
    return row_[taken_++];
}

void RowReader::finish() const {
    if (taken_ != row_.size()) {
        path_.refuse(format("has {} numbers, and has to have {}", row_.size(), taken_));
    }
}

FieldReader::FieldReader(const CborValue& object, const FieldPath& path) : object_(object), path_(path) {
    if (!object_.is_object()) {
        path_.refuse("has no fields");
    }
    taken_.reserve(object_.size());
}

const CborValue* FieldReader::find(std::string_view name) {
    const auto found = object_.find(name);
    if (found == object_.end()) {
        return nullptr;
    }
    taken_.push_back(name);
    return &*found;
}

const CborValue& FieldReader::take(std::string_view name) {
    const CborValue* const found = find(name);
    if (found == nullptr) {
        at(name).refuse("is missing");
    }
    return *found;
}

const CborValue& FieldReader::take_list(std::string_view name, FieldSize size) {
    const CborValue& list = take(name);
    if (!list.is_array()) {
        at(name).refuse("is no list");
    }
    size.check(at(name), list.size(), "elements");
    return list;
}

std::span<const std::byte> FieldReader::take_bytes(std::string_view name, FieldSize size) {
    const CborValue& value = take(name);
    if (!value.is_binary()) {
        at(name).refuse("is no string of bytes");
    }
    const CborValue::binary_t& binary = value.get_binary();
    size.check(at(name), binary.size(), "bytes");
    return std::as_bytes(std::span(binary));
}

void FieldReader::flag(std::string_view name, bool& value) {
    const CborValue& found = take(name);
    if (!found.is_boolean()) {
        at(name).refuse("is neither true nor false");
    }
    value = found.get<bool>();
}

void FieldReader::text(std::string_view name, std::string& value, std::size_t most) {
    const std::span<const std::byte> bytes = take_bytes(name, {0, most});
    value.assign(bytes.size(), '\0');
    std::ranges::transform(bytes, value.begin(), [](std::byte byte) { return static_cast<char>(byte); });
}

void FieldReader::bytes(std::string_view name, std::vector<std::byte>& value, FieldSize size) {
    const std::span<const std::byte> from = take_bytes(name, size);
    value.assign(from.begin(), from.end());
}

void FieldReader::finish() const {
    for (const auto& [name, value] : object_.items()) {
        if (std::ranges::find(taken_, name) == taken_.end()) {
            path_.refuse("has a field '" + shown(name) + "', which is not known");
        }
    }
}

} // namespace vmm
