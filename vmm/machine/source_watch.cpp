#include "vmm/machine/source_watch.hpp"

#include <cassert>
#include <utility>

namespace vmm {

using devices::virtio::Source;

SourceWatch::SourceWatch(EventLoop& loop, Ready ready) : loop_(loop), ready_(std::move(ready)) {}

void SourceWatch::follow(const std::vector<Source>& wanted) {
    if (wanted == watched_) {
        return;
    }
    for (const Source& source : watched_) {
        loop_.unwatch(source.fd);
    }
    watched_.clear();
    for (const Source& source : wanted) {
        [[maybe_unused]] const bool pollable =
            loop_.watch(source.fd, source.events, [this, fd = source.fd](std::uint32_t events) { ready_(fd, events); });
        assert(pollable); // Device::sources() promises this
        watched_.push_back(source);
    }
}

} // namespace vmm
