/* A CUDA program: for each line on stdin, a fixed number of calls, half of them by another thread, and a line back. */
#include <pthread.h>
#include <stdio.h>
typedef unsigned long long u64;
int cuCtxCreate_v2(void **, unsigned, int);
int cuMemAlloc_v2(u64 *, u64);
int cuMemFree_v2(u64);
int cuMemcpyHtoD_v2(u64, const void *, u64);
int cuMemcpyHtoDAsync_v2(u64, const void *, u64, void *);
int cuLaunchKernel(void *, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, unsigned, void *, void **, void **);
int cuGraphLaunch(void *, void *);
static void *work(void *unused)
{
    u64 pointer;
    void *context;
    cuCtxCreate_v2(&context, 0, 0);
    for (int i = 0; i < 50; i++) cuLaunchKernel(0, 1, 1, 1, 1, 1, 1, 0, 0, 0, 0);
    for (int i = 0; i < 7; i++) cuGraphLaunch(0, 0);
    for (int i = 0; i < 5; i++) cuMemAlloc_v2(&pointer, 5ull << 30);
    for (int i = 0; i < 4; i++) cuMemFree_v2(0);
    for (int i = 0; i < 3; i++) cuMemcpyHtoD_v2(0, 0, 1000);
    for (int i = 0; i < 2; i++) cuMemcpyHtoDAsync_v2(0, 0, 6ull << 30, 0);
    return unused;
}
int main(void)
{
    char line[16];
    puts("ready");
    fflush(stdout);
    while (fgets(line, sizeof line, stdin)) {
        pthread_t other;
        pthread_create(&other, 0, work, 0);
        work(0);
        pthread_join(other, 0);
        puts("done");
        fflush(stdout);
    }
    return 0;
}
