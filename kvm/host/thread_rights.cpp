#include "kvm/host/thread_rights.hpp"

#include <atomic>

namespace vmm {

namespace {
thread_local constinit bool opens_no_files = false;
constinit std::atomic<void (*)() noexcept> beginning{nullptr};
} // namespace

bool may_open_files() noexcept {
    return !opens_no_files;
}

void note_no_files_in_this_thread() noexcept {
    opens_no_files = true;
}

void set_beginning_of_threads(void (*begin)() noexcept) noexcept {
    beginning.store(begin);
}

void begin_thread() noexcept {
    if (void (*const begin)() noexcept = beginning.load()) {
        begin();
    }
}

} // namespace vmm
