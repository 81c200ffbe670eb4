// thaw-prlimit.so: lets CRIU read the resource limits of other users' processes without
// CAP_SYS_RESOURCE.
//
// CRIU reads every limit of every process that it dumps with prlimit64(pid, resource, NULL, &old).
// The kernel allows that for a process of another user only to a holder of CAP_SYS_RESOURCE, which
// root lacks in many virtual machines and containers; the dump then ends with "Can't get rlimit 0:
// Operation not permitted". The same numbers are readable by everybody in /proc/PID/limits.
//
// Loaded into CRIU alone (ld.so --preload). Every call is made as it was asked for; only a read of
// another process's limit that the kernel refused with EPERM is answered from that file. Where the
// capability is present nothing is refused, so nothing changes. Writes are never answered here.
//
// CRIU calls syscall(2)'s libc wrapper, hence that interposer: its arguments go to the kernel as
// they came. It must not allocate or lock: CRIU calls it between clone and exec, too.

#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/types.h>
#include <unistd.h>

struct Limit64 {
  uint64_t soft;
  uint64_t hard;
};

// The first column of /proc/PID/limits (fs/proc/base.c, lnames), by resource number.
static const char* const kNames[] = {
    [RLIMIT_CPU] = "Max cpu time",
    [RLIMIT_FSIZE] = "Max file size",
    [RLIMIT_DATA] = "Max data size",
    [RLIMIT_STACK] = "Max stack size",
    [RLIMIT_CORE] = "Max core file size",
    [RLIMIT_RSS] = "Max resident set",
    [RLIMIT_NPROC] = "Max processes",
    [RLIMIT_NOFILE] = "Max open files",
    [RLIMIT_MEMLOCK] = "Max locked memory",
    [RLIMIT_AS] = "Max address space",
    [RLIMIT_LOCKS] = "Max file locks",
    [RLIMIT_SIGPENDING] = "Max pending signals",
    [RLIMIT_MSGQUEUE] = "Max msgqueue size",
    [RLIMIT_NICE] = "Max nice priority",
    [RLIMIT_RTPRIO] = "Max realtime priority",
    [RLIMIT_RTTIME] = "Max realtime timeout",
};
enum { kResources = sizeof(kNames) / sizeof(kNames[0]) };

// The system call itself, as the kernel returns it: a negative error number on failure.
static long RawSyscall(long number, long a, long b, long c, long d, long e, long f) {
#if defined(__x86_64__)
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  register long r9 __asm__("r9") = f;
  long result;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(number), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return result;
#elif defined(__aarch64__)
  register long x8 __asm__("x8") = number;
  register long x0 __asm__("x0") = a;
  register long x1 __asm__("x1") = b;
  register long x2 __asm__("x2") = c;
  register long x3 __asm__("x3") = d;
  register long x4 __asm__("x4") = e;
  register long x5 __asm__("x5") = f;
  __asm__ volatile("svc 0"
                   : "+r"(x0)
                   : "r"(x8), "r"(x1), "r"(x2), "r"(x3), "r"(x4), "r"(x5)
                   : "memory");
  return x0;
#else
#error "prlimit_preload.c knows x86_64 and aarch64"
#endif
}

static long Call3(long number, long a, long b, long c) {
  return RawSyscall(number, a, b, c, 0, 0, 0);
}

// Appends the decimal digits of `value` at `out` and returns the end: snprintf may allocate.
static char* AppendNumber(char* out, unsigned value) {
  char digits[12];
  int n = 0;
  do {
    digits[n++] = (char)('0' + value % 10);
    value /= 10;
  } while (value != 0);
  while (n > 0) *out++ = digits[--n];
  return out;
}

// Reads one column, "unlimited" or a decimal number, and moves `*at` past it. False: neither.
static int ReadColumn(const char** at, uint64_t* value) {
  static const char kUnlimited[] = "unlimited";
  const char* p = *at;
  while (*p == ' ') p++;
  if (strncmp(p, kUnlimited, sizeof(kUnlimited) - 1) == 0) {
    *value = UINT64_MAX;
    *at = p + sizeof(kUnlimited) - 1;
    return 1;
  }
  if (*p < '0' || *p > '9') return 0;
  uint64_t number = 0;
  while (*p >= '0' && *p <= '9') number = number * 10 + (uint64_t)(*p++ - '0');
  *value = number;
  *at = p;
  return 1;
}

// Finds `resource` in /proc/PID/limits. 0 or a negative error number.
static long ReadLimit(pid_t pid, unsigned resource, struct Limit64* limit) {
  if (resource >= kResources) return -EINVAL;
  char path[40] = "/proc/";
  char* end = AppendNumber(path + 6, (unsigned)pid);
  memcpy(end, "/limits", sizeof("/limits"));

  char text[4096];
  size_t size = 0;
  const long fd = RawSyscall(SYS_openat, AT_FDCWD, (long)path, O_RDONLY | O_CLOEXEC, 0, 0, 0);
  if (fd < 0) return -EPERM;
  while (size < sizeof(text) - 1) {
    const long got = Call3(SYS_read, fd, (long)(text + size), (long)(sizeof(text) - 1 - size));
    if (got == -EINTR) continue;
    if (got <= 0) break;
    size += (size_t)got;
  }
  Call3(SYS_close, fd, 0, 0);
  text[size] = '\0';

  const size_t name_length = strlen(kNames[resource]);
  for (const char* line = text; line != NULL && *line != '\0';) {
    if (strncmp(line, kNames[resource], name_length) == 0 && line[name_length] == ' ') {
      const char* at = line + name_length;
      if (ReadColumn(&at, &limit->soft) && ReadColumn(&at, &limit->hard)) return 0;
      return -EPERM;
    }
    line = strchr(line, '\n');
    if (line != NULL) line++;
  }
  return -EPERM;
}

static long Prlimit(pid_t pid, unsigned resource, const void* set, struct Limit64* old) {
  const long result = RawSyscall(SYS_prlimit64, pid, (long)resource, (long)set, (long)old, 0, 0);
  if (result != -EPERM || set != NULL || old == NULL || pid <= 0) return result;
  return ReadLimit(pid, resource, old);
}

// As libc does it: -1 and errno.
static long Finish(long result) {
  if (result >= 0 || result < -4095) return result;
  errno = (int)-result;
  return -1;
}

long syscall(long number, ...) {
  va_list args;
  va_start(args, number);
  const long a = va_arg(args, long);
  const long b = va_arg(args, long);
  const long c = va_arg(args, long);
  const long d = va_arg(args, long);
  const long e = va_arg(args, long);
  const long f = va_arg(args, long);
  va_end(args);
  if (number == SYS_prlimit64) {
    return Finish(Prlimit((pid_t)a, (unsigned)b, (const void*)c, (struct Limit64*)d));
  }
  return Finish(RawSyscall(number, a, b, c, d, e, f));
}

int prlimit(pid_t pid, enum __rlimit_resource resource, const struct rlimit* set,
            struct rlimit* old) {
  return (int)Finish(Prlimit(pid, (unsigned)resource, set, (struct Limit64*)old));
}

int prlimit64(pid_t pid, enum __rlimit_resource resource, const struct rlimit64* set,
              struct rlimit64* old) {
  return (int)Finish(Prlimit(pid, (unsigned)resource, set, (struct Limit64*)old));
}
