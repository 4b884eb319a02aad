// The files for the results of a benchmark.
#pragma once

#include <functional>
#include <memory>
#include <optional>
#include <string>

#include "vmm/bench/plot.hpp"
#include "vmm/output/patient_write.hpp"
#include "vmm/output/report_file.hpp"

namespace vmm::bench {

/// The paths of the files; empty: there is none.
struct ResultPaths {
    std::string json{};
    std::string csv{};
    std::string plot{};
};

/// Construction finds out whether the files can be written, before anything is measured. Threads: one.
class ResultFiles {
  public:
    /// Throws Error if one of them cannot be written, if two are the same, or if there is no gnuplot for the picture.
    explicit ResultFiles(const ResultPaths& paths);

    /// Functions that make the content of the files. A function is called only if there is a file for it.
    struct Texts {
        std::function<std::string()> json;
        std::function<std::string()> csv;                   ///< may be empty if there is no path for it
        std::function<std::string(PlotFormat)> plot_script; ///< returns an empty text if there is nothing to draw
    };
    /// Writes the files. It may be called once. Throws Error.
    void write(const Texts& texts, const WritePatience& patience);

  private:
    std::unique_ptr<ReportFile> json_;
    std::unique_ptr<ReportFile> csv_;
    std::unique_ptr<ReportFile> plot_;
    std::optional<PlotFormat> format_;
};

} // namespace vmm::bench
