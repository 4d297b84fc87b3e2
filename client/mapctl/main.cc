// mapctl: the command-line mapping tool.
#include <iostream>
#include <tuple>

#include "absl/strings/str_cat.h"
#include "client/mapctl/mapctl.h"
#include "daemon/version.h"

int main(int argc, char** argv) {
  using namespace mapbroker::mapctl;
  CLI::App program{"mapctl: maps memory of mapbrokerd's pool, and shows what is mapped"};
  Context context;
  program.set_version_flag("--version", mapbroker::kVersion);
  program.require_subcommand(1);
  program.fallthrough();
  program
      .add_option("--runtime-dir", context.runtime_dir, "directory of the daemon's sockets (default /run/mapbroker)")
      ->envname("MAPBROKER_RUNTIME_DIR")
      ->type_name("DIR");
  CLI::Option* server = program.add_option("--server", context.remote.server, "a daemon that listens on TCP, instead")
                            ->type_name("HOST:PORT");
  for (const auto& [option, value, help] :
       {std::tuple("--tls-ca", &context.remote.ca, "the CA of the server's certificate"),
        std::tuple("--tls-cert", &context.remote.certificate, "your certificate"),
        std::tuple("--tls-key", &context.remote.key, "its key")}) {
    server->needs(program.add_option(option, *value, absl::StrCat(help, ", in PEM"))->type_name("FILE")->needs(server));
  }
  program.add_flag("--json", context.json, "print JSON for programs");
  program.footer("Exit status: 0 done, 1 refused, 2 wrong usage, 3 no daemon.");
  AddDevice(program, context);
  AddExec(program, context);
  AddExplain(program, context);
  AddMap(program, context);
  AddPtrace(program, context);
  AddRam(program, context);
  AddRead(program, context);
  AddMaps(program, context);
  AddScreenshot(program, context);
  AddSession(program, context);
  AddShm(program, context);
  AddStatus(program, context);
  AddReplay(program, context);
  AddTop(program, context);
  AddWatch(program, context);
  AddWho(program, context);
  // What is completed is not to be parsed: it is no whole command.
  if (argc > 1 && argv[1] == std::string("complete")) {
    Complete(program, {argv + 2, argv + argc});
    return kDone;
  }
  try {
    program.parse(argc, argv);
  } catch (const CLI::Success& done) {
    return program.exit(done);
  } catch (const CLI::ParseError& error) {
    std::cerr << "mapctl: " << error.what() << " (see mapctl --help)\n";
    return kUsage;
  }
  return context.exit_status;
}
