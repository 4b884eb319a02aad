// For embedding programs: how a device raises a line, and how one thread wakes another's event loop.
#pragma once

#include "kvm/host/event_fd.hpp"
