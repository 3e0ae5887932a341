/* A stand-in for NVIDIA's libnvidia-ml: the calls and structures that nvidia-ml-py uses, answered from tables that the
 * test fills in. Built with -DOLD_DRIVER it lacks what drivers of 2020 lacked.
 *
 * A handle is a number (start, device, MIG slice), never a pointer; one of an earlier start is counted as misuse. */

#include <stdlib.h>
#include <string.h>
#include <unistd.h>

typedef unsigned int uint;
typedef unsigned long long u64;

enum { SUCCESS = 0, UNINITIALIZED = 1, INVALID = 2, NOT_SUPPORTED = 3, NOT_FOUND = 6, TOO_SMALL = 7, LOST = 15 };
enum { DEVICES = 8, PROCESSES = 64, SLICES = 7 };

typedef struct { uint pid; uint is_graphics; u64 used; } Process;

typedef struct {
  u64 total, used, reserved;
  u64 reasons, ecc, pcie_received, pcie_sent;
  char name[96], uuid[80], bus[32];
  uint gpu_percent, memory_percent, encoder_percent;
  uint power_milliwatts, limit_milliwatts, celsius, sm_mhz, memory_mhz;
  uint throughput_kib, process_count, slice_count, is_lost;
  Process processes[PROCESSES];
} Device;

/* `error` is returned, after `delay_ms` and once `hangs` is 0 again; `device` -1 means for every device. */
typedef struct { char name[64]; int error, delay_ms, device; volatile int hangs, count; } Call;

uint fake_device_count = 1;
Device fake_devices[DEVICES];
volatile int fake_start = 0, fake_is_started = 0, fake_misuses = 0;

/* For processes that no test can reach into: as many plain GPUs as FAKE_NVML_GPUS says. */
__attribute__((constructor)) static void fill(void) {
  const char *count = getenv("FAKE_NVML_GPUS");
  fake_device_count = count ? (uint)atoi(count) : 1;
  for (uint i = 0; i < DEVICES; i++) {
    Device *d = &fake_devices[i];
    d->total = 24ull << 30;
    d->used = 6ull << 30;
    strcpy(d->name, "NVIDIA stand-in");
    strcpy(d->uuid, "GPU-0000-0");
    d->uuid[9] = (char)('0' + i);
    strcpy(d->bus, "00000000:01:00.0");
  }
}

#define CALLS(X) X(nvmlInitWithFlags) X(nvmlShutdown) X(nvmlSystemGetDriverVersion) X(nvmlDeviceGetCount_v2) \
  X(nvmlDeviceGetHandleByIndex_v2) X(nvmlDeviceGetName) X(nvmlDeviceGetUUID) X(nvmlDeviceGetPciInfo_v3) \
  X(nvmlDeviceGetMemoryInfo) X(nvmlDeviceGetMemoryInfo_v2) X(nvmlDeviceGetUtilizationRates) \
  X(nvmlDeviceGetEncoderUtilization) X(nvmlDeviceGetPowerUsage) X(nvmlDeviceGetEnforcedPowerLimit) \
  X(nvmlDeviceGetTemperatureV) X(nvmlDeviceGetTemperature) X(nvmlDeviceGetClockInfo) \
  X(nvmlDeviceGetCurrentClocksEventReasons) X(nvmlDeviceGetTotalEccErrors) \
  X(nvmlDeviceGetComputeRunningProcesses_v3) X(nvmlDeviceGetGraphicsRunningProcesses_v3) \
  X(nvmlDeviceGetFieldValues) X(nvmlDeviceGetPcieThroughput) X(nvmlDeviceGetMigMode) \
  X(nvmlDeviceGetMaxMigDeviceCount) X(nvmlDeviceGetMigDeviceHandleByIndex)

#define ID(name) ID_##name,
enum { CALLS(ID) CALL_COUNT };
#define ROW(name) {#name, 0, 0, -1, 0, 0},
Call fake_calls[] = {CALLS(ROW)};
const int fake_call_count = CALL_COUNT;

static int enter(int id, int device) {
  Call *call = &fake_calls[id];
  __sync_fetch_and_add(&call->count, 1);
  if (call->device >= 0 && call->device != device) return SUCCESS;
  while (call->hangs) usleep(1000);
  if (call->delay_ms) usleep(1000 * call->delay_ms);
  return call->error;
}

static size_t handle_of(uint device, uint slice) { return ((size_t)fake_start << 16) | (device << 8) | (slice + 1); }

static int find(size_t handle, Device **device, int *slice) {
  if (!fake_is_started || (int)(handle >> 16) != fake_start) {
    __sync_fetch_and_add(&fake_misuses, 1);
    return UNINITIALIZED;
  }
  *device = &fake_devices[(handle >> 8) & 255];
  *slice = (int)(handle & 255) - 1; /* 0: the GPU itself */
  return (*device)->is_lost ? LOST : SUCCESS;
}

#define BEGIN(name) \
  Device *d; int slice; (void)slice; \
  int failed = enter(ID_##name, (int)((handle >> 8) & 255)); \
  if (failed) return failed; \
  if ((failed = find(handle, &d, &slice))) return failed;

#define FIGURE(name, type, expression) \
  int name(size_t handle, type *out) { BEGIN(name) *out = (expression); return SUCCESS; }

int nvmlInitWithFlags(uint flags) {
  (void)flags;
  int failed = enter(ID_nvmlInitWithFlags, -1);
  if (failed) return failed;
  fake_start++;
  fake_is_started = 1;
  return SUCCESS;
}

int nvmlShutdown(void) {
  int failed = enter(ID_nvmlShutdown, -1);
  if (!failed) fake_is_started = 0;
  return failed;
}

const char *nvmlErrorString(int code) { (void)code; return "a code that nobody knows"; }

int nvmlSystemGetDriverVersion(char *out, uint size) {
  int failed = enter(ID_nvmlSystemGetDriverVersion, -1);
  if (!failed) strncpy(out, "580.65.06", size);
  return failed;
}

int nvmlDeviceGetCount_v2(uint *out) {
  int failed = enter(ID_nvmlDeviceGetCount_v2, -1);
  if (!failed && !fake_is_started) failed = UNINITIALIZED;
  if (!failed) *out = fake_device_count;
  return failed;
}

int nvmlDeviceGetHandleByIndex_v2(uint index, size_t *out) {
  int failed = enter(ID_nvmlDeviceGetHandleByIndex_v2, (int)index);
  if (failed) return failed;
  if (!fake_is_started) return UNINITIALIZED;
  if (index >= fake_device_count) return INVALID;
  if (fake_devices[index].is_lost) return LOST;
  *out = handle_of(index, 0);
  return SUCCESS;
}

static int text(char *out, const char *from, uint size, int slice) {
  strncpy(out, from, size - 1);
  out[size - 1] = 0;
  if (slice > 0) { size_t end = strlen(out); out[end] = '/'; out[end + 1] = (char)('0' + slice - 1); out[end + 2] = 0; }
  return SUCCESS;
}

int nvmlDeviceGetName(size_t handle, char *out, uint size) { BEGIN(nvmlDeviceGetName) return text(out, d->name, size, slice); }
int nvmlDeviceGetUUID(size_t handle, char *out, uint size) { BEGIN(nvmlDeviceGetUUID) return text(out, d->uuid, size, slice); }

typedef struct { char legacy[16]; uint domain, bus, device, id, subsystem; char bus_id[32]; } Pci;
int nvmlDeviceGetPciInfo_v3(size_t handle, Pci *out) {
  BEGIN(nvmlDeviceGetPciInfo_v3)
  memcpy(out->bus_id, d->bus, sizeof out->bus_id);
  return SUCCESS;
}

typedef struct { u64 total, free, used; } Memory;
int nvmlDeviceGetMemoryInfo(size_t handle, Memory *out) {
  BEGIN(nvmlDeviceGetMemoryInfo)
  u64 share = slice > 0 ? d->slice_count : 1;
  out->total = d->total / share;
  out->used = (d->used + d->reserved) / share;
  out->free = out->total - out->used;
  return SUCCESS;
}

#ifndef OLD_DRIVER
typedef struct { uint version; u64 total, reserved, free, used; } Memory2;
int nvmlDeviceGetMemoryInfo_v2(size_t handle, Memory2 *out) {
  BEGIN(nvmlDeviceGetMemoryInfo_v2)
  if (out->version != (sizeof(Memory2) | 2 << 24)) return 25;
  u64 share = slice > 0 ? d->slice_count : 1;
  out->total = d->total / share;
  out->reserved = d->reserved / share;
  out->used = d->used / share;
  out->free = out->total - out->used - out->reserved;
  return SUCCESS;
}

typedef struct { uint version, sensor; int celsius; } Temperature;
int nvmlDeviceGetTemperatureV(size_t handle, Temperature *out) {
  BEGIN(nvmlDeviceGetTemperatureV)
  if (out->version != (sizeof(Temperature) | 1 << 24)) return 25;
  out->celsius = (int)d->celsius;
  return SUCCESS;
}

FIGURE(nvmlDeviceGetCurrentClocksEventReasons, u64, d->reasons)
#endif

int nvmlDeviceGetTemperature(size_t handle, uint sensor, uint *out) {
  BEGIN(nvmlDeviceGetTemperature)
  (void)sensor;
  *out = d->celsius;
  return SUCCESS;
}

FIGURE(nvmlDeviceGetPowerUsage, uint, d->power_milliwatts)
FIGURE(nvmlDeviceGetEnforcedPowerLimit, uint, d->limit_milliwatts)

int nvmlDeviceGetUtilizationRates(size_t handle, uint out[2]) {
  BEGIN(nvmlDeviceGetUtilizationRates)
  if (slice > 0) return NOT_SUPPORTED;
  out[0] = d->gpu_percent;
  out[1] = d->memory_percent;
  return SUCCESS;
}

int nvmlDeviceGetEncoderUtilization(size_t handle, uint *out, uint *period) {
  BEGIN(nvmlDeviceGetEncoderUtilization)
  *out = d->encoder_percent;
  *period = 167000;
  return SUCCESS;
}

int nvmlDeviceGetClockInfo(size_t handle, uint kind, uint *out) {
  BEGIN(nvmlDeviceGetClockInfo)
  *out = kind == 1 ? d->sm_mhz : d->memory_mhz;
  return SUCCESS;
}

int nvmlDeviceGetTotalEccErrors(size_t handle, uint kind, uint counter, u64 *out) {
  BEGIN(nvmlDeviceGetTotalEccErrors)
  if (kind != 1 || counter != 0) return INVALID;
  *out = d->ecc;
  return SUCCESS;
}

typedef struct { uint pid; u64 used; uint instance, compute_instance; } ProcessInfo;
static int processes(const Device *d, uint is_graphics, uint *count, ProcessInfo *out) {
  uint found = 0, room = *count;
  for (uint i = 0; i < d->process_count; i++) {
    const Process *p = &d->processes[i];
    if (p->is_graphics != is_graphics) continue;
    if (out && found < room) { out[found].pid = p->pid; out[found].used = p->used; }
    found++;
  }
  *count = found;
  return found > (out ? room : 0) ? TOO_SMALL : SUCCESS;
}

int nvmlDeviceGetComputeRunningProcesses_v3(size_t handle, uint *count, ProcessInfo *out) {
  BEGIN(nvmlDeviceGetComputeRunningProcesses_v3)
  return processes(d, 0, count, out);
}

int nvmlDeviceGetGraphicsRunningProcesses_v3(size_t handle, uint *count, ProcessInfo *out) {
  BEGIN(nvmlDeviceGetGraphicsRunningProcesses_v3)
  return processes(d, 1, count, out);
}

typedef struct { uint field, scope; long long time, latency; uint type; int failed; union { double d; u64 u; } value; } Field;
int nvmlDeviceGetFieldValues(size_t handle, int count, Field *out) {
  BEGIN(nvmlDeviceGetFieldValues)
  for (int i = 0; i < count; i++) {
    out[i].failed = out[i].field == 197 || out[i].field == 198 ? SUCCESS : NOT_SUPPORTED;
    out[i].value.u = out[i].field == 198 ? d->pcie_received : d->pcie_sent;
#ifdef OLD_DRIVER
    out[i].failed = NOT_SUPPORTED;
#endif
  }
  return SUCCESS;
}

int nvmlDeviceGetPcieThroughput(size_t handle, uint counter, uint *out) {
  BEGIN(nvmlDeviceGetPcieThroughput)
  usleep(20000);
  *out = counter == 1 ? d->throughput_kib : 2 * d->throughput_kib;
  return SUCCESS;
}

int nvmlDeviceGetMigMode(size_t handle, uint *current, uint *pending) {
  BEGIN(nvmlDeviceGetMigMode)
  if (!d->slice_count) return NOT_SUPPORTED;
  *current = *pending = 1;
  return SUCCESS;
}

int nvmlDeviceGetMaxMigDeviceCount(size_t handle, uint *out) {
  BEGIN(nvmlDeviceGetMaxMigDeviceCount)
  *out = SLICES;
  return SUCCESS;
}

int nvmlDeviceGetMigDeviceHandleByIndex(size_t handle, uint index, size_t *out) {
  BEGIN(nvmlDeviceGetMigDeviceHandleByIndex)
  if (index >= d->slice_count) return NOT_FOUND;
  *out = handle_of((uint)((handle >> 8) & 255), index + 1);
  return SUCCESS;
}
