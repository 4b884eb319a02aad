// The members of a value with their names: one description of a structure both writes it and reads it.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <optional>
#include <span>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

#include "vmm/state/cbor.hpp"

namespace vmm {

/// The place of a field, for messages: "vcpus[3].xsave". It is a chain of objects on the stack.
struct FieldPath {
    const FieldPath* parent = nullptr;
    std::string_view name;
    std::optional<std::size_t> index; ///< in a list of this name
    bool is_saving = false;           ///< counts only in the first of the chain

    [[nodiscard]] std::string text() const;
    /// Throws Error, which says that the field cannot have this value, and why.
    [[noreturn]] void refuse(const std::string& why) const;
};

/// The allowed number of bytes or elements.
struct FieldSize {
    std::size_t least = 0;
    std::size_t most = 0;

    /// Throws Error unless `size` is in this range. `what` is for the message: "bytes", for example.
    void check(const FieldPath& path, std::size_t size, std::string_view what) const;
};

/// An integer or an enumeration.
template <typename Value>
concept FieldNumber = (std::is_integral_v<Value> && !std::is_same_v<Value, bool>) || std::is_enum_v<Value>;

namespace detail {

template <typename Value, bool IsEnum = std::is_enum_v<Value>>
struct IntegerOf {
    using Type = Value;
};
template <typename Value>
struct IntegerOf<Value, true> {
    using Type = std::underlying_type_t<Value>;
};

} // namespace detail

template <FieldNumber Value>
using FieldInteger = typename detail::IntegerOf<Value>::Type;

template <FieldNumber Value>
struct FieldRange {
    FieldInteger<Value> least = std::numeric_limits<FieldInteger<Value>>::min();
    FieldInteger<Value> most = std::numeric_limits<FieldInteger<Value>>::max();
};

// FieldWriter and FieldReader have the same members, so that one template describes a structure for both:
//
//     void describe(auto& fields, auto& debug) {
//         fields.numbers("db", debug.db);
//         fields.number("dr6", debug.dr6);
//     }
//
// A structure becomes an object, and each of its fields becomes a member with the field's name. A list of small
// structures, such as pairs, becomes a list of lists (rows()). Writer and reader both check the limits that describe a
// field, and throw Error.

/// The numbers of one row of a table, in their order.
class RowWriter {
  public:
    explicit RowWriter(CborValue& row) : row_(row) {}

    template <FieldNumber Value>
    void number(const Value& value) {
        row_.push_back(static_cast<FieldInteger<Value>>(value));
    }

  private:
    CborValue& row_;
};

class FieldWriter {
  public:
    /// `object` and `path` must outlive it.
    FieldWriter(CborValue& object, const FieldPath& path) : object_(object), path_(path) {
        object_ = CborValue::object();
    }

    template <FieldNumber Value>
    void number(std::string_view name, const Value& value, FieldRange<Value> range = {}) {
        const auto integer = static_cast<FieldInteger<Value>>(value);
        if (integer < range.least || integer > range.most) {
            at(name).refuse("is " + std::to_string(integer) + ", which it cannot be");
        }
        put(name, integer);
    }

    template <FieldNumber Value>
    void number(std::string_view name, const std::optional<Value>& value) {
        if (value) {
            number(name, *value);
        }
    }

    /// Writes a fixed number of values.
    template <typename Array>
    void numbers(std::string_view name, const Array& values) {
        CborValue list = CborValue::array();
        for (const auto& value : values) {
            list.push_back(value);
        }
        put(name, std::move(list));
    }

    void flag(std::string_view name, const bool& value) { put(name, value); }

    void text(std::string_view name, const std::string& value, std::size_t most) {
        FieldSize{0, most}.check(at(name), value.size(), "bytes");
        // CBOR's texts are UTF-8, but a text from elsewhere may have any bytes.
        put(name, binary(std::as_bytes(std::span(value))));
    }

    void bytes(std::string_view name, const std::vector<std::byte>& value, FieldSize size) {
        size.check(at(name), value.size(), "bytes");
        put(name, binary(value));
    }

    /// All bytes of an array of numbers of one byte each.
    template <typename Array>
    void raw(std::string_view name, const Array& values) {
        put(name, binary(std::as_bytes(std::span(values))));
    }

    template <typename Value, typename Describe>
    void object(std::string_view name, const Value& value, Describe describe) {
        const FieldPath path = at(name);
        CborValue inner;
        FieldWriter writer(inner, path);
        describe(writer, value);
        put(name, std::move(inner));
    }

    template <typename Value, typename Describe>
    void object(std::string_view name, const std::optional<Value>& value, Describe describe) {
        if (value) {
            object(name, *value, describe);
        }
    }

    template <typename Value, typename Describe>
    void list(std::string_view name, const std::vector<Value>& values, FieldSize size, Describe describe) {
        size.check(at(name), values.size(), "elements");
        put(name, elements(name, std::span(values), describe));
    }

    /// Writes a fixed number of elements.
    template <typename Value, std::size_t kCount, typename Describe>
    void list(std::string_view name, const Value (&values)[kCount], Describe describe) { // NOLINT(*-avoid-c-arrays)
        put(name, elements(name, std::span(values), describe));
    }

    template <typename Value, typename Describe>
    void rows(std::string_view name, const std::vector<Value>& values, FieldSize size, Describe describe) {
        size.check(at(name), values.size(), "rows");
        rows(name, std::span(values), describe);
    }

    /// Writes a fixed number of rows.
    template <typename Value, std::size_t kExtent, typename Describe>
    void rows(std::string_view name, std::span<Value, kExtent> values, Describe describe) {
        CborValue table = CborValue::array();
        for (const auto& value : values) {
            CborValue row = CborValue::array();
            RowWriter writer(row);
            describe(writer, value);
            table.push_back(std::move(row));
        }
        put(name, std::move(table));
    }

    [[nodiscard]] const FieldPath& path() const noexcept { return path_; }

  private:
    [[nodiscard]] FieldPath at(std::string_view name) const { return {&path_, name, std::nullopt, false}; }
    static CborValue binary(std::span<const std::byte> bytes);
    void put(std::string_view name, CborValue value);

    template <typename Span, typename Describe>
    CborValue elements(std::string_view name, Span values, Describe describe) {
        CborValue list = CborValue::array();
        for (std::size_t i = 0; i < values.size(); ++i) {
            const FieldPath path{&path_, name, i, false};
            CborValue element;
            FieldWriter writer(element, path);
            describe(writer, values[i]);
            list.push_back(std::move(element));
        }
        return list;
    }

    CborValue& object_;
    const FieldPath& path_;
};

namespace detail {

/// Returns `value` as an integer. Throws Error unless it is an integer from `least` to `most`.
std::uint64_t read_unsigned(const CborValue& value, std::uint64_t least, std::uint64_t most, const FieldPath& path);
std::int64_t read_signed(const CborValue& value, std::int64_t least, std::int64_t most, const FieldPath& path);

template <FieldNumber Value>
Value read_number(const CborValue& value, FieldRange<Value> range, const FieldPath& path) {
    if constexpr (std::is_signed_v<FieldInteger<Value>>) {
        return static_cast<Value>(read_signed(value, range.least, range.most, path));
    } else {
        return static_cast<Value>(read_unsigned(value, range.least, range.most, path));
    }
}

} // namespace detail

class RowReader {
  public:
    RowReader(const CborValue& row, const FieldPath& path);

    template <FieldNumber Value>
    void number(Value& value) {
        value = detail::read_number<Value>(next(), {}, path_);
    }
    /// Throws Error if the row has more numbers.
    void finish() const;

  private:
    const CborValue& next();

    const CborValue& row_;
    const FieldPath& path_;
    std::size_t taken_ = 0;
};

class FieldReader {
  public:
    /// `object` and `path` must outlive it. Throws Error if `object` is no object.
    FieldReader(const CborValue& object, const FieldPath& path);

    template <FieldNumber Value>
    void number(std::string_view name, Value& value, FieldRange<Value> range = {}) {
        value = detail::read_number<Value>(take(name), range, at(name));
    }

    template <FieldNumber Value>
    void number(std::string_view name, std::optional<Value>& value) {
        value.reset();
        if (const CborValue* found = find(name)) {
            value = detail::read_number<Value>(*found, {}, at(name));
        }
    }

    template <typename Array>
    void numbers(std::string_view name, Array& values) {
        const CborValue& list = take_list(name, {std::size(values), std::size(values)});
        for (std::size_t i = 0; i < std::size(values); ++i) {
            using Value = std::remove_reference_t<decltype(values[i])>;
            values[i] = detail::read_number<Value>(list[i], {}, at(name));
        }
    }

    void flag(std::string_view name, bool& value);
    void text(std::string_view name, std::string& value, std::size_t most);
    void bytes(std::string_view name, std::vector<std::byte>& value, FieldSize size);

    template <typename Array>
    void raw(std::string_view name, Array& values) {
        const std::span<const std::byte> from = take_bytes(name, {sizeof values, sizeof values});
        std::ranges::copy(from, std::as_writable_bytes(std::span(values)).begin());
    }

    template <typename Value, typename Describe>
    void object(std::string_view name, Value& value, Describe describe) {
        read_object(take(name), at(name), value, describe);
    }

    template <typename Value, typename Describe>
    void object(std::string_view name, std::optional<Value>& value, Describe describe) {
        value.reset();
        if (const CborValue* found = find(name)) {
            read_object(*found, at(name), value.emplace(), describe);
        }
    }

    template <typename Value, typename Describe>
    void list(std::string_view name, std::vector<Value>& values, FieldSize size, Describe describe) {
        const CborValue& list = take_list(name, size);
        values.clear();
        values.resize(list.size());
        read_elements(name, list, std::span(values), describe);
    }

    template <typename Value, std::size_t kCount, typename Describe>
    void list(std::string_view name, Value (&values)[kCount], Describe describe) { // NOLINT(*-avoid-c-arrays)
        read_elements(name, take_list(name, {kCount, kCount}), std::span(values), describe);
    }

    template <typename Value, typename Describe>
    void rows(std::string_view name, std::vector<Value>& values, FieldSize size, Describe describe) {
        const CborValue& table = take_list(name, size);
        values.clear();
        values.resize(table.size());
        read_rows(name, table, std::span(values), describe);
    }

    template <typename Value, std::size_t kExtent, typename Describe>
    void rows(std::string_view name, std::span<Value, kExtent> values, Describe describe) {
        read_rows(name, take_list(name, {values.size(), values.size()}), values, describe);
    }

    /// Throws Error if there is a field that nobody asked for.
    void finish() const;

    [[nodiscard]] const FieldPath& path() const noexcept { return path_; }

  private:
    [[nodiscard]] FieldPath at(std::string_view name) const { return {&path_, name, std::nullopt, false}; }
    const CborValue* find(std::string_view name);
    const CborValue& take(std::string_view name);
    const CborValue& take_list(std::string_view name, FieldSize size);
    std::span<const std::byte> take_bytes(std::string_view name, FieldSize size);

    template <typename Value, typename Describe>
    static void read_object(const CborValue& from, const FieldPath& path, Value& value, Describe describe) {
        FieldReader reader(from, path);
        describe(reader, value);
        reader.finish();
    }

    template <typename Span, typename Describe>
    void read_elements(std::string_view name, const CborValue& list, Span values, Describe describe) {
        for (std::size_t i = 0; i < values.size(); ++i) {
            read_object(list[i], {&path_, name, i, false}, values[i], describe);
        }
    }

    template <typename Span, typename Describe>
    void read_rows(std::string_view name, const CborValue& table, Span values, Describe describe) {
        for (std::size_t i = 0; i < values.size(); ++i) {
            const FieldPath path{&path_, name, i, false};
            RowReader row(table[i], path);
            describe(row, values[i]);
            row.finish();
        }
    }

    const CborValue& object_;
    const FieldPath& path_;
    std::vector<std::string_view> taken_;
};

} // namespace vmm
