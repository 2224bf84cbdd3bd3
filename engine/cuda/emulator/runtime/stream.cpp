// Streams, events and graphs. Work is a queue of operations for each stream. By default an operation runs as it is submitted;
// deferred, it runs when something waits for it, streams interleaved by a seed: what a missing wait or a buffer given up
// too early does on a GPU shows here.
#include "api.hpp"
#include <chrono>
#include <deque>
#include <memory>
#include <random>
#include <set>

namespace emu {
struct Graph {
    std::vector<Operation> operations;
};
struct Stream {
    std::deque<Operation> queue;
    bool waits_for_default = true;
    std::shared_ptr<Graph> capture;
    /// Where the capture began; other streams join it by waiting for its events.
    Stream* origin = nullptr;
    bool invalidated = false;
};
struct Event {
    Stream* stream = nullptr;
    uint64_t recorded = 0, done = 0;
    double at_ms = 0;
    std::shared_ptr<Graph> capture;
    Stream* origin = nullptr;
};

namespace {
constexpr int ILLEGAL_STATE = 401, CAPTURE_ISOLATION = 905, CAPTURE_IMPLICIT = 906;
std::set<Stream*> streams;
std::set<Event*> events;
std::set<std::shared_ptr<Graph>*> graphs;
Stream default_stream;
bool deferred = false;
std::mt19937_64 interleaving;

Stream* find(void* handle) {
    // 1 and 2 are the names of the default stream, for all and for each thread.
    if (uintptr_t(handle) <= 2) return &default_stream;
    auto* stream = static_cast<Stream*>(handle);
    return streams.count(stream) ? stream : nullptr;
}
int run_next(Stream& stream) {
    Operation next = std::move(stream.queue.front());
    stream.queue.pop_front();
    return stick(next());
}
/// Perhaps lets another stream go first.
int run_some_other(Stream& stream) {
    for (Stream* other : streams) {
        if (other == &stream || other->queue.empty() || interleaving() % 2) continue;
        if (const int error = run_next(*other)) return error;
    }
    return SUCCESS;
}
int drain_stream(Stream& stream) {
    while (!stream.queue.empty()) {
        if (const int error = run_some_other(stream)) return error;
        // Another stream's wait may have run it already.
        if (stream.queue.empty()) break;
        if (const int error = run_next(stream)) return error;
    }
    return settings.sticky;
}
int until_done(Event& event, uint64_t record) {
    while (event.done < record && event.stream && !event.stream->queue.empty()) {
        if (const int error = run_next(*event.stream)) return error;
    }
    return SUCCESS;
}
double now_ms() {
    const auto since = std::chrono::steady_clock::now().time_since_epoch();
    return std::chrono::duration<double, std::milli>(since).count();
}
int invalidate(Stream& stream) {
    stream.invalidated = true;
    if (stream.origin) stream.origin->invalidated = true;
    return CAPTURE_UNSUPPORTED;
}
int put(Stream& stream, Operation operation) {
    if (stream.capture) {
        if (stream.invalidated) return CAPTURE_INVALIDATED;
        stream.capture->operations.push_back(std::move(operation));
        return SUCCESS;
    }
    stream.queue.push_back(std::move(operation));
    return deferred && &stream != &default_stream ? SUCCESS : drain_stream(stream);
}
}  // namespace

int submit(void* handle, Operation operation) {
    Stream* stream = find(handle);
    if (!stream) return INVALID_HANDLE;
    if (stream == &default_stream) {
        for (Stream* other : streams) {
            if (!other->waits_for_default) continue;
            if (other->capture) return invalidate(*other), CAPTURE_IMPLICIT;
            if (const int error = drain_stream(*other)) return error;
        }
    }
    return put(*stream, std::move(operation));
}
int drain(void* handle) {
    Stream* stream = find(handle);
    if (!stream) return INVALID_HANDLE;
    if (stream->capture) return invalidate(*stream);
    return stream == &default_stream ? drain_all() : drain_stream(*stream);
}
int drain_all() {
    for (Stream* stream : streams) {
        if (stream->capture) continue;
        if (const int error = drain_stream(*stream)) return error;
    }
    return drain_stream(default_stream);
}
bool is_capturing(void* handle) {
    Stream* stream = find(handle);
    return stream && stream->capture;
}
bool is_any_capturing() {
    for (Stream* stream : streams) {
        if (stream->capture) return true;
    }
    return false;
}
void forget_streams() {
    for (Stream* stream : streams) delete stream;
    for (Event* event : events) delete event;
    for (auto* graph : graphs) delete graph;
    streams.clear();
    events.clear();
    graphs.clear();
    default_stream = Stream{};
}
void set_submission(bool is_deferred, uint64_t seed) {
    deferred = is_deferred;
    interleaving.seed(seed);
}

API cuStreamCreate(void** out, unsigned flags) {
    const Guarded guard;
    if (guard.error) return guard.error;
    auto* stream = new Stream;
    stream->waits_for_default = !(flags & 1);
    streams.insert(stream);
    *out = stream;
    return SUCCESS;
}
API cuStreamCreateWithPriority(void** out, unsigned flags, int) { return cuStreamCreate(out, flags); }
API cuStreamDestroy_v2(void* handle) {
    const Guarded guard;
    Stream* stream = find(handle);
    if (!stream || stream == &default_stream) return INVALID_HANDLE;
    // What is queued is still done, as CUDA promises; a lost device does nothing more.
    if (!settings.sticky) drain_stream(*stream);
    for (Event* event : events) {
        if (event->stream == stream) event->stream = nullptr;
    }
    streams.erase(stream);
    delete stream;
    return guard.error;
}
API cuStreamSynchronize(void* handle) {
    const Guarded guard;
    if (guard.error) return guard.error;
    counters.synchronisations++;
    return drain(handle);
}
API cuStreamQuery(void* handle) {
    const Guarded guard;
    if (guard.error) return guard.error;
    Stream* stream = find(handle);
    if (!stream) return INVALID_HANDLE;
    if (stream->capture) return invalidate(*stream);
    if (stream->queue.empty()) return SUCCESS;
    // A program that only ever asks makes progress too.
    const int error = run_next(*stream);
    return error ? error : stream->queue.empty() ? SUCCESS : NOT_READY;
}
API cuStreamWaitEvent(void* handle, void* waited, unsigned) {
    const Guarded guard;
    if (guard.error) return guard.error;
    Stream* stream = find(handle);
    auto* event = static_cast<Event*>(waited);
    if (!stream || !events.count(event)) return INVALID_HANDLE;
    if (event->capture) {
        if (stream->capture && stream->capture != event->capture) return CAPTURE_ISOLATION;
        stream->capture = event->capture;
        stream->origin = event->origin;
        return SUCCESS;
    }
    if (stream->capture) return event->recorded ? CAPTURE_ISOLATION : SUCCESS;
    const uint64_t record = event->recorded;
    return put(*stream, [event, record] { return events.count(event) ? until_done(*event, record) : SUCCESS; });
}
API cuLaunchHostFunc(void* handle, void (*function)(void*), void* data) {
    const Guarded guard;
    if (guard.error) return guard.error;
    return submit(handle, [function, data] {
        function(data);
        return SUCCESS;
    });
}

API cuEventCreate(void** out, unsigned) {
    const Guarded guard;
    if (guard.error) return guard.error;
    auto* event = new Event;
    events.insert(event);
    *out = event;
    return SUCCESS;
}
API cuEventDestroy_v2(void* handle) {
    const Guarded guard;
    auto* event = static_cast<Event*>(handle);
    if (!events.count(event)) return INVALID_HANDLE;
    // Records and waits that are queued still refer to it.
    if (!settings.sticky) until_done(*event, event->recorded);
    events.erase(event);
    delete event;
    return guard.error;
}
API cuEventRecord(void* handle, void* in) {
    const Guarded guard;
    if (guard.error) return guard.error;
    auto* event = static_cast<Event*>(handle);
    Stream* stream = find(in);
    if (!stream || !events.count(event)) return INVALID_HANDLE;
    event->capture = stream->capture;
    event->origin = stream->origin;
    if (stream->capture) return SUCCESS;
    event->stream = stream;
    const uint64_t record = ++event->recorded;
    return put(*stream, [event, record] {
        if (!events.count(event)) return SUCCESS;
        event->done = record;
        event->at_ms = now_ms();
        return SUCCESS;
    });
}
API cuEventQuery(void* handle) {
    const Guarded guard;
    if (guard.error) return guard.error;
    auto* event = static_cast<Event*>(handle);
    if (!events.count(event)) return INVALID_HANDLE;
    if (event->capture) return CAPTURE_UNSUPPORTED;
    if (event->done < event->recorded && event->stream && !event->stream->queue.empty()) {
        if (const int error = run_next(*event->stream)) return error;
    }
    return event->done < event->recorded ? NOT_READY : SUCCESS;
}
API cuEventSynchronize(void* handle) {
    const Guarded guard;
    if (guard.error) return guard.error;
    auto* event = static_cast<Event*>(handle);
    if (!events.count(event)) return INVALID_HANDLE;
    if (event->capture) return CAPTURE_UNSUPPORTED;
    counters.synchronisations++;
    return until_done(*event, event->recorded);
}
API cuEventElapsedTime_v2(float* out, void* first, void* second) {
    const Guarded guard;
    if (guard.error) return guard.error;
    auto *from = static_cast<Event*>(first), *to = static_cast<Event*>(second);
    if (!out || !events.count(from) || !events.count(to) || !from->recorded || !to->recorded) return INVALID_HANDLE;
    if (from->done < from->recorded || to->done < to->recorded) return NOT_READY;
    *out = float(to->at_ms - from->at_ms);
    return SUCCESS;
}
API cuEventElapsedTime(float* out, void* first, void* second) { return cuEventElapsedTime_v2(out, first, second); }

API cuStreamBeginCapture_v2(void* handle, int) {
    const Guarded guard;
    if (guard.error) return guard.error;
    Stream* stream = find(handle);
    if (!stream) return INVALID_HANDLE;
    if (stream == &default_stream) return CAPTURE_UNSUPPORTED;
    if (stream->capture) return ILLEGAL_STATE;
    stream->capture = std::make_shared<Graph>();
    stream->origin = stream;
    stream->invalidated = false;
    return SUCCESS;
}
API cuStreamIsCapturing(void* handle, int* out) {
    const Guarded guard;
    if (guard.error) return guard.error;
    Stream* stream = find(handle);
    if (!stream) return INVALID_HANDLE;
    *out = stream->capture ? stream->invalidated ? 2 : 1 : 0;
    return SUCCESS;
}
API cuStreamEndCapture(void* handle, void** out) {
    const Guarded guard;
    if (guard.error) return guard.error;
    Stream* stream = find(handle);
    if (!stream || !stream->capture) return ILLEGAL_STATE;
    if (stream->origin != stream) return CAPTURE_UNMATCHED;
    const std::shared_ptr<Graph> capture = std::move(stream->capture);
    for (Stream* other : streams) {
        if (other->capture == capture) other->capture = nullptr;
    }
    stream->origin = nullptr;
    *out = nullptr;
    if (stream->invalidated) return CAPTURE_INVALIDATED;
    *out = *graphs.insert(new std::shared_ptr<Graph>(capture)).first;
    return SUCCESS;
}
API cuGraphInstantiateWithFlags(void** out, void* handle, unsigned long long) {
    const Guarded guard;
    if (guard.error) return guard.error;
    auto* graph = static_cast<std::shared_ptr<Graph>*>(handle);
    if (!out || !graphs.count(graph)) return INVALID_HANDLE;
    *out = *graphs.insert(new std::shared_ptr<Graph>(std::make_shared<Graph>(**graph))).first;
    return SUCCESS;
}
API cuGraphUpload(void* handle, void*) {
    const Guarded guard;
    if (guard.error) return guard.error;
    return graphs.count(static_cast<std::shared_ptr<Graph>*>(handle)) ? SUCCESS : INVALID_HANDLE;
}
API cuGraphLaunch(void* handle, void* in) {
    const Guarded guard;
    if (guard.error) return guard.error;
    auto* graph = static_cast<std::shared_ptr<Graph>*>(handle);
    if (!graphs.count(graph)) return INVALID_HANDLE;
    counters.graph_launches++;
    return submit(in, [kept = *graph] {
        for (const Operation& operation : kept->operations) {
            if (const int error = operation()) return error;
        }
        return int(SUCCESS);
    });
}
API cuGraphDestroy(void* handle) {
    const Guarded guard;
    auto* graph = static_cast<std::shared_ptr<Graph>*>(handle);
    if (!graphs.erase(graph)) return INVALID_HANDLE;
    delete graph;
    return SUCCESS;
}
API cuGraphExecDestroy(void* handle) { return cuGraphDestroy(handle); }
}  // namespace emu
