/* A driver of four GPUs for tests: 0 is healthy, 1 has ECC errors, 2 fell off the bus, 3 has rows to be remapped,
   is hot, and somebody is on it. Compiled into libnvidia-ml.so.1; signatures as in NVIDIA's nvml.h. */
#include <string.h>
#define OK 0
#define NOT_SUPPORTED 3
#define GPU_IS_LOST 15
typedef long *Device;
typedef struct { unsigned long long total, free, used; } Memory;
static long numbers[4] = {0, 1, 2, 3};

int nvmlInit_v2(void) { return OK; }
int nvmlInitWithFlags(unsigned flags) { return OK; }
int nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(int code) { return code == GPU_IS_LOST ? "GPU is lost" : "an error"; }
int nvmlDeviceGetCount_v2(unsigned *count) { *count = 4; return OK; }
int nvmlDeviceGetHandleByIndex_v2(unsigned index, Device *device) {
  *device = &numbers[index];
  return index == 2 ? GPU_IS_LOST : OK;
}
int nvmlDeviceGetHandleByUUID(const char *uuid, Device *device) { *device = &numbers[1]; return OK; }
int nvmlDeviceGetName(Device device, char *name, unsigned length) { strncpy(name, "Test 80GB", length); return OK; }
int nvmlDeviceGetTotalEccErrors(Device device, int type, int counter, unsigned long long *count) {
  *count = type == 1 && counter == 0 && *device == 1 ? 12 : 0;
  return *device == 3 ? NOT_SUPPORTED : OK;
}
int nvmlDeviceGetRemappedRows(Device device, unsigned *corrected, unsigned *uncorrected, unsigned *pending,
                              unsigned *failed) {
  *corrected = *uncorrected = *failed = 0;
  *pending = *device == 3;
  return *device == 0 ? NOT_SUPPORTED : OK;
}
int nvmlDeviceGetMemoryInfo(Device device, Memory *memory) {
  memset(memory, 0, sizeof *memory);
  memory->used = *device == 3 ? 3ULL << 30 : 1 << 20;
  return OK;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(Device device, unsigned long long *reasons) {
  *reasons = *device == 3 ? 0x40 : 0;
  return OK;
}
