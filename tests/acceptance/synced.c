/* A disk that is cut off: keeps a copy of the outbox's files as they were when they were last synced.
 *
 * Preloaded into the server. After each fsync or fdatasync of the file named by SYNCED_FILE, or of its -wal file, the
 * file as it is goes into the folder named by SYNCED_COPY. What was written and not synced is not in the copy, as if
 * the power had failed. With SYNC_IGNORED set to the end of a file's name (such as "-wal") that file never gets there,
 * which is what a disk does that says "synced" and lies, or a program that forgets to sync.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <fcntl.h>
#include <limits.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>

static void fail(const char *what) {
    perror(what);
    abort(); /* a copy that is not true would make the test pass or fail for nothing */
}

static void copy(int from, const char *path) {
    static char buffer[1 << 20];
    int to = open(path, O_WRONLY | O_CREAT | O_CLOEXEC, 0600);
    if (to < 0) fail(path);
    off_t at = 0;
    ssize_t count;
    /* In place: a power cut in the middle of a sync leaves some of the new bytes among the old ones. */
    while ((count = pread(from, buffer, sizeof buffer, at)) > 0) {
        if (pwrite(to, buffer, (size_t)count, at) != count) fail("pwrite");
        at += count;
    }
    if (count < 0) fail("pread");
    if (ftruncate(to, at) != 0) fail("ftruncate");
    close(to);
}

static void synced(int descriptor) {
    const char *file = getenv("SYNCED_FILE"), *folder = getenv("SYNCED_COPY"), *ignored = getenv("SYNC_IGNORED");
    char link[64], name[PATH_MAX + 1], path[PATH_MAX + 1];
    if (!file || !folder) return;
    snprintf(link, sizeof link, "/proc/self/fd/%d", descriptor);
    ssize_t length = readlink(link, name, PATH_MAX);
    if (length < 0) return;
    name[length] = 0;
    size_t stem = strlen(file);
    if (strncmp(name, file, stem) != 0) return;
    const char *end = name + stem;
    if (strcmp(end, "") != 0 && strcmp(end, "-wal") != 0) return;
    if (ignored && strcmp(end, ignored) == 0) return;
    snprintf(path, sizeof path, "%s/synced%s", folder, end);
    copy(descriptor, path); /* SQLite opens these files for reading, too */
}

int fsync(int descriptor) {
    static int (*real)(int);
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fsync");
    int result = real(descriptor);
    if (result == 0) synced(descriptor);
    return result;
}

int fdatasync(int descriptor) {
    static int (*real)(int);
    if (!real) real = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    int result = real(descriptor);
    if (result == 0) synced(descriptor);
    return result;
}
