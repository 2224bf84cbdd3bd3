/* Preloaded into a server: notes when it writes to a TCP socket, to whom and how much, just before the system call.
   It is the server's own account of its writes, and knows nothing of the kernel probes that are measured by it.
   The file named by WRITES_FILE is a memory map of records; its first word counts them. */
#define _GNU_SOURCE
#include <arpa/inet.h>
#include <dlfcn.h>
#include <fcntl.h>
#include <stdint.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

struct record { uint64_t ns; uint32_t bytes; uint16_t peer_port; uint16_t unused; };
enum { RECORDS = 1 << 20 };
static struct { uint64_t count; uint64_t unused; struct record records[RECORDS]; } *book;

static ssize_t (*real_send)(int, const void *, size_t, int);
static ssize_t (*real_sendto)(int, const void *, size_t, int, const struct sockaddr *, socklen_t);
static ssize_t (*real_sendmsg)(int, const struct msghdr *, int);
static ssize_t (*real_write)(int, const void *, size_t);
static ssize_t (*real_writev)(int, const struct iovec *, int);

__attribute__((constructor)) static void start(void) {
  real_send = dlsym(RTLD_NEXT, "send");
  real_sendto = dlsym(RTLD_NEXT, "sendto");
  real_sendmsg = dlsym(RTLD_NEXT, "sendmsg");
  real_write = dlsym(RTLD_NEXT, "write");
  real_writev = dlsym(RTLD_NEXT, "writev");
  const char *path = getenv("WRITES_FILE");
  int fd = path ? open(path, O_RDWR | O_CREAT, 0600) : -1;
  if (fd < 0 || ftruncate(fd, sizeof *book)) return;
  void *map = mmap(0, sizeof *book, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  book = map == MAP_FAILED ? 0 : map;
  close(fd);
}

/* Takes a place before the call, so that records are in order of their times on one connection. */
static struct record *begin(int fd) {
  struct sockaddr_storage peer;
  socklen_t length = sizeof peer;
  if (!book || getpeername(fd, (struct sockaddr *)&peer, &length)) return 0;
  uint16_t port = peer.ss_family == AF_INET    ? ((struct sockaddr_in *)&peer)->sin_port
                  : peer.ss_family == AF_INET6 ? ((struct sockaddr_in6 *)&peer)->sin6_port
                                               : 0;
  if (!port) return 0;
  uint64_t at = __atomic_fetch_add(&book->count, 1, __ATOMIC_RELAXED);
  if (at >= RECORDS) return 0;
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  struct record *record = &book->records[at];
  record->peer_port = ntohs(port);
  record->ns = (uint64_t)now.tv_sec * 1000000000u + now.tv_nsec;
  return record;
}

static ssize_t end(struct record *record, ssize_t written) {
  if (record && written > 0) record->bytes = written;
  return written;
}

ssize_t send(int fd, const void *data, size_t size, int flags) {
  struct record *record = begin(fd);
  return end(record, real_send(fd, data, size, flags));
}
ssize_t sendto(int fd, const void *data, size_t size, int flags, const struct sockaddr *to, socklen_t length) {
  struct record *record = begin(fd);
  return end(record, real_sendto(fd, data, size, flags, to, length));
}
ssize_t sendmsg(int fd, const struct msghdr *message, int flags) {
  struct record *record = begin(fd);
  return end(record, real_sendmsg(fd, message, flags));
}
ssize_t write(int fd, const void *data, size_t size) {
  if (!real_write) real_write = dlsym(RTLD_NEXT, "write");
  struct record *record = begin(fd);
  return end(record, real_write(fd, data, size));
}
ssize_t writev(int fd, const struct iovec *parts, int count) {
  struct record *record = begin(fd);
  return end(record, real_writev(fd, parts, count));
}
