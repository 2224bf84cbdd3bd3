/* A libcuda.so.1 that does nothing: the probes count calls, whatever they do. It lacks some functions, as real ones do. */
#include <pthread.h>
#include <unistd.h>
typedef unsigned long long u64;
int cuLaunchKernel(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **);
int cuCtxCreate_v2(void **context, unsigned flags, int device) { (void)context; (void)flags; (void)device; return 0; }
int cuDevicePrimaryCtxRetain(void **context, int device) { (void)context; (void)device; return 0; }
int cuMemAlloc_v2(u64 *pointer, u64 bytes) { *pointer = bytes; return 0; }
int cuMemFree_v2(u64 pointer) { return pointer == 1; }
int cuMemcpyHtoD_v2(u64 device, const void *host, u64 bytes) { (void)host; return device == bytes + 1; }
int cuMemcpyHtoDAsync_v2(u64 device, const void *host, u64 bytes, void *stream) { (void)host; (void)stream; return device == bytes + 1; }
int cuLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by, unsigned bz, unsigned shared,
                   void *stream, void **arguments, void **extra)
{ (void)f; (void)gy; (void)gz; (void)bx; (void)by; (void)bz; (void)shared; (void)stream; (void)arguments; (void)extra; return gx == 0; }
int cuGraphLaunch(void *graph, void *stream) { (void)graph; (void)stream; return 0; }

/* Loaded into a process that knows nothing of CUDA, it launches by itself, a hundred times a second. */
#ifdef BUSY
static void *launch(void *unused)
{
    for (;;) { cuLaunchKernel(0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0); usleep(10000); }
    return unused;
}
__attribute__((constructor)) static void begin(void) { pthread_t thread; pthread_create(&thread, 0, launch, 0); }
#endif
