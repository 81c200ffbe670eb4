/* Thaw inside a container, for C and C++: say that the program is ready, learn that it was restored, know who it is.
 *
 * A header and nothing else; the protocol is files in /run/thaw (docs/container-protocol.md). Outside a replica the functions do
 * nothing. All of them may be called from any thread. Linux only.
 *
 *     load_model();
 *     thaw_ready();
 *     if (thaw_wait_for_restore(-1) == 1) reconnect();
 *
 * thaw_on_restore() makes a thread: build with -pthread.
 */
#ifndef THAW_H
#define THAW_H

#ifndef _GNU_SOURCE
#define _GNU_SOURCE /* for what the C library declares with it only; include this header first */
#endif

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <pthread.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/inotify.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <time.h>
#include <unistd.h>

#define THAW_FOLDER "/run/thaw"

static inline int thaw_exists_(const char *path) { return access(path, F_OK) == 0; }

/* 1: this program runs in a replica. */
static inline int thaw_inside(void) { return thaw_exists_(THAW_FOLDER "/identity.json"); }

/* 1: this replica was started from a checkpoint. */
static inline int thaw_restored(void) { return thaw_exists_(THAW_FOLDER "/restored"); }

/* 1: this pod is checkpointed: asked for, and possible here. */
static inline int thaw_checkpoint_enabled(void) {
  const char *value = getenv("THAW_CHECKPOINT_ENABLED");
  return value && strcmp(value, "true") == 0;
}

static inline int thaw_touch_(const char *path) {
  int fd = open(path, O_WRONLY | O_CREAT | O_CLOEXEC | O_NOFOLLOW, 0644);
  if (fd >= 0) return close(fd);
  return errno == EACCES && thaw_exists_(path) ? 0 : -1;
}

/* Says that this process is warm: once in each worker, where there are several. 0, or -1 with errno. */
static inline int thaw_ready(void) {
  char path[128], proc[64];
  struct stat info;
  struct dirent *entry;
  const char *kind = getenv("THAW_CHECKPOINT_CONDITION"), *address = getenv("NOTIFY_SOCKET");
  int lock, done;
  DIR *workers;
  if (!thaw_inside()) return 0;
  if (mkdir(THAW_FOLDER "/workers", 01777) != 0 && errno != EEXIST) return -1;
  if (stat(THAW_FOLDER "/workers", &info) == 0 && info.st_uid == geteuid()) chmod(THAW_FOLDER "/workers", 01777);
  lock = open(THAW_FOLDER "/workers", O_RDONLY | O_DIRECTORY | O_CLOEXEC); /* a lock file would be one user's */
  if (lock < 0) return -1;
  while (flock(lock, LOCK_EX) != 0 && errno == EINTR) {
  }
  /* A worker that has died since counts no more. */
  workers = opendir(THAW_FOLDER "/workers");
  while (workers && (entry = readdir(workers))) {
    if (entry->d_name[strspn(entry->d_name, "0123456789")] != '\0') continue;
    snprintf(proc, sizeof proc, "/proc/%.20s", entry->d_name);
    snprintf(path, sizeof path, THAW_FOLDER "/workers/%.20s", entry->d_name);
    if (!thaw_exists_(proc)) unlink(path);
  }
  if (workers) closedir(workers);
  snprintf(path, sizeof path, THAW_FOLDER "/workers/%ld", (long)getpid());
  done = thaw_touch_(path);
  close(lock);
  if (done != 0 || thaw_touch_(THAW_FOLDER "/ready") != 0) return -1;
  /* A datagram cannot be taken back when its worker dies, so it is not sent where workers are counted. */
  if (address && !(kind && strcmp(kind, "workers") == 0)) {
    struct sockaddr_un to;
    int out = socket(AF_UNIX, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    memset(&to, 0, sizeof to);
    to.sun_family = AF_UNIX;
    strncpy(to.sun_path, address, sizeof to.sun_path - 1);
    if (out < 0) return -1;
    done = sendto(out, "READY=1", 7, 0, (struct sockaddr *)&to, sizeof to) < 0 ? -1 : 0;
    close(out);
  }
  return done;
}

static inline long thaw_now_ms_(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (long)(now.tv_sec * 1000 + now.tv_nsec / 1000000);
}

/* Waits until the start of this replica is over. 1: this process runs restored from a checkpoint. 0: it is the one that was started
 * cold, and goes on: the checkpoint was made, or failed, or the condition did not hold in time, or none is wanted. Whatever happens, it
 * returns; after timeout_ms at the latest, where that is not negative. */
static inline int thaw_wait_for_restore(long timeout_ms) {
  long end = thaw_now_ms_() + timeout_ms, left;
  char events[4096];
  struct pollfd entry;
  int found;
  if (!thaw_inside() || (!thaw_checkpoint_enabled() && !thaw_restored())) return 0;
  entry.fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
  entry.events = POLLIN;
  if (entry.fd >= 0) inotify_add_watch(entry.fd, THAW_FOLDER, IN_CREATE | IN_MOVED_TO);
  for (;;) {
    found = thaw_restored();
    if (found || thaw_exists_(THAW_FOLDER "/started.json")) break;
    left = timeout_ms < 0 ? 1000 : end - thaw_now_ms_();
    if (left <= 0) break;
    /* A restore breaks the call off with EINTR; a second is for hosts that are out of inotify watches. */
    if (poll(&entry, 1, (int)(left < 1000 ? left : 1000)) > 0 && read(entry.fd, events, sizeof events) < 0 && errno != EAGAIN) break;
  }
  if (entry.fd >= 0) close(entry.fd);
  return found;
}

/* Copies a field of identity.json (pod, replica, hostname, generation, started_from) to `value`. 0, or -1 with errno. Their values
 * need no escapes in JSON. */
static inline int thaw_identity(const char *field, char *value, size_t size) {
  char text[4096], key[64];
  const char *at, *end;
  ssize_t length;
  int fd = open(THAW_FOLDER "/identity.json", O_RDONLY | O_CLOEXEC);
  if (fd < 0) return -1;
  length = read(fd, text, sizeof text - 1);
  close(fd);
  if (length < 0) return -1;
  text[length] = '\0';
  snprintf(key, sizeof key, "\"%.40s\":\"", field);
  at = strstr(text, key);
  end = at ? strchr(at + strlen(key), '"') : NULL;
  if (!end || (size_t)(end - at) - strlen(key) >= size) {
    errno = end ? ERANGE : ENOENT;
    return -1;
  }
  at += strlen(key);
  memcpy(value, at, (size_t)(end - at));
  value[end - at] = '\0';
  return 0;
}

struct thaw_on_restore_ {
  void (*call)(void *);
  void *data;
  char generation[64];
};

static inline void *thaw_watch_(void *given) {
  struct thaw_on_restore_ *watch = (struct thaw_on_restore_ *)given;
  char generation[sizeof watch->generation], events[4096];
  struct pollfd entry;
  entry.fd = inotify_init1(IN_CLOEXEC | IN_NONBLOCK);
  entry.events = POLLIN;
  if (entry.fd >= 0) inotify_add_watch(entry.fd, THAW_FOLDER, IN_CREATE | IN_MOVED_TO);
  for (;;) {
    if (thaw_restored() && thaw_identity("generation", generation, sizeof generation) == 0 &&
        strcmp(generation, watch->generation) != 0) {
      memcpy(watch->generation, generation, sizeof generation);
      watch->call(watch->data);
    }
    /* As in thaw_wait_for_restore. */
    if (poll(&entry, 1, 1000) > 0 && read(entry.fd, events, sizeof events) < 0 && errno != EAGAIN) break;
  }
  return NULL;
}

/* Calls call(data) in this process after each restore, on a thread of its own that takes no signals. 0, or -1 with errno. A process that
 * is forked later has no such thread, and calls this itself. */
static inline int thaw_on_restore(void (*call)(void *), void *data) {
  struct thaw_on_restore_ *watch;
  pthread_t thread;
  sigset_t all, before;
  int failed;
  if (!thaw_inside()) return 0;
  watch = (struct thaw_on_restore_ *)calloc(1, sizeof *watch);
  if (!watch) return -1;
  watch->call = call;
  watch->data = data;
  if (thaw_identity("generation", watch->generation, sizeof watch->generation) != 0) {
    free(watch);
    return -1;
  }
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  failed = pthread_create(&thread, NULL, thaw_watch_, watch);
  pthread_sigmask(SIG_SETMASK, &before, NULL);
  if (failed) {
    free(watch);
    errno = failed;
    return -1;
  }
  pthread_detach(thread);
  return 0;
}

#endif
