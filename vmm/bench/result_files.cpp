#include "vmm/bench/result_files.hpp"

#include <unistd.h>

#include <utility>

#include "kvm/host/error.hpp"
#include "vmm/output/file_roles.hpp"

namespace vmm::bench {

namespace {

void open(std::unique_ptr<ReportFile>& file, const std::string& path) {
    if (!path.empty()) {
        file = std::make_unique<ReportFile>(path);
    }
}

} // namespace

ResultFiles::ResultFiles(const ResultPaths& paths) {
    FileRoles roles; // This comes before any file is opened for writing.
    roles.add_descriptor("standard output", STDOUT_FILENO);
    roles.add_descriptor("standard error", STDERR_FILENO);
    for (const auto& [role, path] :
         {std::pair("--json", &paths.json), {"--csv", &paths.csv}, {"--plot", &paths.plot}}) {
        if (!path->empty()) {
            roles.add(FileRoles::Use::kWrite, role, *path);
        }
    }
    if (!paths.plot.empty()) {
        format_ = plot_format(paths.plot);
        if (!format_) {
            throw Error("cannot draw the plot to " + paths.plot + ": its name must end in .svg or .png");
        }
        check_gnuplot(*format_);
    }
    open(json_, paths.json);
    open(csv_, paths.csv);
    open(plot_, paths.plot);
}

void ResultFiles::write(const Texts& texts, const WritePatience& patience) {
    if (json_) {
        json_->write(texts.json(), patience);
    }
    if (csv_) {
        csv_->write(texts.csv(), patience);
    }
    if (plot_) {
        if (const std::string script = texts.plot_script(*format_); !script.empty()) {
            plot_->write(draw_plot(script), patience);
        } else {
            print_message("vmm: warning: there is nothing to draw: no run came to its end\n");
        }
    }
}

} // namespace vmm::bench
