// The files that the results of a benchmark go to.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "vmm/bench/plot.hpp"
#include "vmm/output/patient_write.hpp"
#include "vmm/output/report_file.hpp"

namespace vmm::bench {

/// Their paths; empty: none.
struct ResultPaths {
    std::string json{};
    std::string csv{};
    std::string plot{};
};

/// Construction finds out whether they can be written, before anything is measured. Threads: one.
class ResultFiles {
  public:
    /// Throws Error: one of them cannot be written, two are the same, or there is no gnuplot for the picture.
    explicit ResultFiles(const ResultPaths& paths);

    /// What the files are to have. Only what has a file is made.
    struct Texts {
        std::function<std::string()> json;
        std::function<std::string()> csv;                   ///< may be empty if there is no path for it
        std::function<std::string(PlotFormat)> plot_script; ///< gives an empty text if there is nothing to draw
    };
    /// Once. Throws Error.
    void write(const Texts& texts, const WritePatience& patience);

  private:
    std::unique_ptr<ReportFile> json_;
    std::unique_ptr<ReportFile> csv_;
    std::unique_ptr<ReportFile> plot_;
    std::optional<PlotFormat> format_;
};

} // namespace vmm::bench
