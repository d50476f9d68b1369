/* Makes the n-th operation on files below a folder fail, or the process die at it.
 *
 * Preloaded into a process (LD_PRELOAD), it counts what a program does to files below
 * FAULTS_FOLDER: opening them (read or write), writing, truncating, syncing, renaming, linking,
 * making and removing. Set by environment variables when the process starts, or with `faults_arm`:
 *
 *   FAULTS_FOLDER    absolute path without symbolic links
 *   FAULTS_KIND      "kill", or the number of an errno
 *   FAULTS_POSITION  of the first operation that fails, from 1; 0 for none
 *   FAULTS_LASTING   "1": all later operations fail too, until the process ends
 *   FAULTS_READS     "1": opening a file to read it fails too; otherwise it is not counted
 *   FAULTS_TRACE     file to which "position operation path" is appended for each operation
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

static char folder[4096], trace[4096];
static size_t folder_length;
static int kind; /* An errno; 0 for none, -1 to kill. */
static long position;
static int lasting, reads;
static atomic_long count;

void faults_arm(const char *new_folder, const char *new_kind, long new_position, int new_lasting,
                int new_reads, const char *new_trace) {
  snprintf(folder, sizeof folder, "%s", new_folder);
  snprintf(trace, sizeof trace, "%s", new_trace);
  folder_length = strlen(folder);
  kind = strcmp(new_kind, "kill") ? atoi(new_kind) : -1;
  position = new_position;
  lasting = new_lasting;
  reads = new_reads;
  atomic_store(&count, 0);
}

static const char *setting(const char *name) {
  const char *value = getenv(name);
  return value ? value : "";
}

__attribute__((constructor)) static void arm_from_environment(void) {
  faults_arm(setting("FAULTS_FOLDER"), setting("FAULTS_KIND"), atol(setting("FAULTS_POSITION")),
             atoi(setting("FAULTS_LASTING")), atoi(setting("FAULTS_READS")),
             setting("FAULTS_TRACE"));
}

static int is_below(const char *path) {
  return folder_length && !strncmp(path, folder, folder_length) &&
         (path[folder_length] == '/' || path[folder_length] == 0);
}

static void note(long number, const char *operation, const char *path) {
  char line[8400];
  int length = snprintf(line, sizeof line, "%ld %s %s\n", number, operation, path);
  int file = syscall(SYS_openat, AT_FDCWD, trace, O_WRONLY | O_CREAT | O_APPEND, 0666);
  if (file >= 0) {
    syscall(SYS_write, file, line, length);
    syscall(SYS_close, file);
  }
}

/* A full disk can still remove files. */
static int works_on_a_full_disk(const char *operation) {
  return kind == ENOSPC && (!strcmp(operation, "unlink") || !strcmp(operation, "rmdir"));
}

/* Counts an operation; returns whether it fails, with errno set. */
static int fails(const char *operation, const char *path) {
  if (!is_below(path)) return 0;
  long number = atomic_fetch_add(&count, 1) + 1;
  if (trace[0]) note(number, operation, path);
  if (!position || number < position || (number > position && !lasting)) return 0;
  if (kind == -1) syscall(SYS_kill, getpid(), SIGKILL);
  if (kind <= 0 || works_on_a_full_disk(operation)) return 0;
  errno = kind;
  return 1;
}

static void absolute(int at, const char *path, char *out, size_t size) {
  char link[64];
  ssize_t length = 0;
  out[0] = 0;
  if (!path) return;
  if (path[0] != '/') {
    if (at == AT_FDCWD)
      snprintf(link, sizeof link, "/proc/self/cwd");
    else
      snprintf(link, sizeof link, "/proc/self/fd/%d", at);
    length = readlink(link, out, size - 1);
    if (length < 0) length = 0;
    if (path[0]) out[length++] = '/';
  }
  snprintf(out + length, size - length, "%s", path);
}

static int fails_at(const char *operation, int at, const char *path) {
  char full[8192];
  if (!folder_length) return 0;
  absolute(at, path, full, sizeof full);
  return fails(operation, full);
}

static int fails_of(const char *operation, int file) {
  char link[64], full[8192];
  if (!folder_length) return 0;
  snprintf(link, sizeof link, "/proc/self/fd/%d", file);
  ssize_t length = readlink(link, full, sizeof full - 1);
  if (length < 0) return 0;
  full[length] = 0;
  return fails(operation, full);
}

static int fails_to_open(int at, const char *path, int flags) {
  int writes = (flags & O_ACCMODE) != O_RDONLY || (flags & O_CREAT);
  if (!writes && !reads) return 0;
  return fails_at(writes ? "open" : "read", at, path);
}

#define REAL(type, name, ...) ((type (*)(__VA_ARGS__))dlsym(RTLD_NEXT, #name))
#define MODE(flags, last)                     \
  mode_t mode = 0;                            \
  if ((flags) & (O_CREAT | O_TMPFILE)) {      \
    va_list list;                             \
    va_start(list, last);                     \
    mode = va_arg(list, mode_t);              \
    va_end(list);                             \
  }
#define OPEN(name)                                                     \
  int name(const char *path, int flags, ...) {                         \
    MODE(flags, flags)                                                 \
    if (fails_to_open(AT_FDCWD, path, flags)) return -1;               \
    return REAL(int, name, const char *, int, ...)(path, flags, mode); \
  }
#define OPENAT(name)                                                            \
  int name(int at, const char *path, int flags, ...) {                          \
    MODE(flags, flags)                                                          \
    if (fails_to_open(at, path, flags)) return -1;                              \
    return REAL(int, name, int, const char *, int, ...)(at, path, flags, mode); \
  }
#define OF_FILE(type, name, operation, parameters, types, arguments) \
  type name parameters {                                             \
    if (fails_of(operation, file)) return -1;                        \
    return ((type(*) types)dlsym(RTLD_NEXT, #name))arguments;        \
  }
#define OF_PATH(name, operation, at, path, parameters, types, arguments) \
  int name parameters {                                                  \
    if (fails_at(operation, at, path)) return -1;                        \
    return ((int (*) types)dlsym(RTLD_NEXT, #name))arguments;            \
  }

OPEN(open)
OPEN(open64)
OPENAT(openat)
OPENAT(openat64)
OF_FILE(ssize_t, write, "write", (int file, const void *data, size_t size),
        (int, const void *, size_t), (file, data, size))
OF_FILE(ssize_t, writev, "write", (int file, const struct iovec *data, int num),
        (int, const struct iovec *, int), (file, data, num))
OF_FILE(ssize_t, pwrite, "write", (int file, const void *data, size_t size, off_t to),
        (int, const void *, size_t, off_t), (file, data, size, to))
OF_FILE(ssize_t, pwrite64, "write", (int file, const void *data, size_t size, off64_t to),
        (int, const void *, size_t, off64_t), (file, data, size, to))
OF_FILE(ssize_t, pwritev, "write", (int file, const struct iovec *data, int num, off_t to),
        (int, const struct iovec *, int, off_t), (file, data, num, to))
OF_FILE(ssize_t, pwritev64, "write", (int file, const struct iovec *data, int num, off64_t to),
        (int, const struct iovec *, int, off64_t), (file, data, num, to))
OF_FILE(int, ftruncate, "truncate", (int file, off_t size), (int, off_t), (file, size))
OF_FILE(int, ftruncate64, "truncate", (int file, off64_t size), (int, off64_t), (file, size))
OF_FILE(int, fsync, "sync", (int file), (int), (file))
OF_FILE(int, fdatasync, "sync", (int file), (int), (file))
OF_PATH(rename, "rename", AT_FDCWD, to, (const char *from, const char *to),
        (const char *, const char *), (from, to))
OF_PATH(renameat, "rename", to_at, to, (int from_at, const char *from, int to_at, const char *to),
        (int, const char *, int, const char *), (from_at, from, to_at, to))
OF_PATH(renameat2, "rename", to_at, to,
        (int from_at, const char *from, int to_at, const char *to, unsigned flags),
        (int, const char *, int, const char *, unsigned), (from_at, from, to_at, to, flags))
OF_PATH(link, "link", AT_FDCWD, to, (const char *from, const char *to),
        (const char *, const char *), (from, to))
OF_PATH(linkat, "link", to_at, to,
        (int from_at, const char *from, int to_at, const char *to, int flags),
        (int, const char *, int, const char *, int), (from_at, from, to_at, to, flags))
OF_PATH(mkdir, "mkdir", AT_FDCWD, path, (const char *path, mode_t mode), (const char *, mode_t),
        (path, mode))
OF_PATH(mkdirat, "mkdir", at, path, (int at, const char *path, mode_t mode),
        (int, const char *, mode_t), (at, path, mode))
OF_PATH(unlink, "unlink", AT_FDCWD, path, (const char *path), (const char *), (path))
OF_PATH(unlinkat, "unlink", at, path, (int at, const char *path, int flags),
        (int, const char *, int), (at, path, flags))
OF_PATH(rmdir, "rmdir", AT_FDCWD, path, (const char *path), (const char *), (path))
