/* A library for LD_PRELOAD: a disk that fails. While the file $FAULTY_DISK exists, it holds a line "ERROR FOLDER", and
 * every call about FOLDER (the name of a folder, in the path) or an open file in it fails with that error; ERROR is a
 * number of errno.h, "hang" (no answer until the file is gone), or "slow" (the same, but for fsync alone, and
 * with $FAULTY_DISK_SLOW_S for so many seconds only).
 * cc -shared -fPIC -o faulty_disk.so faulty_disk.c -ldl */
#define _GNU_SOURCE
#include <dirent.h>
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/statvfs.h>
#include <unistd.h>

static int real_open(const char *path, int flags, mode_t mode) {
    static int (*real)(const char *, int, ...);
    if (!real) real = dlsym(RTLD_NEXT, "open64");
    return real(path, flags, mode);
}

/* Whether the control file names a folder of this path, and what is to happen there. */
static int is_faulty(const char *path, char *error) {
    char line[256], folder[200], part[210], with_end[4200];
    const char *control = getenv("FAULTY_DISK");
    int saved = errno, descriptor = control ? real_open(control, O_RDONLY | O_CLOEXEC, 0) : -1;
    ssize_t length = descriptor < 0 ? -1 : read(descriptor, line, sizeof line - 1);
    if (descriptor >= 0) close(descriptor);
    errno = saved;
    if (length <= 0) return 0;
    line[length] = 0;
    if (sscanf(line, "%19s %199s", error, folder) != 2) return 0;
    snprintf(part, sizeof part, "/%s/", folder);
    snprintf(with_end, sizeof with_end, "%s/", path);
    return strstr(with_end, part) != NULL;
}

enum call { READ, WRITE, CHANGE, SYNC };

static int fails_at(const char *path, enum call call) {
    char real[4100], link[4100], error[20];
    ssize_t length = -1;
    if (!path) return 0;
    if (!strncmp(path, "/proc/self/fd/", 14)) { /* FOLDER by its descriptor */
        const char *rest = strchr(path + 14, '/');
        snprintf(link, sizeof link, "%.*s", rest ? (int)(rest - path) : 4000, path);
        length = readlink(link, real, 4000);
        if (length >= 0) snprintf(real + length, sizeof real - length, "%s", rest ? rest : "");
    }
    while (is_faulty(length >= 0 ? real : path, error)) {
        int number = atoi(error);
        if (!strcmp(error, "slow") && call != SYNC) return 0;
        if (!strcmp(error, "slow") && getenv("FAULTY_DISK_SLOW_S")) {
            sleep(atoi(getenv("FAULTY_DISK_SLOW_S")));
            return 0;
        }
        if (number == EROFS && call != WRITE && call != CHANGE) return 0;
        if ((number == ENOSPC || number == EDQUOT) && call != WRITE) return 0;
        if (number) {
            errno = number;
            return 1;
        }
        usleep(50000);
    }
    return 0;
}

static int fails_fd(int descriptor, enum call call) {
    char path[64];
    snprintf(path, sizeof path, "/proc/self/fd/%d", descriptor);
    return fails_at(path, call);
}

#define HOOK(ret, name, args, call, check, bad) \
    ret name args { static ret(*real) args; if (!real) real = dlsym(RTLD_NEXT, #name); return check ? bad : real call; }

HOOK(int, stat, (const char *p, struct stat *s), (p, s), fails_at(p, READ), -1)
HOOK(int, stat64, (const char *p, struct stat64 *s), (p, s), fails_at(p, READ), -1)
HOOK(int, lstat, (const char *p, struct stat *s), (p, s), fails_at(p, READ), -1)
HOOK(int, lstat64, (const char *p, struct stat64 *s), (p, s), fails_at(p, READ), -1)
HOOK(int, statvfs, (const char *p, struct statvfs *s), (p, s), fails_at(p, READ), -1)
HOOK(int, statvfs64, (const char *p, struct statvfs64 *s), (p, s), fails_at(p, READ), -1)
HOOK(DIR *, opendir, (const char *p), (p), fails_at(p, READ), NULL)
HOOK(int, mkdir, (const char *p, mode_t m), (p, m), fails_at(p, READ), -1)
HOOK(int, chmod, (const char *p, mode_t m), (p, m), fails_at(p, CHANGE), -1)
HOOK(int, unlink, (const char *p), (p), fails_at(p, CHANGE), -1)
HOOK(int, rename, (const char *p, const char *q), (p, q), fails_at(p, CHANGE) || fails_at(q, CHANGE), -1)
HOOK(int, fsync, (int fd), (fd), fails_fd(fd, SYNC), -1)
HOOK(ssize_t, write, (int fd, const void *b, size_t n), (fd, b, n), fails_fd(fd, WRITE), -1)

static int open_checked(const char *path, int flags, mode_t mode) {
    return fails_at(path, flags & (O_WRONLY | O_RDWR | O_CREAT) ? WRITE : READ) ? -1 : real_open(path, flags, mode);
}

int open64(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    return open_checked(path, flags, mode);
}

int open(const char *path, int flags, ...) {
    va_list rest;
    va_start(rest, flags);
    mode_t mode = va_arg(rest, mode_t);
    va_end(rest);
    return open_checked(path, flags, mode);
}
