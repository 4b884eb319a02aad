// Runs of `vmm bench`: counts, files, and refusals.

#include <gtest/gtest.h>

#include <algorithm>
#include <cstdlib>
#include <map>
#include <nlohmann/json.hpp>

#include "support/kvm_command.hpp"
#include "support/kvm_require.hpp"

namespace vmm::testing {
namespace {

using Json = nlohmann::json;

class Bench : public KvmTest {
  protected:
    /// Checks that the command prints one line of error that names `part`, and measures nothing.
    static void expect_refused(const std::vector<std::string>& arguments, int exit_status, const std::string& part) {
        const CommandResult result = run_command(arguments);
        EXPECT_EQ(result.exit_status, exit_status) << result.errors;
        EXPECT_EQ(result.output, "");
        EXPECT_NE(result.errors.find(part), std::string::npos) << result.errors;
        EXPECT_EQ(std::count(result.errors.begin(), result.errors.end(), '\n'), 1) << result.errors;
    }
    TemporaryDirectory directory_;
    const std::string json_ = directory_ / "a.json";
    const std::string csv_ = directory_ / "a.csv";
};

TEST_F(Bench, CountsFaultsOfEachMethodAndWritesThemDown) {
    // One vCPU, because in emulation two take a minute to replace the 8192 pages of zeros that a reader leaves.
    const CommandResult result =
        run_command({"bench", "--memory", "16M", "--vcpus", "1", "--page-size", "4K", "--prefault", "none,touch,reader",
                     "--runs", "2", "--passes", "2", "--json", json_, "--csv", csv_});
    ASSERT_EQ(result.exit_status, 0) << result.errors << result.output;
    EXPECT_NE(result.output.find("touch against reader: first pass"), std::string::npos) << result.output;

    const Json json = Json::parse(content_of(json_));
    EXPECT_TRUE(json["complete"].get<bool>());
    ASSERT_EQ(json["cells"].size(), 3U);
    for (const Json& cell : json["cells"]) {
        const std::string method = cell["cell"]["prefault"];
        ASSERT_EQ(cell["runs"].size(), 2U) << method;
        for (const Json& run : cell["runs"]) {
            if (method == "touch") {
                EXPECT_EQ(run["faults"], 0);
                EXPECT_GT(run["second_level_seconds"], 0);
            } else {
                EXPECT_GT(run["faults"], 3000) << method << ": of 4096 pages";
            }
            EXPECT_EQ(run["reader_seconds"].is_null(), method != "reader");
            EXPECT_GT(run["first_seconds"], 0);
            EXPECT_GT(run["exits"], 0);
        }
    }
    EXPECT_TRUE(json["harness"]["share"].is_number());

    const std::string csv = content_of(csv_);
    EXPECT_EQ(std::count(csv.begin(), csv.end(), '\n'), 1 + 6) << csv;

    const CommandResult same = run_command({"bench", "compare", json_, json_});
    EXPECT_EQ(same.exit_status, 0) << same.output;
    EXPECT_NE(same.output.find("no change"), std::string::npos) << same.output;

    Json worse = json;
    for (Json& cell : worse["cells"]) {
        for (Json& run : cell["runs"]) {
            run["faults"] = run["faults"].get<double>() + 10'000;
        }
    }
    const CommandResult regression = run_command({"bench", "compare", json_, directory_.write("b", worse.dump())});
    EXPECT_EQ(regression.exit_status, 1) << regression.output;
    EXPECT_NE(regression.output.find("WORSE"), std::string::npos) << regression.output;
}

TEST_F(Bench, SharesOfCellsAreMergedToAWhole) {
    const auto measure = [this](const std::string& share, const std::string& attempt) {
        const std::string path = directory_ / (std::string("share") + share.front() + ".json");
        const CommandResult result =
            run_command({"bench",       "--memory", "16M",        "--vcpus",         "1",      "--workers", "1",
                         "--page-size", "4K",       "--prefault", "none,host,touch", "--runs", "1",         "--passes",
                         "2",           "--cells",  share,        "--attempt",       attempt,  "--json",    path});
        EXPECT_EQ(result.exit_status, 0) << result.errors << result.output;
        const Json json = Json::parse(content_of(path));
        EXPECT_EQ(json["matrix"].size(), 3U);
        EXPECT_FALSE(json["host"]["kernel"].get<std::string>().empty());
        EXPECT_TRUE(json["host"]["microcode"].is_string());
        return path;
    };
    const std::string first = measure("1/2", "1");
    const std::string second = measure("2/2", "2");
    const CommandResult whole = run_command({"bench", "merge", first, second, "--json", json_});
    EXPECT_EQ(whole.exit_status, 0) << whole.errors << whole.output;
    EXPECT_NE(whole.output.find("COMPLETE: every cell was measured"), std::string::npos) << whole.output;
    EXPECT_NE(whole.output.find("RETRIED 4K pages, 16 MiB, 1 vCPU, host, 1 worker"), std::string::npos) << whole.output;
    const Json merged = Json::parse(content_of(json_));
    EXPECT_TRUE(merged["complete"].get<bool>());
    ASSERT_EQ(merged["groups"].size(), 1U);
    EXPECT_EQ(merged["groups"][0]["results"]["cells"].size(), 3U);
    EXPECT_EQ(merged["sources"][1]["attempt"], 2);
    const CommandResult same = run_command({"bench", "compare", json_, json_});
    EXPECT_EQ(same.exit_status, 0) << same.output << same.errors;

    const CommandResult part = run_command({"bench", "merge", first});
    EXPECT_EQ(part.exit_status, 1) << part.output;
    EXPECT_NE(part.output.find("MISSING 4K pages, 16 MiB, 1 vCPU, host, 1 worker"), std::string::npos) << part.output;

    const std::string before = content_of(first);
    expect_refused({"bench", "merge", first, second, "--json", first}, 1, "share1.json");
    EXPECT_EQ(content_of(first), before) << "it is not written over";
    const std::string copy = directory_.write("copy.json", before);
    expect_refused({"bench", "merge", first, copy}, 1, "these are the same results");
    expect_refused({"bench", "merge", first, directory_ / "nothing"}, 1, "No such file");
}

TEST_F(Bench, RefusesAShareThatHasNoCell) {
    expect_refused(
        {"bench", "--memory", "16M", "--page-size", "4K", "--prefault", "none", "--cells", "2/2", "--json", json_}, 1,
        "cannot measure share 2/2 of the cells: the matrix has only 1");
}

TEST_F(Bench, StateMeasuresEveryModeAndCountsNoFaultAfterAFullRestore) {
    const CommandResult result = run_command({"bench", "state", "--memory", "16M", "--page-size", "4K", "--workers",
                                              "1", "--runs", "2", "--clones", "2", "--no-warm", "--json", json_});
    ASSERT_EQ(result.exit_status, 0) << result.errors << result.output;
    EXPECT_NE(result.output.find("at most"), std::string::npos) << result.output;

    const Json json = Json::parse(content_of(json_));
    EXPECT_EQ(json["kind"], "vmm bench state");
    EXPECT_TRUE(json["complete"].get<bool>());
    std::map<std::string, Json> cases;
    for (const Json& each : json["cases"]) {
        const Json& of = each["case"];
        const std::string mode = of["restore_mode"].is_null() ? "" : " " + of["restore_mode"].get<std::string>();
        ASSERT_EQ(each["runs"].size(), 2U) << of;
        cases[of["scenario"].get<std::string>() + mode] = each;
    }
    const auto each_run = [&](const std::string& name, const std::string& figure, auto holds) {
        ASSERT_TRUE(cases.contains(name)) << name;
        for (const Json& run : cases[name]["runs"]) {
            EXPECT_TRUE(run[figure].is_number() && holds(run[figure].get<double>())) << name << ' ' << figure << run;
        }
    };
    const auto is_positive = [](double value) { return value > 0; };
    const auto is_zero = [](double value) { return value == 0; };
    each_run("pause", "late_max_seconds", is_positive);
    each_run("pause", "backward", is_zero);
    each_run("snapshot", "stopped_seconds", is_positive);
    each_run("snapshot", "written_bytes", [](double bytes) { return bytes > 8 << 20; });
    each_run("cold start", "ready_seconds", is_positive);
    each_run("bare read", "read_seconds", is_positive);
    each_run("bare read", "populate_seconds", is_positive);
    each_run("restore full", "ready_seconds", is_positive);
    each_run("restore full", "faults", is_zero);
    each_run("restore full", "backward", is_zero);
    each_run("restore cow", "faults", [](double faults) { return faults >= 400; }); // an eighth of 4096 pages
    each_run("restore cow", "gap_seconds", is_positive);
    each_run("passes full", "first_over_steady", is_positive);
    each_run("passes full", "first_over_rested", is_positive);
    each_run("passes full", "faults", is_zero);
    each_run("clones cow", "ready_most_seconds", is_positive);
    for (const Json& mode : json["settings"]["restore_modes"]) { // Some hosts have no userfaultfd.
        each_run("restore " + mode.get<std::string>(), "late_max_seconds", is_positive);
        each_run("restore " + mode.get<std::string>(), "backward", is_zero);
    }
}

TEST_F(Bench, MigrateLetsAGuestGoOverInEveryModeAndCountsNoFaultWhereItArrives) {
    const CommandResult result = run_command({"bench",       "migrate",  "--memory",  "16M",
                                              "--page-size", "4K",       "--vcpus",   "1",
                                              "--link",      "unix,tcp", "--streams", "1,2",
                                              "--prefault",  "all,none", "--mode",    "idle,worker,writer,local",
                                              "--workers",   "1",        "--runs",    "1",
                                              "--downtime",  "60000",    "--give-up", "600",
                                              "--no-warm",   "--json",   json_});
    ASSERT_EQ(result.exit_status, 0) << result.errors << result.output;
    EXPECT_NE(result.output.find("at most"), std::string::npos) << result.output;

    const Json json = Json::parse(content_of(json_));
    EXPECT_EQ(json["kind"], "vmm bench migrate");
    EXPECT_TRUE(json["complete"].get<bool>());
    ASSERT_EQ(json["cases"].size(), 7U);
    for (const Json& each : json["cases"]) {
        const Json& of = each["case"];
        ASSERT_EQ(each["runs"].size(), 1U) << of;
        const Json& run = each["runs"][0];
        const bool is_full = of["prefault"] == "all";
        const bool is_copied = of["mode"] != "local";
        EXPECT_EQ(run["came_over"], 1) << of;
        EXPECT_GT(run["downtime_seconds"], 0) << of;
        if (is_full) {
            EXPECT_EQ(run["faults_in_first_second"], 0) << of;
            EXPECT_GE(run["mapped_share"], 1) << of;
        } else {
            EXPECT_GE(run["faults_in_first_second"], 50) << of << ": of 512 pages, of which KVM may map eight at once";
        }
        EXPECT_EQ(run["bytes_per_second"].is_number(), is_copied) << of;
        EXPECT_EQ(run["rate_over_bare"].is_number(), is_copied) << of;
        if (is_copied) {
            EXPECT_GT(run["sent_bytes"], 8 << 20) << of << ": the guest has written to all of its pages";
            EXPECT_GE(run["rounds"], 2) << of;
        } else {
            EXPECT_EQ(run["sent_bytes"], 0) << of;
        }
        const bool tells_the_time = of["mode"] != "writer";
        for (const char* const figure :
             {"late_p99_before_seconds", "late_p99_seconds", "gap_seconds", "first_over_steady", "first_over_rested"}) {
            EXPECT_EQ(run[figure].is_number(), tells_the_time) << of << figure;
        }
    }
}

TEST_F(Bench, MigrateSaysThatNothingIsLeftToMeasure) {
    expect_refused({"bench", "migrate", "--mode", "local", "--link", "tcp"}, 1, "unix socket");
    expect_refused({"bench", "migrate", "--memory", "15T"}, 1, "is needed three times");
}

TEST_F(Bench, AnotherVmmIsMeasuredByATemplateAndOneThatFailsIsReported) {
    const std::string template_of_ours = command_under_test() + " run -q {kernel} --cmdline {cmdline} -m {memory_mib}M "
                                                                "-c {vcpus} --page-size {page_size}";
    const CommandResult ours =
        run_command({"bench", "--memory", "16M", "--vcpus", "1", "--page-size", "4K", "--prefault", "touch", "--runs",
                     "1", "--passes", "2", "--against", template_of_ours, "--json", json_});
    ASSERT_EQ(ours.exit_status, 0) << ours.errors << ours.output;
    EXPECT_GT(Json::parse(content_of(json_))["cells"][1]["runs"][0]["first_seconds"], 0);

    const CommandResult failing = run_command({"bench", "--memory", "16M", "--vcpus", "1", "--page-size", "4K",
                                               "--prefault", "touch", "--runs", "2", "--passes", "2", "--no-warm",
                                               "--against", "echo no luck >&2; false {kernel}", "--json", json_});
    EXPECT_EQ(failing.exit_status, 1) << failing.errors;
    EXPECT_NE(failing.output.find("FAILED 4K pages, 16 MiB, 1 vCPU, command"), std::string::npos) << failing.output;
    EXPECT_NE(failing.output.find("no luck"), std::string::npos) << failing.output;
    const Json json = Json::parse(content_of(json_));
    EXPECT_EQ(json["cells"][0]["runs"].size(), 2U) << "the rest goes on";
    EXPECT_FALSE(json["complete"].get<bool>());
}

TEST_F(Bench, AStopWritesWhatIsDone) {
    CommandBeside bench({"bench", "--memory", "16M", "--vcpus", "1", "--page-size", "4K", "--prefault", "touch",
                         "--runs", "1000", "--json", json_});
    ASSERT_TRUE(eventually([&] { return bench.has_child(); }));
    bench.send(SIGINT);
    EXPECT_EQ(bench.wait(), 4) << bench.errors();
    const Json json = Json::parse(content_of(json_));
    EXPECT_FALSE(json["complete"].get<bool>());
    EXPECT_EQ(json["cells"].size(), 1U);
}

TEST_F(Bench, WhatDoesNotFitIsNamedBeforeTheFirstRun) {
    expect_refused({"bench", "--memory", "32M,15T", "--page-size", "4K", "--json", json_}, 1, "4K pages, 15 TiB");
    EXPECT_FALSE(std::filesystem::exists(json_));
    expect_refused({"bench", "rfc", "--full", "--page-size", "thp", "--memory", "15T"}, 1, "32 vCPUs");
}

TEST_F(Bench, OutputsThatCannotBeWrittenAreFoundFirst) {
    expect_refused({"bench", "--json", "/nowhere/a.json"}, 1, "/nowhere/a.json");
    expect_refused({"bench", "--csv", "/nowhere/a.csv"}, 1, "/nowhere/a.csv");
    expect_refused({"bench", "--plot", directory_ / "a.pdf"}, 1, ".svg or .png");
    expect_refused({"bench", "--json", json_, "--csv", json_}, 1, "same file");
    if (command_under_test().find('/') != std::string::npos) { // Otherwise the program itself would not be found.
        const CommandResult result =
            run_command({"bench", "--plot", directory_ / "a.svg"}, [] { ::setenv("PATH", "/nowhere", 1); });
        EXPECT_EQ(result.exit_status, 1);
        EXPECT_NE(result.errors.find("gnuplot-nox"), std::string::npos) << result.errors;
    }
}

TEST_F(Bench, ProgramsThatAreNotThereAreFoundFirst) {
    expect_refused({"bench", "--memory", "16M", "--page-size", "4K", "--against", "qemu", "--qemu", "/nowhere/qemu"}, 1,
                   "/nowhere/qemu");
    expect_refused({"bench", "--memory", "16M", "--page-size", "4K", "--against", "other {image}"}, 1, "{image}");
}

TEST_F(Bench, WordsThatAreNoListsAreUsageErrors) {
    expect_refused({"bench", "--memory", "32M,lots"}, 2, "lots");
    expect_refused({"bench", "--memory", "1M"}, 2, "1M");
    expect_refused({"bench", "--vcpus", "0"}, 2, "0");
    expect_refused({"bench", "--vcpus", "1,255"}, 2, "255");
    expect_refused({"bench", "--prefault", "all"}, 2, "reader");
    expect_refused({"bench", "--page-size", "4K,"}, 2, "thp");
    expect_refused({"bench", "--order", "down"}, 2, "random");
    expect_refused({"bench", "--runs", "0"}, 2, "--runs");
    expect_refused({"bench", "--passes", "1"}, 2, "--passes");
    expect_refused({"bench", "slow"}, 2, "slow");
    expect_refused({"bench", "compare", "/only-one"}, 2, "AFTER");
}

TEST_F(Bench, CompareNamesFilesThatAreNoResults) {
    expect_refused({"bench", "compare", "/nowhere/a", "/nowhere/b"}, 1, "/nowhere/a");
    const std::string text = directory_.write("notes", "no results");
    expect_refused({"bench", "compare", text, text}, 1, "notes");
}

} // namespace
} // namespace vmm::testing
