// Sources of an sd_event loop as objects: each calls a function with one argument, and is gone with the object.
//
// For the thread of the loop. The function may destroy its own source.
#pragma once

#include <systemd/sd-event.h>
#include <time.h>

#include <cstdint>
#include <memory>

namespace mapbroker {

struct EventSourceCloser {
  void operator()(sd_event_source* source) const { sd_event_source_disable_unref(source); }
};
using EventSource = std::unique_ptr<sd_event_source, EventSourceCloser>;

// Calls Function(at) whenever `fd` has one of `events` (EPOLLIN and so on). Null if it cannot be watched.
template <auto Function, typename T>
EventSource OnEvents(sd_event* loop, int fd, std::uint32_t events, T& at) {
  const auto call = [](sd_event_source*, int, std::uint32_t, void* to) {
    Function(*static_cast<T*>(to));
    return 0;
  };
  sd_event_source* source = nullptr;
  return EventSource(sd_event_add_io(loop, &source, fd, events, call, &at) < 0 ? nullptr : source);
}

// Calls Function(at) once, when so many microseconds have passed. Null if there is no memory.
template <auto Function, typename T>
EventSource After(sd_event* loop, std::uint64_t usec, T& at) {
  const auto call = [](sd_event_source*, std::uint64_t, void* to) {
    Function(*static_cast<T*>(to));
    return 0;
  };
  sd_event_source* source = nullptr;
  return EventSource(sd_event_add_time_relative(loop, &source, CLOCK_MONOTONIC, usec, 0, call, &at) < 0 ? nullptr
                                                                                                        : source);
}

// Calls Function(at) again and again, each time after all others that are ready have had their turn. A source that
// sd_event_add_defer makes would come before them every time. Null if there is no memory.
template <auto Function, typename T>
EventSource InTurns(sd_event* loop, T& at) {
  const auto call = [](sd_event_source* source, std::uint64_t, void* to) {
    sd_event_source_set_time_relative(source, 0);
    sd_event_source_set_enabled(source, SD_EVENT_ONESHOT);
    Function(*static_cast<T*>(to));
    return 0;
  };
  sd_event_source* source = nullptr;
  return EventSource(sd_event_add_time_relative(loop, &source, CLOCK_MONOTONIC, 0, 1, call, &at) < 0 ? nullptr
                                                                                                     : source);
}

}  // namespace mapbroker
