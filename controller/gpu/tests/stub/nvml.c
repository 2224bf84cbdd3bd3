/* A libnvidia-ml.so.1 for tests: as much of the real one's interface as is used, on cards that do what a file says.
 * The file is called `state`, stands beside the library and is read at every call: lines of `name value`. A name
 * with a device's index behind it (`lost_1 1`) is for that device only. With -DOLD it is a library of before Hopper. */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

enum { OK = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, INSUFFICIENT = 7, NO_DRIVER = 9,
       TIMEOUT = 10, LOST = 15 };
typedef struct { int index, instance; } Device; /* instance 0: the whole device */
static Device devices[4][8];
static int is_up;
static long xids_told[4];

static long state(const char *name, int index, long otherwise)
{
    Dl_info self;
    char path[4096], line[256], special[64];
    if (!dladdr((void *)state, &self)) return otherwise;
    snprintf(path, sizeof path, "%s", self.dli_fname);
    strcpy(strrchr(path, '/'), "/state");
    snprintf(special, sizeof special, "%s_%d", name, index);
    FILE *file = fopen(path, "r");
    if (!file) return otherwise;
    while (fgets(line, sizeof line, file)) {
        char found[64];
        long value;
        if (sscanf(line, "%63s %ld", found, &value) == 2 && (!strcmp(found, name) || !strcmp(found, special)))
            otherwise = value;
    }
    fclose(file);
    return otherwise;
}

static int answer(Device *device)
{
    while (state("hang", 0, 0)) usleep(10000);
    if (!is_up) return UNINITIALIZED;
    return device && state("lost", device->index, 0) ? LOST : OK;
}
#define ANSWER(device) do { int refused = answer(device); if (refused) return refused; } while (0)
#define WHOLE(device) do { ANSWER(device); if ((device)->instance) return NOT_SUPPORTED; } while (0)

int nvmlInit_v2(void) { if (state("no_driver", 0, 0)) return NO_DRIVER; is_up = 1; return OK; }
int nvmlShutdown(void) { is_up = 0; return OK; }
const char *nvmlErrorString(int error) { (void)error; return "an error"; }
int nvmlSystemGetDriverVersion(char *text, unsigned size) { snprintf(text, size, "580.95.05"); return OK; }
int nvmlDeviceGetCount_v2(unsigned *count) { ANSWER(NULL); *count = state("count", 0, 1); return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device **device)
{
    *device = &devices[index][0];
    (*device)->index = index;
    return answer(*device);
}
int nvmlDeviceGetName(Device *d, char *text, unsigned size) { ANSWER(d); snprintf(text, size, d->instance ? "Stub MIG 3g.40gb" : "Stub H100"); return OK; }
int nvmlDeviceGetUUID(Device *d, char *text, unsigned size) { ANSWER(d); snprintf(text, size, "GPU-%d-%d", d->index, d->instance); return OK; }
int nvmlDeviceGetMigMode(Device *d, unsigned *now, unsigned *pending) { WHOLE(d); *now = *pending = state("mig", d->index, 0); return OK; }
int nvmlDeviceGetUtilizationRates(Device *d, unsigned *shares)
{
    WHOLE(d);
    if (state("mig", d->index, 0)) return NOT_SUPPORTED;
    shares[0] = state("busy", d->index, 37);
    shares[1] = 12;
    return OK;
}
struct memory { unsigned version; unsigned long long total, reserved, free, used; };
int nvmlDeviceGetMemoryInfo_v2(Device *d, struct memory *memory)
{
    ANSWER(d);
    memory->total = d->instance ? 40ull << 30 : 80ull << 30;
    memory->used = state("used_mib", d->index, 1024) << 20;
    memory->reserved = 0;
    memory->free = memory->total - memory->used;
    return OK;
}
int nvmlDeviceGetPowerUsage(Device *d, unsigned *milliwatts) { WHOLE(d); *milliwatts = 71500; return OK; }
int nvmlDeviceGetTemperature(Device *d, int sensor, unsigned *celsius) { (void)sensor; WHOLE(d); *celsius = 41; return OK; }
int nvmlDeviceGetClockInfo(Device *d, int clock, unsigned *mhz) { WHOLE(d); *mhz = clock == 2 ? 2619 : 1980; return OK; }
int nvmlDeviceGetCurrentClocksThrottleReasons(Device *d, unsigned long long *reasons) { WHOLE(d); *reasons = state("reasons", d->index, 1); return OK; }
int nvmlDeviceGetTotalEccErrors(Device *d, int kind, int counter, unsigned long long *count) { (void)counter; WHOLE(d); *count = kind ? 2 : 5; return OK; }
int nvmlDeviceGetPcieThroughput(Device *d, int counter, unsigned *kib) { WHOLE(d); *kib = counter ? 2000 : 1000; return OK; }
struct process { unsigned pid; unsigned long long used; unsigned instance, compute_instance; };
int nvmlDeviceGetComputeRunningProcesses_v3(Device *d, unsigned *count, struct process *processes)
{
    ANSWER(d);
    unsigned pid = state("pid", d->index, 0), room = *count;
    *count = pid != 0;
    if (!pid) return OK;
    if (!processes || room < 1) return INSUFFICIENT;
    processes[0] = (struct process){ pid, 7ull << 20, ~0u, ~0u };
    return OK;
}
/* Only the set of device 0 ever tells something. */
struct event { Device *device; unsigned long long type, data; unsigned instance, compute_instance; };
int nvmlEventSetCreate(long **set) { ANSWER(NULL); *set = calloc(1, sizeof **set); return OK; }
int nvmlEventSetFree(long *set) { free(set); return OK; }
int nvmlDeviceRegisterEvents(Device *d, unsigned long long types, long *set) { WHOLE(d); (void)types; *set = d->index; return OK; }
int nvmlEventSetWait_v2(long *set, struct event *event, unsigned timeout_ms)
{
    (void)timeout_ms;
    ANSWER(NULL);
    if (xids_told[*set] >= state("xids", *set, 0)) return TIMEOUT;
    xids_told[*set]++;
    *event = (struct event){ &devices[*set][0], 8, 79, ~0u, ~0u };
    return OK;
}

#ifndef OLD
int nvmlDeviceGetMaxMigDeviceCount(Device *d, unsigned *count) { WHOLE(d); *count = 3; return OK; }
int nvmlDeviceGetMigDeviceHandleByIndex(Device *d, unsigned slot, Device **instance)
{
    WHOLE(d);
    if (slot == 1) return NOT_FOUND; /* an empty slot between two that are not */
    *instance = &devices[d->index][slot + 3];
    **instance = (Device){ d->index, slot + 3 };
    return OK;
}
int nvmlDeviceGetGpuInstanceId(Device *d, unsigned *id) { ANSWER(d); *id = d->instance; return OK; }
int nvmlGpmSampleAlloc(long **sample) { ANSWER(NULL); *sample = calloc(1, sizeof **sample); return OK; }
int nvmlGpmSampleFree(long *sample) { free(sample); return OK; }
int nvmlGpmSampleGet(Device *d, long *sample) { WHOLE(d); *sample = 40; return OK; }
int nvmlGpmMigSampleGet(Device *d, unsigned id, long *sample) { WHOLE(d); *sample = 10 * id; return OK; }
struct metric { unsigned id; int result; double value; const char *names[3]; };
struct request { unsigned version, count; long *before, *after; struct metric metrics[210]; };
int nvmlGpmMetricsGet(struct request *request)
{
    ANSWER(NULL);
    for (unsigned i = 0; i < request->count; i++) {
        struct metric *metric = &request->metrics[i];
        metric->result = metric->id == 5 ? NOT_SUPPORTED : OK; /* no tensor counter */
        metric->value = metric->id >= 20 ? 3.0 : (double)*request->after;
    }
    return OK;
}
#endif
