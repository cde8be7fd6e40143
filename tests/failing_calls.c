/* Lets one call of the system fail, once: for the tests of what a run does then.

   cc -shared -fPIC -o failing_calls.so failing_calls.c -ldl; LD_PRELOAD=./failing_calls.so ...

   FAIL_CALL    open, read, write, fsync, rename, unlink or mkdir; unset: none fails, all count
   FAIL_AT      1, 2, ...: which of these calls fails
   FAIL_ERRNO   with what
   FAIL_BELOW   calls on other paths than those that have this in them do not count
   FAIL_LOG     a file that gets a line for each call that counts: its name and path */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <limits.h>
#include <pthread.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;
static long count;

/* Whether this call fails; errno is set then. */
static int fails(const char *call, const char *path) {
  const char *chosen = getenv("FAIL_CALL"), *below = getenv("FAIL_BELOW");
  if ((chosen && strcmp(chosen, call)) || !path || !below || !strstr(path, below)) return 0;
  const char *at = getenv("FAIL_AT"), *number = getenv("FAIL_ERRNO"), *log = getenv("FAIL_LOG");
  pthread_mutex_lock(&mutex);
  long now = ++count;
  if (log) {
    char line[PATH_MAX + 32];
    int length = snprintf(line, sizeof line, "%s %s\n", call, path);
    int file = syscall(SYS_openat, AT_FDCWD, log, O_WRONLY | O_CREAT | O_APPEND, 0600);
    syscall(SYS_write, file, line, (size_t)length);
    syscall(SYS_close, file);
  }
  pthread_mutex_unlock(&mutex);
  if (!chosen || !at || now != atol(at)) return 0;
  errno = number ? atoi(number) : EIO;
  return 1;
}

static int fails_at(const char *call, int folder, const char *name) {
  char link[64], path[PATH_MAX];
  if (folder == AT_FDCWD || name[0] == '/') return fails(call, name);
  snprintf(link, sizeof link, "/proc/self/fd/%d", folder);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  snprintf(path + length, sizeof path - length, "/%s", name);
  return fails(call, path);
}

static int fails_on(const char *call, int descriptor) {
  char link[64], path[PATH_MAX];
  snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
  ssize_t length = readlink(link, path, sizeof path - 1);
  if (length < 0) return 0;
  path[length] = 0;
  return fails(call, path);
}

#define NEXT(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define FD_CALL(call, type, name, params, args) \
  type name params { return fails_on(call, descriptor) ? -1 : NEXT(name) args; }
#define PATH_CALL(call, name, params, args) \
  int name params { return fails(call, path) ? -1 : NEXT(name) args; }
#define OPEN(name) \
  int name(const char *path, int flags, ...) { \
    va_list more; va_start(more, flags); int mode = va_arg(more, int); va_end(more); \
    return fails("open", path) ? -1 : NEXT(name)(path, flags, mode); }
#define OPENAT(name) \
  int name(int folder, const char *path, int flags, ...) { \
    va_list more; va_start(more, flags); int mode = va_arg(more, int); va_end(more); \
    return fails_at("open", folder, path) ? -1 : NEXT(name)(folder, path, flags, mode); }
#define FOPEN(name) \
  FILE *name(const char *path, const char *mode) { \
    return fails("open", path) ? NULL : NEXT(name)(path, mode); }

OPEN(open) OPEN(open64) OPENAT(openat) OPENAT(openat64) FOPEN(fopen) FOPEN(fopen64)
FD_CALL("read", ssize_t, read, (int descriptor, void *to, size_t n), (descriptor, to, n))
FD_CALL("read", ssize_t, pread, (int descriptor, void *to, size_t n, off_t at), (descriptor, to, n, at))
FD_CALL("read", ssize_t, pread64, (int descriptor, void *to, size_t n, off64_t at), (descriptor, to, n, at))
FD_CALL("read", ssize_t, preadv, (int descriptor, const struct iovec *to, int n, off_t at), (descriptor, to, n, at))
FD_CALL("read", ssize_t, preadv64, (int descriptor, const struct iovec *to, int n, off64_t at), (descriptor, to, n, at))
FD_CALL("write", ssize_t, write, (int descriptor, const void *from, size_t n), (descriptor, from, n))
FD_CALL("write", ssize_t, pwrite, (int descriptor, const void *from, size_t n, off_t at), (descriptor, from, n, at))
FD_CALL("write", ssize_t, pwrite64, (int descriptor, const void *from, size_t n, off64_t at), (descriptor, from, n, at))
FD_CALL("write", ssize_t, writev, (int descriptor, const struct iovec *from, int n), (descriptor, from, n))
FD_CALL("write", ssize_t, pwritev, (int descriptor, const struct iovec *from, int n, off_t at), (descriptor, from, n, at))
FD_CALL("write", ssize_t, pwritev64, (int descriptor, const struct iovec *from, int n, off64_t at), (descriptor, from, n, at))
FD_CALL("write", int, ftruncate, (int descriptor, off_t length), (descriptor, length))
FD_CALL("write", int, ftruncate64, (int descriptor, off64_t length), (descriptor, length))
FD_CALL("fsync", int, fsync, (int descriptor), (descriptor))
FD_CALL("fsync", int, fdatasync, (int descriptor), (descriptor))
PATH_CALL("rename", rename, (const char *path, const char *to), (path, to))
PATH_CALL("unlink", unlink, (const char *path), (path))
PATH_CALL("unlink", rmdir, (const char *path), (path))
PATH_CALL("mkdir", mkdir, (const char *path, mode_t mode), (path, mode))

int renameat(int folder, const char *path, int to_folder, const char *to) {
  return fails_at("rename", folder, path) ? -1 : NEXT(renameat)(folder, path, to_folder, to);
}
int unlinkat(int folder, const char *path, int flags) {
  return fails_at("unlink", folder, path) ? -1 : NEXT(unlinkat)(folder, path, flags);
}
