// For embedding programs: a device raises an interrupt line with it, and one thread wakes another's event loop.
#pragma once

#include "kvm/host/event_fd.hpp"
