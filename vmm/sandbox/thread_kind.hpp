// The kinds of threads that a guest can reach.
#pragma once

namespace vmm {

/// A thread whose work a guest decides: it runs a vCPU, or serves a device. Each kind has a filter of its own
/// (filters/thread_rules.cpp).
enum class ThreadKind { kVcpu, kBlock, kNet, kVsock, kConsole, kEntropy, kBalloon };

inline constexpr ThreadKind kLastThreadKind = ThreadKind::kBalloon;

} // namespace vmm
