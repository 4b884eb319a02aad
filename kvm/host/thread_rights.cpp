#include "kvm/host/thread_rights.hpp"

namespace vmm {

namespace {
thread_local constinit bool opens_no_files = false;
} // namespace

bool may_open_files() noexcept {
    return !opens_no_files;
}

void note_no_files_in_this_thread() noexcept {
    opens_no_files = true;
}

} // namespace vmm
