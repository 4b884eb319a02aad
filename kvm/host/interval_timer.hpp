// The name that TimerFd had before.
#pragma once

#include "kvm/host/timer_fd.hpp"

namespace vmm {

using IntervalTimer = TimerFd;

} // namespace vmm
