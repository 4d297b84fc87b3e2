// mapctl top: the sessions that hold or do the most, live.
#include <poll.h>
#include <signal.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <iostream>
#include <map>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>
#include <vector>

#include "absl/strings/str_cat.h"
#include "absl/strings/str_format.h"
#include "absl/time/clock.h"
#include "absl/time/time.h"
#include "client/mapctl/mapctl.h"

namespace mapbroker::mapctl {
namespace {

struct Options {
  double interval = 2;  // seconds
  std::string sort = "mapped";
  bool once = false;
};

struct Line {
  SessionRow row;
  double rate = 0;  // calls a second since the sample before
};

struct Sample {
  DaemonStatus status;
  std::vector<Line> lines;
  std::chrono::steady_clock::time_point at;
};

volatile sig_atomic_t interrupted = 0;

// The terminal, as it was before when this is gone.
class Screen {
 public:
  Screen() {
    tcgetattr(STDIN_FILENO, &before_);
    termios keys = before_;
    keys.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
    tcsetattr(STDIN_FILENO, TCSANOW, &keys);
    Write("\x1b[?1049h\x1b[?25l");  // the other screen, without a cursor
    struct sigaction interrupt {};
    interrupt.sa_handler = [](int) { interrupted = 1; };
    struct sigaction resize {};
    resize.sa_handler = [](int) {};  // it is drawn anew
    for (const int signal : {SIGINT, SIGTERM, SIGHUP, SIGQUIT}) sigaction(signal, &interrupt, nullptr);
    sigaction(SIGWINCH, &resize, nullptr);
  }
  ~Screen() {
    Write("\x1b[?25h\x1b[?1049l");
    tcsetattr(STDIN_FILENO, TCSANOW, &before_);
  }
  Screen(const Screen&) = delete;
  Screen& operator=(const Screen&) = delete;

  // What fits of them, over what was there.
  void Draw(const std::vector<std::string>& lines) {
    winsize size{};
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0 || size.ws_row == 0) size = {24, 80, 0, 0};
    std::string frame = "\x1b[H";
    const std::size_t fit = std::min<std::size_t>(lines.size(), size.ws_row);
    for (std::size_t i = 0; i < fit; ++i) {
      absl::StrAppend(&frame, i == 0 ? "" : "\r\n", lines[i].substr(0, size.ws_col), "\x1b[K");
    }
    Write(frame + "\x1b[J");
  }

  // False: it is to end, by q or a signal. A key or a change of the window's size ends the wait.
  bool Wait(std::chrono::milliseconds time) {
    pollfd keyboard{.fd = STDIN_FILENO, .events = POLLIN, .revents = 0};
    const int ready = poll(&keyboard, 1, static_cast<int>(time.count()));
    char key = 0;
    // The terminal has gone, too, if there is nothing to read.
    if (ready > 0 && (read(STDIN_FILENO, &key, 1) != 1 || key == 'q')) return false;
    return interrupted == 0;
  }

 private:
  static void Write(const std::string& text) { WriteAll(STDOUT_FILENO, std::as_bytes(std::span(text))).IgnoreError(); }

  termios before_{};
};

absl::StatusOr<Sample> Take(Inspector& inspector, const Options& options, const Sample* before) {
  absl::StatusOr<DaemonStatus> status = inspector.Status();
  if (!status.ok()) return status.status();
  Sample sample{.status = *std::move(status), .lines = {}, .at = std::chrono::steady_clock::now()};
  std::map<std::uint64_t, std::uint64_t> calls_before;
  double seconds = 0;
  if (before != nullptr) {
    for (const Line& line : before->lines) calls_before[line.row.session] = line.row.calls;
    seconds = std::chrono::duration<double>(sample.at - before->at).count();
  }
  const absl::Status listed = inspector.ListSessions([&](const SessionRow& row) {
    Line& line = sample.lines.emplace_back(Line{.row = row});
    const auto known = calls_before.find(row.session);
    // A daemon that was started anew counts anew.
    if (known != calls_before.end() && row.calls >= known->second && seconds > 0) {
      line.rate = static_cast<double>(row.calls - known->second) / seconds;
    }
    return true;
  });
  if (!listed.ok()) return listed;
  std::stable_sort(sample.lines.begin(), sample.lines.end(), [&](const Line& a, const Line& b) {
    if (options.sort == "rate") return a.rate > b.rate;
    return options.sort == "mappings" ? a.row.mappings > b.row.mappings : a.row.mapped > b.row.mapped;
  });
  return sample;
}

std::vector<std::string> Frame(const Sample& sample, bool live) {
  const DaemonStatus& now = sample.status;
  const PoolStatistics& pool = now.pool;
  std::vector<std::string> lines;
  lines.push_back(absl::StrCat("mapbrokerd ", now.version, ", profile ", pool.profile, ", up ",
                               absl::FormatDuration(absl::Trunc(absl::FromChrono(now.uptime), absl::Seconds(1))), "  ",
                               absl::FormatTime("%H:%M:%S", absl::Now(), absl::LocalTimeZone()),
                               live ? "  (q ends)" : ""));
  lines.push_back(absl::StrCat("pool ", HumanBytes(pool.pool_size), ": ", HumanBytes(pool.used), " used, ",
                               HumanBytes(pool.free), " free, ", HumanBytes(pool.scrubbing),
                               " being scrubbed, largest run ", HumanBytes(pool.largest_free_run)));
  lines.push_back(absl::StrCat(pool.sessions, " sessions, ", pool.mappings, " mappings of ", pool.regions, " regions, ",
                               HumanBytes(pool.saved_by_sharing), " saved by sharing, ", now.refused_total,
                               " calls refused", now.ledger.failing ? ", THE LEDGER CANNOT BE WRITTEN" : ""));
  lines.emplace_back();
  lines.push_back(absl::StrFormat("%7s %7s %7s %12s %9s %6s %9s %9s  %s", "SESSION", "PID", "UID", "MAPPED", "MAPPINGS",
                                  "FILES", "CALLS", "CALLS/S", "COMMAND"));
  for (const auto& [row, rate] : sample.lines) {
    lines.push_back(absl::StrCat(
        absl::StrFormat("%7d %7d %7d %12s %9d %6d %9d %9s  ", row.session, row.pid, row.uid, HumanBytes(row.mapped),
                        row.mappings, row.files, row.calls, live ? absl::StrFormat("%.1f", rate) : "-"),
        Printable(row.command), Marks(row)));
  }
  return lines;
}

absl::Status Live(Inspector& inspector, const Options& options) {
  if (!isatty(STDOUT_FILENO) || !isatty(STDIN_FILENO)) {
    return absl::FailedPreconditionError("top draws on a terminal: give --once, or use `mapctl session ls`");
  }
  const std::chrono::milliseconds interval(static_cast<std::int64_t>(options.interval * 1000));
  absl::StatusOr<Sample> sample = Take(inspector, options, nullptr);
  if (!sample.ok()) return sample.status();
  Screen screen;
  for (;;) {
    screen.Draw(Frame(*sample, /*live=*/true));
    if (!screen.Wait(interval)) return absl::OkStatus();
    absl::StatusOr<Sample> next = Take(inspector, options, &*sample);
    if (!next.ok()) return next.status();
    sample = *std::move(next);
  }
}

absl::Status Top(const Options& options, const Context& context) {
  absl::StatusOr<Inspector> inspector = context.Inspect();
  if (!inspector.ok()) return inspector.status();
  if (!options.once && !context.json) return Live(*inspector, options);
  const absl::StatusOr<Sample> sample = Take(*inspector, options, nullptr);
  if (!sample.ok()) return sample.status();
  if (context.json) {
    nlohmann::json sessions = nlohmann::json::array();
    for (const Line& line : sample->lines) sessions.push_back(Object(line.row));
    std::cout << sessions.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) << '\n';
    return absl::OkStatus();
  }
  for (const std::string& line : Frame(*sample, /*live=*/false)) std::cout << line << '\n';
  return absl::OkStatus();
}

}  // namespace

void AddTop(CLI::App& program, Context& context) {
  const auto options = std::make_shared<Options>();
  CLI::App* top = program.add_subcommand("top", "show the sessions that hold or do the most, until q is pressed");
  top->add_option("--interval", options->interval, "seconds between two looks, 2 unless given")
      ->check(CLI::Range(0.1, 3600.0));
  top->add_option("--sort", options->sort, "by mapped (default), mappings or rate")
      ->check(CLI::IsMember({"mapped", "mappings", "rate"}));
  top->add_flag("--once", options->once, "print it once, as it does with --json");
  top->callback([options, &context] { context.exit_status = Report(Top(*options, context)); });
}

}  // namespace mapbroker::mapctl
