#include "vmm/control/events.hpp"

#include <algorithm>
#include <chrono>
#include <utility>

#include <nlohmann/json.hpp>

namespace vmm::control {

using Json = nlohmann::ordered_json;

namespace {

std::string line_of(const Json& event) {
    return event.dump(-1, ' ', false, Json::error_handler_t::replace);
}

} // namespace

void Events::add(std::string_view event) {
    add(event, Json::object());
}

void Events::add(std::string_view event, const Json& details) {
    const std::chrono::duration<double> time = std::chrono::system_clock::now().time_since_epoch();
    const std::lock_guard hold(lock_);
    Json json = {{"sequence", first_ + lines_.size()}, {"time", time.count()}, {"event", event}};
    json.update(details);
    lines_.push_back(line_of(json));
    if (lines_.size() > kMostKept) {
        lines_.pop_front();
        ++first_;
    }
    if (wake_) {
        wake_();
    }
}

Events::Batch Events::from(std::uint64_t first, std::size_t most) const {
    const std::lock_guard hold(lock_);
    Batch batch;
    const std::uint64_t end = first_ + lines_.size();
    batch.next = std::clamp<std::uint64_t>(first, 1, end);
    if (batch.next < first_) {
        batch.lines.push_back(line_of({{"event", "missed"}, {"count", first_ - batch.next}}));
        batch.next = first_;
    }
    for (; batch.next < end && batch.lines.size() < most; ++batch.next) {
        batch.lines.push_back(lines_[batch.next - first_]);
    }
    return batch;
}

std::uint64_t Events::count() const {
    const std::lock_guard hold(lock_);
    return first_ + lines_.size() - 1;
}

void Events::call(std::function<void()> wake) {
    const std::lock_guard hold(lock_);
    wake_ = std::move(wake);
}

} // namespace vmm::control
