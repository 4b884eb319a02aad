// The features of the processor that a guest is offered (Config::cpu).
#pragma once

#include <cstdint>
#include <span>
#include <string>
#include <string_view>
#include <vector>

#include "kvm/uapi.hpp"
#include "vmm/machine/x86/cpu_features.hpp"

namespace vmm {

/// What Config::cpu says: the base of a guest's features, and the features that are taken away or asked for. It is a
/// value and does not depend on a host.
///
/// Features have the names that Linux gives them in /proc/cpuinfo.
class CpuModel {
  public:
    /// The base of the features.
    enum class Base {
        kHost, ///< all that the host's KVM offers
        kV1,   ///< x86-64, the first level of the x86-64 psABI
        kV2,
        kV3,
        kV4,
    };

    /// Parses "host,-x2apic,-avx512f" or "x86-64-v2,+aes". `nested` says whether the guest may have guests of its own;
    /// without it the guest is offered neither VMX nor SVM. Throws Error for an unknown name, and suggests names that
    /// are near it. Throws Error for a feature that is both asked for and taken away, by itself or with one that it
    /// needs, and for taking away a feature that no guest can do without.
    static CpuModel parse(std::string_view text, bool nested);

    /// Returns `cpuid` without the features that the guest must not see. Features that need a hidden one go with it:
    /// AVX2 with AVX, a part of the processor's state (leaf 0xd) with the instructions that use it. Applying it twice
    /// changes nothing more.
    [[nodiscard]] std::vector<kvm_cpuid_entry2> applied_to(std::vector<kvm_cpuid_entry2> cpuid) const;

    /// Throws Error if `offered` lacks a feature that the model asks for. `offered` is all that a guest of this host
    /// can have.
    void check_offered(std::span<const kvm_cpuid_entry2> offered) const;

  private:
    CpuModel() = default;

    [[nodiscard]] bool hides(std::string_view feature) const;
    /// The bits of a word that a guest may see.
    [[nodiscard]] std::uint32_t mask_of(const CpuidWord& word) const;

    std::string text_;
    Base base_ = Base::kHost;
    bool nested_ = false;
    std::vector<std::string_view> hidden_; ///< the features that are taken away, and all that need them; ascending
    std::vector<std::string_view> kept_;   ///< all features of a base that is a list; ascending
    std::vector<std::string_view> wanted_; ///< features that a host must have; ascending
};

/// The names that a model can begin with: "host", and the levels of x86-64.
[[nodiscard]] std::vector<std::string_view> cpu_base_names();

/// Whether `cpuid` has a feature of this name.
[[nodiscard]] bool has_cpu_feature(std::span<const kvm_cpuid_entry2> cpuid, std::string_view feature);

/// The names of all features that are known, ascending.
[[nodiscard]] std::vector<std::string_view> cpu_feature_names();

} // namespace vmm
