#include "vmm/state/cbor.hpp"

#include <cstdint>
#include <string>

#include "kvm/host/error.hpp"
#include "kvm/host/format.hpp"

namespace vmm {

namespace {

/// Checks all of the bytes before values are made of them. The parser calls itself for each nested list, and stops if
/// this says so.
class CborBounds final : public nlohmann::json_sax<CborValue> {
  public:
    bool null() override { return count(); }
    bool boolean(bool /*value*/) override { return count(); }
    bool number_integer(std::int64_t /*value*/) override { return count(); }
    bool number_unsigned(std::uint64_t /*value*/) override { return count(); }
    bool number_float(double /*value*/, const std::string& /*text*/) override { return count(); }
    bool string(std::string& /*value*/) override { return count(); }
    bool binary(CborValue::binary_t& /*value*/) override { return count(); }
    bool key(std::string& /*value*/) override { return count(); }
    bool start_object(std::size_t /*elements*/) override { return enter(); }
    bool end_object() override { return leave(); }
    bool start_array(std::size_t /*elements*/) override { return enter(); }
    bool end_array() override { return leave(); }
    bool parse_error(std::size_t /*position*/, const std::string& /*token*/,
                     const CborValue::exception& /*error*/) override {
        return false;
    }

  private:
    static constexpr std::size_t kMostValues = 2'000'000;
    static constexpr std::size_t kMostDepth = 16;

    bool count() { return ++values_ <= kMostValues; }
    bool enter() { return ++depth_ <= kMostDepth && count(); }
    bool leave() {
        --depth_;
        return true;
    }

    std::size_t values_ = 0;
    std::size_t depth_ = 0;
};

} // namespace

std::vector<std::byte> to_cbor(const CborValue& value) {
    std::vector<std::uint8_t> bytes;
    CborValue::to_cbor(value, bytes);
    const auto all = std::as_bytes(std::span(bytes));
    return {all.begin(), all.end()};
}

CborValue from_cbor(std::span<const std::byte> bytes, std::string_view what) {
    // The parser takes numbers for bytes; a byte may be read as either.
    const auto* const first = reinterpret_cast<const std::uint8_t*>(bytes.data());
    const auto* const last = first + bytes.size();
    CborBounds bounds;
    if (CborValue::sax_parse(first, last, &bounds, CborValue::input_format_t::cbor)) {
        CborValue value = CborValue::from_cbor(first, last, /*strict=*/true, /*allow_exceptions=*/false);
        if (!value.is_discarded()) {
            return value;
        }
    }
    throw Error(
        format("cannot use this state: its section '{}' cannot be read as CBOR of a size that a state has (take "
               "a snapshot that is whole)",
               what));
}

} // namespace vmm
